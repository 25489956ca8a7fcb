"""Rows of devices, their capabilities and their boots. Decides nothing about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, delete, func, insert, or_, select, update

from controller.store.tables import assignment, capability, desired, device


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device as stored. `status` is its last telemetry, as in the health feed."""

    device_id: str
    project: str
    state: str
    hardware_id: str
    profile: str | None
    protocol: int
    boot_id: str | None
    online: bool
    last_seen_at: datetime | None
    applied_generation: int
    status: dict[str, Any] | None
    enrolled_at: datetime


def get_device(conn: Connection, device_id: str) -> DeviceRow | None:
    """The device, or None."""
    row = conn.execute(select(device).where(device.c.device_id == device_id)).first()
    return _row(row) if row is not None else None


def list_devices(
    conn: Connection,
    project: str,
    device_ids: Iterable[str] | None = None,
    *,
    with_status: bool = True,
) -> list[DeviceRow]:
    """Devices of the project in order of their id; with `device_ids` only those.

    Without `with_status` every status is None: it is large, and most callers do not read it.
    """
    columns = [column for column in device.c if with_status or column.name != "status"]
    query = select(*columns).where(device.c.project == project).order_by(device.c.device_id)
    if device_ids is None:
        return [_row(row) for row in conn.execute(query)]
    found: list[DeviceRow] = []
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):  # bounded number of parameters
        part = wanted[start : start + 500]
        found += [_row(row) for row in conn.execute(query.where(device.c.device_id.in_(part)))]
    return found


def count_offline(conn: Connection, project: str, device_ids: Iterable[str]) -> int:
    """How many of these devices of the project are not online."""
    count = 0
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        query = select(func.count()).where(
            device.c.project == project,
            device.c.device_id.in_(wanted[start : start + 500]),
            device.c.online.is_(False),
        )
        count += int(conn.execute(query).scalar_one())
    return count


def find_devices(conn: Connection, device_ids: Iterable[str]) -> list[DeviceRow]:
    """Those of the ids that are devices, whatever their project, in order of their id."""
    found: list[DeviceRow] = []
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        query = select(device).where(device.c.device_id.in_(part)).order_by(device.c.device_id)
        found += [_row(row) for row in conn.execute(query)]
    return found


def existing(conn: Connection, device_ids: Iterable[str]) -> set[str]:
    """Those of the ids that are devices, whatever their project."""
    found: set[str] = set()
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        query = select(device.c.device_id).where(device.c.device_id.in_(part))
        found.update(row.device_id for row in conn.execute(query))
    return found


@dataclass(frozen=True, slots=True)
class Speaker:
    """What is asked of a device when it says something."""

    device_id: str
    project: str
    state: str
    applied_generation: int


def list_speakers(conn: Connection, device_ids: Iterable[str]) -> dict[str, Speaker]:
    """Those of the ids that are devices."""
    columns = (device.c.device_id, device.c.project, device.c.state, device.c.applied_generation)
    found: dict[str, Speaker] = {}
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in conn.execute(select(*columns).where(device.c.device_id.in_(part))):
            found[row.device_id] = Speaker(*row)
    return found


def note_heard(
    conn: Connection,
    heard: Iterable[tuple[str, datetime, int, Mapping[str, Any] | None]],
) -> None:
    """Device, when, the generation it applied and (unless None) its status, all in one go.

    The applied generation never goes down; 0 says nothing of it.
    """
    plain: list[dict[str, Any]] = []
    telling: list[dict[str, Any]] = []
    for device_id, at, applied, status in heard:
        values = {"of_device": device_id, "seen_at": at, "applied": applied}
        if status is None:
            plain.append(values)
        else:
            telling.append({**values, "told": dict(status)})
    applied_now = bindparam("applied", type_=device.c.applied_generation.type)
    change = update(device).where(device.c.device_id == bindparam("of_device"))
    columns: dict[str, Any] = {
        "last_seen_at": bindparam("seen_at", type_=device.c.last_seen_at.type),
        "applied_generation": case(
            (device.c.applied_generation < applied_now, applied_now),
            else_=device.c.applied_generation,
        ),
    }
    if plain:
        conn.execute(change.values(columns), plain)
    if telling:
        told = {"status": bindparam("told", type_=device.c.status.type)}
        conn.execute(change.values(columns | told), telling)


