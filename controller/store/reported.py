"""What devices say of their assignments: taken in one by one, read and written many at a time."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from controller.domain.rollout import AssignmentState, Reported, on_report, reason_of_report
from controller.store.assignments import (
    AssignmentRow,
    get_assignment,
    put_columns,
    read_row,
)
from controller.store.tables import assignment

Json = dict[str, Any]
_A = AssignmentState
LEFT = frozenset({_A.ROLLING_BACK, _A.ROLLED_BACK, _A.FAILED})
_CLOSES = frozenset({_A.ROLLED_BACK, _A.FAILED})
# Without what is large and only orders need.
_BRIEF = [column for column in assignment.c if column.name not in ("previous_entry", "baseline")]


def record_report(
    conn: Connection,
    device_id: str,
    rollout_id: str,
    reported: AssignmentState,
    reason: str,
    evidence: Mapping[str, Any] | None,
    now: datetime,
) -> Reported:
    """Write what a device says of its assignment; never raises for what it says.

    `ignored` of the result is not empty where nothing was made of it, and says why.
    """
    row = get_assignment(conn, rollout_id, device_id)
    if row is None:
        return Reported(reported, False, f"no assignment of {device_id} in {rollout_id}")
    result, after = take_report(row, reported, reason, evidence, now)
    if after is not row:
        put_reported(conn, [after])
    return result


def list_spoken_of(
    conn: Connection, rollout_ids: Iterable[str], device_ids: Iterable[str]
) -> dict[tuple[str, str], AssignmentRow]:
    """Assignments of these devices in these rollouts by (rollout, device), without what is heavy.

    `previous_entry` and `baseline` of the rows are None whatever is stored: for `take_report`.
    """
    found: dict[tuple[str, str], AssignmentRow] = {}
    rollouts, wanted = sorted(rollout_ids), sorted(device_ids)
    for start in range(0, len(wanted), 500):
        query = select(*_BRIEF).where(
            assignment.c.rollout_id.in_(rollouts),
            assignment.c.device_id.in_(wanted[start : start + 500]),
        )
        for row in conn.execute(query):
            found[row.rollout_id, row.device_id] = read_row(row)
    return found


def has_left(conn: Connection, rollout_id: str) -> bool:
    """Whether any device left the version, or could not take it, by what it said."""
    query = (
        select(assignment.c.device_id)
        .where(
            assignment.c.rollout_id == rollout_id,
            assignment.c.state.in_([state.value for state in LEFT]),
        )
        .limit(1)
    )
    return conn.execute(query).first() is not None


def list_left_last(conn: Connection, rollout_ids: Iterable[str]) -> list[AssignmentRow]:
    """Who left the version of one of these rollouts and was offered nothing newer since.

    Newest first, as brief as `list_spoken_of`.
    """
    newer = assignment.alias("newer")
    followed = select(newer.c.device_id).where(
        newer.c.device_id == assignment.c.device_id,
        newer.c.model == assignment.c.model,
        newer.c.offered_at > assignment.c.offered_at,
    )
    query = (
        select(*_BRIEF)
        .where(
            assignment.c.rollout_id.in_(sorted(rollout_ids)),
            assignment.c.state.in_([state.value for state in LEFT]),
            assignment.c.activated_at.is_not(None),
            ~followed.exists(),
        )
        .order_by(assignment.c.updated_at.desc())
    )
    return [read_row(row) for row in conn.execute(query)]


def list_refused_last(conn: Connection, rollout_ids: Iterable[str]) -> list[AssignmentRow]:
    """Who was to get the version of one of these rollouts, refused, and was planned for none since.

    Without those that the plan left out before the start. Newest first, as brief as
    `list_spoken_of`.
    """
    newer = assignment.alias("newer")
    followed = select(newer.c.device_id).where(
        newer.c.device_id == assignment.c.device_id,
        newer.c.model == assignment.c.model,
        newer.c.rollout_id != assignment.c.rollout_id,
        newer.c.position >= 0,
        newer.c.updated_at > assignment.c.updated_at,
    )
    query = (
        select(*_BRIEF)
        .where(
            assignment.c.rollout_id.in_(sorted(rollout_ids)),
            assignment.c.state == _A.REFUSED.value,
            assignment.c.position >= 0,
            ~followed.exists(),
        )
        .order_by(assignment.c.updated_at.desc())
    )
    return [read_row(row) for row in conn.execute(query)]


def take_report(
    row: AssignmentRow,
    reported: AssignmentState,
    reason: str,
    evidence: Mapping[str, Any] | None,
    now: datetime,
) -> tuple[Reported, AssignmentRow]:
    """What becomes of an assignment by a report; the same row where nothing does."""
    result = on_report(row.state, reported)
    if result.ignored:
        # Nobody orders anything newer there, perhaps: what it left must not stay desired.
        left = row.state is _A.SUPERSEDED and row.activated_at and reported in _CLOSES
        return result, replace(row, updated_at=now, finished_at=None) if left else row
    if not result.changed and row.finished_at is not None:
        # Said again of what has ended: the agent counts anew since, and the record stays.
        return result, row
    values: Json = {}
    if evidence is not None:
        values["evidence"] = {**row.evidence, **evidence}
        if evidence.get("starved"):
            values["reason"] = reason  # still in probation, and no longer for the reason it had
    if result.changed:
        kept = reason_of_report(row.reason, reason)
        values |= {"state": reported, "reason": kept, "finished_at": None}
        values |= _stamps(row, reported, now)
    return result, replace(row, updated_at=now, **values) if values else row


def put_reported(conn: Connection, rows: Iterable[AssignmentRow]) -> None:
    """Write what `take_report` changed, all in one go."""
    names = ("state", "reason", "evidence", "exposed", "activated_at", "finished_at", "updated_at")
    put_columns(conn, names, [(row, {name: getattr(row, name) for name in names}) for row in rows])


def _stamps(row: AssignmentRow, reported: AssignmentState, now: datetime) -> Json:
    match reported:
        case _A.REFUSED:
            return {"exposed": False}  # it never took a byte: its place is free again
        case _A.COMMITTED:
            return {"finished_at": now, "activated_at": row.activated_at or now}
        case _A.ACTIVATED | _A.PROBATION | _A.ROLLING_BACK | _A.ROLLED_BACK:
            return {"activated_at": row.activated_at or now}
        case _:
            return {}
