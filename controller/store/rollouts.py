"""Rows of rollouts. Decides nothing: the planner's word is written as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from controller.domain.planner import PauseKind, PauseReason
from controller.domain.rollout import TERMINAL, Intent, Phase
from controller.store.session import fresh_id
from controller.store.tables import rollout

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One rollout as stored. `spec` and `policies` are fixed at its start."""

    rollout_id: str
    project: str
    model: str
    version: str
    spec: Json
    policies: Json
    phase: Phase
    phase_reason: str
    pause_reasons: tuple[PauseReason, ...]
    intent: Intent
    intent_by: str
    intent_at: datetime
    intent_reason: str
    current_wave: int
    wake_at: datetime | None
    created_at: datetime
    created_by: str
    finished_at: datetime | None


def new_rollout_id(conn: Connection, draw: Any) -> str:
    """An id that no rollout has yet; `draw` gives candidates."""
    return fresh_id(conn, rollout.c.rollout_id, draw)


def insert_rollout(conn: Connection, row: RolloutRow) -> None:
    """Add a rollout."""
    conn.execute(
        insert(rollout).values(
            rollout_id=row.rollout_id,
            project=row.project,
            model=row.model,
            version=row.version,
            spec=row.spec,
            policies=row.policies,
            phase=row.phase.value,
            phase_reason=row.phase_reason,
            pause_reasons=_pauses_to_json(row.pause_reasons),
            intent=row.intent.value,
            intent_by=row.intent_by,
            intent_at=row.intent_at,
            intent_reason=row.intent_reason,
            current_wave=row.current_wave,
            wake_at=row.wake_at,
            created_at=row.created_at,
            created_by=row.created_by,
            finished_at=row.finished_at,
        )
    )


_FOUND = select(rollout).where(rollout.c.rollout_id == bindparam("wanted"))


def get_rollout(conn: Connection, project: str, rollout_id: str) -> RolloutRow | None:
    """The rollout, or None."""
    row = find_rollout(conn, rollout_id)
    return None if row is None or row.project != project else row


def find_rollout(conn: Connection, rollout_id: str) -> RolloutRow | None:
    """The rollout, whatever its project."""
    row = conn.execute(_FOUND, {"wanted": rollout_id}).first()
    return None if row is None else _row(row)


_ACTIVE = (  # what every tick asks
    select(rollout)
    .where(rollout.c.phase.not_in([phase.value for phase in TERMINAL]))
    .order_by(rollout.c.created_at.desc(), rollout.c.rollout_id)
)


def list_rollouts(
    conn: Connection, project: str | None = None, *, active_only: bool = False, limit: int = 0
) -> list[RolloutRow]:
    """Rollouts, newest first; without `project` those of all projects; `limit` 0 means all."""
    if project is None and active_only and not limit:
        return [_row(row) for row in conn.execute(_ACTIVE)]
    query = select(rollout).order_by(rollout.c.created_at.desc(), rollout.c.rollout_id)
    if project is not None:
        query = query.where(rollout.c.project == project)
    if active_only:
        query = query.where(rollout.c.phase.not_in([phase.value for phase in TERMINAL]))
    if limit:
        query = query.limit(limit)
    return [_row(row) for row in conn.execute(query)]


def set_intent(
    conn: Connection, rollout_id: str, intent: Intent, actor: str, reason: str, now: datetime
) -> None:
    """What people want: written by them only."""
    _set(
        conn,
        rollout_id,
        {
            "intent": intent.value,
            "intent_by": actor,
            "intent_at": now,
            "intent_reason": reason,
        },
    )


def set_phase(
    conn: Connection,
    rollout_id: str,
    phase: Phase,
    reason: str,
    current_wave: int,
    pause_reasons: tuple[PauseReason, ...],
    wake_at: datetime | None,
    finished_at: datetime | None,
) -> None:
    """What the planner decided: written by the tick only."""
    _set(
        conn,
        rollout_id,
        {
            "phase": phase.value,
            "phase_reason": reason,
            "current_wave": current_wave,
            "pause_reasons": _pauses_to_json(pause_reasons),
            "wake_at": wake_at,
            "finished_at": finished_at,
        },
    )


def _set(conn: Connection, rollout_id: str, values: Mapping[str, object]) -> None:
    conn.execute(update(rollout).where(rollout.c.rollout_id == rollout_id).values(**values))


def _pauses_to_json(reasons: tuple[PauseReason, ...]) -> list[Json]:
    return [
        {"kind": one.kind.value, "reason": one.reason, "at": one.at.isoformat()} for one in reasons
    ]


def _row(row: Row[Any]) -> RolloutRow:
    return RolloutRow(
        rollout_id=row.rollout_id,
        project=row.project,
        model=row.model,
        version=row.version,
        spec=dict(row.spec),
        policies=dict(row.policies),
        phase=Phase(row.phase),
        phase_reason=row.phase_reason,
        pause_reasons=tuple(
            PauseReason(PauseKind(one["kind"]), one["reason"], datetime.fromisoformat(one["at"]))
            for one in row.pause_reasons
        ),
        intent=Intent(row.intent),
        intent_by=row.intent_by,
        intent_at=row.intent_at,
        intent_reason=row.intent_reason,
        current_wave=row.current_wave,
        wake_at=row.wake_at,
        created_at=row.created_at,
        created_by=row.created_by,
        finished_at=row.finished_at,
    )
