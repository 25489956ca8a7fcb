"""What each device should run, as signed. Composes and signs nothing."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from controller.store.devices import DesiredRow, get_desired
from controller.store.tables import desired

__all__ = ["DesiredRow", "desired_models", "get_desired", "put_desired"]


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


def desired_models(conn: Connection, device_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The manifest's entries by device and model, for the devices that have a desired state."""
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(device_ids), 500):
        part = device_ids[start : start + 500]
        query = select(desired.c.device_id, desired.c.models).where(desired.c.device_id.in_(part))
        for row in conn.execute(query):
            found[row.device_id] = dict(row.models)
    return found