def note_presence(
    conn: Connection,
    words: Sequence[tuple[str, bool, datetime | None, Mapping[str, Any] | None]],
) -> None:
    """Device, whether it is online, when it was last seen, its status; all in one go."""
    if words:
        conn.execute(
            update(device)
            .where(device.c.device_id == bindparam("of_device"))
            .values(
                online=bindparam("is_online"),
                last_seen_at=bindparam("seen_at"),
                status=bindparam("told"),
            ),
            [
                {"of_device": name, "is_online": online, "seen_at": at,
                 "told": dict(status) if status else None}
                for name, online, at, status in words
            ],
        )  # fmt: skip


def insert_device(
    conn: Connection,
    device_id: str,
    project: str,
    state: str,
    hardware_id: str,
    protocol: int,
    now: datetime,
) -> None:
    """Add a device that just enrolled."""
    conn.execute(
        insert(device).values(
            device_id=device_id,
            project=project,
            state=state,
            hardware_id=hardware_id,
            protocol=protocol,
            enrolled_at=now,
        )
    )


def update_device(conn: Connection, device_id: str, **values: object) -> None:
    """Set columns of one device."""
    conn.execute(update(device).where(device.c.device_id == device_id).values(**values))


def raise_applied(conn: Connection, device_id: str, generation: int) -> bool:
    """Set the applied generation if it is higher than the stored one; says whether it was."""
    result = conn.execute(
        update(device)
        .where(device.c.device_id == device_id, device.c.applied_generation < generation)
        .values(applied_generation=generation)
    )
    return result.rowcount > 0


def mark_unseen_offline(conn: Connection, before: datetime) -> list[DeviceRow]:
    """Mark online devices that did not speak since `before` offline, and return them."""
    stale = device.c.online & or_(device.c.last_seen_at.is_(None), device.c.last_seen_at < before)
    rows = [_row(row) for row in conn.execute(select(device).where(stale))]
    if rows:
        conn.execute(update(device).where(stale).values(online=False))
    return rows


def list_statuses(conn: Connection) -> list[tuple[str, str, dict[str, Any]]]:
    """(project, device, last status) of devices that are not retired and have one."""
    query = (
        select(device.c.project, device.c.device_id, device.c.status)
        .where(device.c.state != "RETIRED")
        .order_by(device.c.device_id)
    )
    return [(row[0], row[1], dict(row[2])) for row in conn.execute(query) if row[2]]


def count_by_state(conn: Connection, project: str) -> dict[tuple[str, bool], int]:
    """How many devices there are by (state, online)."""
    query = (
        select(device.c.state, device.c.online, func.count())
        .where(device.c.project == project)
        .group_by(device.c.state, device.c.online)
    )
    return {(state, bool(online)): int(count) for state, online, count in conn.execute(query)}


def put_capabilities(
    conn: Connection, device_id: str, reported: Mapping[str, object], now: datetime
) -> None:
    """Store what a device reported of itself, in place of what it reported before."""
    conn.execute(delete(capability).where(capability.c.device_id == device_id))
    conn.execute(
        insert(capability).values(device_id=device_id, reported=dict(reported), reported_at=now)
    )


