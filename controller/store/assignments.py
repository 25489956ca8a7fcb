"""Rows of assignments: one device, one model, one rollout. State moves along the tables only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, update

from controller.domain.rollout import (
    OPEN,
    AssignmentState,
    check_state,
)
from controller.store.tables import assignment

Json = dict[str, Any]
_A = AssignmentState


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """One assignment as stored. `finished_at`: desired and reality agree about it again."""

    rollout_id: str
    device_id: str
    model: str
    version: str
    wave: int
    position: int
    state: AssignmentState
    reason: str
    previous_version: str | None
    previous_entry: Json | None
    generation: int | None
    exposed: bool
    evidence: Json
    baseline: Json | None
    offered_at: datetime | None
    activated_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewAssignment:
    """A device of a rollout that starts; REFUSED where nothing can be offered to it."""

    device_id: str
    wave: int
    position: int
    state: AssignmentState
    reason: str
    previous_version: str | None
    bytes: int


def insert_assignments(
    conn: Connection,
    rollout_id: str,
    model: str,
    version: str,
    rows: Iterable[NewAssignment],
    now: datetime,
) -> None:
    """Add the devices of a rollout."""
    values = [
        {
            "rollout_id": rollout_id,
            "device_id": row.device_id,
            "model": model,
            "version": version,
            "wave": row.wave,
            "position": row.position,
            "state": row.state.value,
            "reason": row.reason,
            "previous_version": row.previous_version,
            "exposed": False,
            "evidence": {"bytes": row.bytes},
            "finished_at": now if row.state is _A.REFUSED else None,
            "updated_at": now,
        }
        for row in rows
    ]
    if values:
        conn.execute(insert(assignment), values)


def list_assignments(
    conn: Connection,
    rollout_id: str | None = None,
    *,
    device_id: str | None = None,
    model: str | None = None,
    wave: int | None = None,
    states: Iterable[AssignmentState] | None = None,
    limit: int = 0,
    with_previous: bool = True,
) -> list[AssignmentRow]:
    """Matching assignments in the rollout's stable order.

    Without `with_previous` every `previous_entry` is None: who only looks need not read it.
    """
    equal = {"rollout_id": rollout_id, "device_id": device_id, "model": model, "wave": wave}
    wanted: Json = {name: value for name, value in equal.items() if value is not None}
    query = _listing(tuple(wanted), states is not None, bool(limit), with_previous)
    if states is not None:
        wanted["states"] = [state.value for state in states]
    if limit:
        wanted["most"] = limit
    named = {f"wanted_{name}": value for name, value in wanted.items()}
    return [read_row(row) for row in conn.execute(query, named)]


@cache
def _listing(
    names: tuple[str, ...], with_states: bool, limited: bool, with_previous: bool
) -> Select[Any]:
    """A tick asks the same again and again: each kind of question is put together once."""
    columns = [c for c in assignment.c if with_previous or c.name != "previous_entry"]
    query = select(*columns).order_by(assignment.c.rollout_id, assignment.c.position)
    for name in names:
        query = query.where(assignment.c[name] == bindparam(f"wanted_{name}"))
    if with_states:
        query = query.where(assignment.c.state.in_(bindparam("wanted_states", expanding=True)))
    if limited:
        query = query.limit(bindparam("wanted_most", type_=assignment.c.wave.type))
    return query


def get_assignment(conn: Connection, rollout_id: str, device_id: str) -> AssignmentRow | None:
    """The assignment, or None."""
    query = select(assignment).where(*_key(rollout_id, device_id))
    row = conn.execute(query).first()
    return None if row is None else read_row(row)


def open_of_model(conn: Connection, model: str, device_ids: Sequence[str]) -> list[AssignmentRow]:
    """Open assignments of the model on these devices, whatever their rollout."""
    found: list[AssignmentRow] = []
    for start in range(0, len(device_ids), 500):
        query = select(assignment).where(
            assignment.c.model == model,
            assignment.c.state.in_([state.value for state in OPEN]),
            assignment.c.device_id.in_(device_ids[start : start + 500]),
        )
        found += [read_row(row) for row in conn.execute(query)]
    return found


def newest_tries(
    conn: Connection, model: str, version: str, device_ids: Sequence[str]
) -> dict[str, AssignmentRow]:
    """By device the newest assignment by which it was offered this version."""
    found: dict[str, AssignmentRow] = {}
    for start in range(0, len(device_ids), 500):
        query = (
            select(assignment)
            .where(
                assignment.c.model == model,
                assignment.c.version == version,
                assignment.c.exposed.is_(True),
                assignment.c.device_id.in_(device_ids[start : start + 500]),
            )
            .order_by(assignment.c.offered_at)
        )
        found |= {row.device_id: read_row(row) for row in conn.execute(query)}
    return found


def move(
    conn: Connection,
    row: AssignmentRow,
    state: AssignmentState,
    reason: str,
    now: datetime,
    **values: object,
) -> None:
    """A step of the controller. IllegalTransitionError where the tables do not allow it."""
    check_state(f"{row.rollout_id} on {row.device_id}", row.state, state, reason)
    conn.execute(
        update(assignment)
        .where(*_key(row.rollout_id, row.device_id))
        .values(state=state.value, reason=reason, updated_at=now, **values)
    )


def move_many(
    conn: Connection,
    steps: Sequence[tuple[AssignmentRow, AssignmentState, str, Mapping[str, object]]],
    now: datetime,
) -> None:
    """Steps of the controller in one go: row, state, reason, further columns (the same for all).

    IllegalTransitionError where the tables do not allow one; nothing is written then.
    """
    if not steps:
        return
    for row, state, reason, _ in steps:
        check_state(f"{row.rollout_id} on {row.device_id}", row.state, state, reason)
    names = ("state", "reason", "updated_at", *steps[0][3])
    values = [
        (row, {"state": state, "reason": reason, "updated_at": now, **more})
        for row, state, reason, more in steps
    ]
    put_columns(conn, names, values)


def settle(conn: Connection, rows: Sequence[AssignmentRow], now: datetime) -> None:
    """Desired and reality agree about them again."""
    put_columns(conn, ("finished_at",), [(row, {"finished_at": now}) for row in rows])


def put_columns(
    conn: Connection,
    names: Sequence[str],
    rows: Sequence[tuple[AssignmentRow, Mapping[str, object]]],
) -> None:
    """Write these columns of these rows in one statement; states are stored as their text."""
    if not rows:
        return
    conn.execute(
        update(assignment)
        .where(
            assignment.c.rollout_id == bindparam("of_rollout"),
            assignment.c.device_id == bindparam("of_device"),
        )
        .values({name: bindparam(f"new_{name}") for name in names}),
        [
            {
                "of_rollout": row.rollout_id,
                "of_device": row.device_id,
                **{f"new_{name}": values[name] for name in names},
            }
            for row, values in rows
        ],
    )


def _key(rollout_id: str, device_id: str) -> tuple[Any, Any]:
    return assignment.c.rollout_id == rollout_id, assignment.c.device_id == device_id


def read_row(row: Row[Any]) -> AssignmentRow:
    """A row as selected; columns that were left out are None."""
    return AssignmentRow(
        rollout_id=row.rollout_id,
        device_id=row.device_id,
        model=row.model,
        version=row.version,
        wave=row.wave,
        position=row.position,
        state=_A(row.state),
        reason=row.reason,
        previous_version=row.previous_version,
        previous_entry=getattr(row, "previous_entry", None),
        generation=row.generation,
        exposed=bool(row.exposed),
        evidence=dict(row.evidence or {}),
        baseline=getattr(row, "baseline", None),
        offered_at=row.offered_at,
        activated_at=row.activated_at,
        finished_at=row.finished_at,
        updated_at=row.updated_at,
    )
