"""What each device should run, as signed. Composes and signs nothing."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from controller.errors import InvariantError
from controller.store.devices import DesiredRow, get_desired, list_desired
from controller.store.tables import desired

__all__ = ["DesiredRow", "desired_models", "get_desired", "list_desired", "put_desired", "put_many"]


def put_desired(
    conn: Connection,
    device_id: str,
    generation: int,
    models: Mapping[str, Any],
    manifest: bytes,
    manifest_digest: str,
    signatures: Sequence[Mapping[str, str]],
    now: datetime,
) -> None:
    """Write a device's next generation over the one before."""
    values = {
        "generation": generation,
        "models": dict(models),
        "manifest": manifest,
        "manifest_digest": manifest_digest,
        "signatures": [dict(one) for one in signatures],
        "updated_at": now,
    }
    row = desired.c.device_id == device_id
    # A generation never goes down or stays: the device would not take it.
    newer = update(desired).where(row, desired.c.generation < generation).values(**values)
    if conn.execute(newer).rowcount == 0:
        conn.execute(insert(desired).values(device_id=device_id, **values))


def put_many(conn: Connection, rows: Sequence[Mapping[str, Any]], known: Collection[str]) -> None:
    """Write the next generations of many devices; `known` have one already. Columns by name.

    InvariantError where one is not newer than what is stored: its device would not take it.
    """
    fresh = [dict(row) for row in rows if row["device_id"] not in known]
    newer = [dict(row) for row in rows if row["device_id"] in known]
    if fresh:
        conn.execute(insert(desired), fresh)
    if not newer:
        return
    names = [name for name in newer[0] if name != "device_id"]
    change = (
        update(desired)
        .where(
            desired.c.device_id == bindparam("b_device_id"),
            desired.c.generation < bindparam("b_generation"),
        )
        .values({name: bindparam(f"b_{name}") for name in names})
    )
    done = conn.execute(change, [{f"b_{name}": row[name] for name in row} for row in newer])
    if done.rowcount not in (len(newer), -1):
        raise InvariantError("a desired state was to get a generation that is not newer")


def desired_models(conn: Connection, device_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The manifest's entries by device and model, for the devices that have a desired state."""
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(device_ids), 500):
        part = device_ids[start : start + 500]
        query = select(desired.c.device_id, desired.c.models).where(desired.c.device_id.in_(part))
        for row in conn.execute(query):
            found[row.device_id] = dict(row.models)
    return found