def capabilities_of(
    conn: Connection, device_ids: Iterable[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Reported capabilities by device id; with `device_ids` only those."""
    query = select(capability.c.device_id, capability.c.reported)
    if device_ids is None:
        return {row.device_id: dict(row.reported) for row in conn.execute(query)}
    found: dict[str, dict[str, Any]] = {}
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in conn.execute(query.where(capability.c.device_id.in_(part))):
            found[row.device_id] = dict(row.reported)
    return found


def reports_runtime(conn: Connection, project: str, profile: str, runtime: str) -> bool:
    """Whether a device of the profile that is enrolled and not retired has this runtime."""
    reported = capability.c.reported["runtimes"][runtime].as_string()
    query = (
        select(device.c.device_id)
        .join(capability, capability.c.device_id == device.c.device_id)
        .where(
            device.c.project == project,
            device.c.profile == profile,
            device.c.state != "RETIRED",
            reported.is_not(None),
        )
        .limit(1)
    )
    return conn.execute(query).first() is not None


def desired_generations(conn: Connection) -> dict[str, int]:
    """The desired generation of every device that has one."""
    rows = conn.execute(select(desired.c.device_id, desired.c.generation))
    return {row.device_id: int(row.generation) for row in rows}


@dataclass(frozen=True, slots=True)
class DesiredRow:
    """What one device should run, as signed; `models` holds the manifest's entries by model."""

    generation: int
    models: dict[str, Any]
    manifest: bytes
    signatures: list[dict[str, str]]


def get_desired(conn: Connection, device_id: str) -> DesiredRow | None:
    """The desired state of a device, or None when it never got an order."""
    row = conn.execute(select(desired).where(desired.c.device_id == device_id)).first()
    if row is None:
        return None
    return DesiredRow(row.generation, dict(row.models), bytes(row.manifest), list(row.signatures))


_DESIRED = select(desired.c.device_id, desired.c.generation, desired.c.models).where(
    desired.c.device_id.in_(bindparam("wanted", expanding=True))
)


def list_desired(conn: Connection, device_ids: Iterable[str]) -> dict[str, tuple[int, Any]]:
    """Generation and the manifest's entries by model of those that have a desired state."""
    found: dict[str, tuple[int, Any]] = {}
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in conn.execute(_DESIRED, {"wanted": part}):
            found[row.device_id] = (int(row.generation), dict(row.models))
    return found


def list_applied(conn: Connection, device_ids: Iterable[str]) -> dict[str, int]:
    """The generation that each of these devices says it has followed."""
    found: dict[str, int] = {}
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        query = select(device.c.device_id, device.c.applied_generation).where(
            device.c.device_id.in_(wanted[start : start + 500])
        )
        found |= {row.device_id: int(row.applied_generation) for row in conn.execute(query)}
    return found


def behind(conn: Connection) -> list[tuple[str, int, str]]:
    """(device, desired generation, manifest digest) where the device applied less than desired."""
    query = (
        select(device.c.device_id, desired.c.generation, desired.c.manifest_digest)
        .join(desired, desired.c.device_id == device.c.device_id)
        .where(device.c.applied_generation < desired.c.generation, device.c.state == "ACTIVE")
        .order_by(device.c.device_id)
    )
    return [(row[0], int(row[1]), row[2]) for row in conn.execute(query)]


def previous_versions(
    conn: Connection, device_ids: Iterable[str]
) -> dict[tuple[str, str, str], str]:
    """What (device, model, version) replaced when it was activated, where something was."""
    columns = (
        assignment.c.device_id,
        assignment.c.model,
        assignment.c.version,
        assignment.c.previous_version,
    )
    query = (
        select(*columns)
        .where(assignment.c.activated_at.is_not(None), assignment.c.previous_version.is_not(None))
        .order_by(assignment.c.activated_at)
    )
    found: dict[tuple[str, str, str], str] = {}
    wanted = sorted(device_ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        for row in conn.execute(query.where(assignment.c.device_id.in_(part))):
            found[row.device_id, row.model, row.version] = row.previous_version
    return found


def _row(row: Row[Any]) -> DeviceRow:
    status = getattr(row, "status", None)
    return DeviceRow(
        device_id=row.device_id,
        project=row.project,
        state=row.state,
        hardware_id=row.hardware_id,
        profile=row.profile,
        protocol=row.protocol,
        boot_id=row.boot_id,
        online=bool(row.online),
        last_seen_at=row.last_seen_at,
        applied_generation=row.applied_generation,
        status=dict(status) if status else None,
        enrolled_at=row.enrolled_at,
    )
