"""What devices report of their assignments. Decides no transition: the domain does."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from controller.store.tables import assignment


@dataclass(frozen=True, slots=True)
class AssignmentFacts:
    """As much of an assignment as a report is held against."""

    model: str
    version: str
    state: str
    activated_at: datetime | None


def find(conn: Connection, rollout_id: str, device_id: str) -> AssignmentFacts | None:
    """The assignment of a device in a rollout, or None."""
    row = conn.execute(
        select(assignment).where(
            assignment.c.rollout_id == rollout_id, assignment.c.device_id == device_id
        )
    ).first()
    if row is None:
        return None
    return AssignmentFacts(row.model, row.version, row.state, row.activated_at)


def record(
    conn: Connection,
    rollout_id: str,
    device_id: str,
    now: datetime,
    *,
    state: str,
    reason: str,
    evidence: Mapping[str, Any] | None,
    activated: bool,
    finished: bool,
) -> None:
    """Write a report's state, reason and evidence; the first activation and the end get a time."""
    values: dict[str, Any] = {"state": state, "reason": reason, "updated_at": now}
    if evidence is not None:
        values["evidence"] = dict(evidence)
    if activated:
        values["activated_at"] = now
    if finished:
        values["finished_at"] = now
    conn.execute(
        update(assignment)
        .where(assignment.c.rollout_id == rollout_id, assignment.c.device_id == device_id)
        .values(**values)
    )
