"""The append-only log of what happened. Nothing here changes or deletes an event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from controller.store.tables import event


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event as stored. `at` is when the controller stored it."""

    number: int
    project: str
    at: datetime
    kind: str
    actor: str
    device_id: str | None
    boot_id: str | None
    seq: int | None
    model: str | None
    version: str | None
    rollout_id: str | None
    reason: str
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that is about to be stored."""

    project: str
    at: datetime
    kind: str
    actor: str
    device_id: str | None = None
    boot_id: str | None = None
    seq: int | None = None
    model: str | None = None
    version: str | None = None
    rollout_id: str | None = None
    reason: str = ""
    details: Mapping[str, object] | None = None


def append_many(conn: Connection, rows: Sequence[NewEvent]) -> None:
    """Add events in this order, in one statement."""
    if rows:
        conn.execute(insert(event), [_values(row) for row in rows])


def _values(row: NewEvent) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in NewEvent.__slots__}
    values["details"] = {name: str(value) for name, value in (row.details or {}).items()}
    return values


def append(
    conn: Connection,
    project: str,
    at: datetime,
    kind: str,
    actor: str,
    *,
    device_id: str | None = None,
    boot_id: str | None = None,
    seq: int | None = None,
    model: str | None = None,
    version: str | None = None,
    rollout_id: str | None = None,
    reason: str = "",
    details: Mapping[str, object] | None = None,
) -> int:
    """Add an event and return its number. Details are stored as text by name."""
    result = conn.execute(
        insert(event)
        .values(
            project=project,
            at=at,
            kind=kind,
            actor=actor,
            device_id=device_id,
            boot_id=boot_id,
            seq=seq,
            model=model,
            version=version,
            rollout_id=rollout_id,
            reason=reason,
            details={name: str(value) for name, value in (details or {}).items()},
        )
        .returning(event.c.number)
    )
    return int(result.scalar_one())


def list_events(
    conn: Connection,
    project: str,
    *,
    device_id: str | None = None,
    rollout_id: str | None = None,
    model: str | None = None,
    kinds: Sequence[str] = (),
    since: datetime | None = None,
    after: int = 0,
    limit: int = 100,
    newest: bool = True,
) -> list[EventRow]:
    """Matching events in ascending order: the newest `limit` or, with `newest` off, the first."""
    query = select(event).where(event.c.project == project)
    if device_id:
        query = query.where(event.c.device_id == device_id)
    if rollout_id:
        query = query.where(event.c.rollout_id == rollout_id)
    if model:
        query = query.where(event.c.model == model)
    if kinds:
        query = query.where(event.c.kind.in_(tuple(kinds)))
    if since is not None:
        query = query.where(event.c.at >= since)
    if after:
        query = query.where(event.c.number > after)
    order = event.c.number.desc() if newest else event.c.number
    rows = [_row(row) for row in conn.execute(query.order_by(order).limit(limit))]
    return rows[::-1] if newest else rows


def has_kind(conn: Connection, project: str, kind: str) -> bool:
    """Whether an event of the kind was ever stored."""
    query = select(event.c.number).where(event.c.project == project, event.c.kind == kind)
    return conn.execute(query.limit(1)).first() is not None


def newest_of_devices(
    conn: Connection, kind: str, device_ids: Sequence[str]
) -> dict[str, tuple[datetime, str]]:
    """By device when the newest event of the kind was stored, and by whom."""
    found: dict[str, tuple[datetime, str]] = {}
    for start in range(0, len(device_ids), 500):
        query = (
            select(event.c.device_id, event.c.at, event.c.actor)
            .where(event.c.kind == kind, event.c.device_id.in_(device_ids[start : start + 500]))
            .order_by(event.c.number)
        )
        found |= {row.device_id: (row.at, row.actor) for row in conn.execute(query)}
    return found


def last_number(conn: Connection) -> int:
    """Number of the newest event, 0 when there is none."""
    return int(conn.execute(select(func.max(event.c.number))).scalar() or 0)


def _row(row: Row[Any]) -> EventRow:
    return EventRow(
        number=row.number,
        project=row.project,
        at=row.at,
        kind=row.kind,
        actor=row.actor,
        device_id=row.device_id,
        boot_id=row.boot_id,
        seq=row.seq,
        model=row.model,
        version=row.version,
        rollout_id=row.rollout_id,
        reason=row.reason,
        details=dict(row.details or {}),
    )
