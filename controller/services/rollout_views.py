"""Rollouts as people see them. Reads only."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from controller.domain.rollout import (
    AssignmentState,
    Intent,
    Phase,
    RolloutSpec,
    Verdict,
    parse_rollout_spec,
)
from controller.services.context import Ctx
from controller.store import assignments, devices, waves
from controller.store.assignments import AssignmentRow
from controller.store.rollouts import RolloutRow
from controller.store.session import Connection
from controller.store.waves import WaveRow

_A = AssignmentState
OFFLINE_SHOWN = 20
_FETCHED = frozenset(_A) - {
    _A.PLANNED,
    _A.OFFERED,
    _A.DOWNLOADING,
    _A.WITHDRAWN,
    _A.REFUSED,
    _A.SUPERSEDED,
    _A.FAILED,
}


@dataclass(frozen=True, slots=True)
class WaveView:
    """One wave. Latencies in seconds; None: nothing was measured."""

    number: int
    entry: str
    devices: int
    cumulative: int
    states: Mapping[str, int]
    verdict: str
    verdict_reason: str
    samples: int
    samples_needed: int
    p95_before_s: float | None
    p95_after_s: float | None
    errors: int
    opened_at: datetime | None
    next_look_at: datetime | None


@dataclass(frozen=True, slots=True)
class RolloutView:
    """One rollout. `devices` without those that nothing could be offered to."""

    rollout_id: str
    spec: RolloutSpec
    phase: Phase
    phase_reason: str
    intent: Intent
    intent_by: str
    created_at: datetime
    created_by: str
    finished_at: datetime | None
    waves: tuple[WaveView, ...]
    devices: int
    exposed: int
    exposed_cap: int
    current_wave: int
    pause_reasons: tuple[str, ...]
    from_versions: Mapping[str, int]
    bytes_sent: int
    bytes_total: int
    offline: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AssignmentView:
    """One device of a rollout."""

    device_id: str
    wave: int
    state: AssignmentState
    reason: str
    updated_at: datetime
    previous_version: str
    inferences: int


def view_rollout(conn: Connection, ctx: Ctx, row: RolloutRow) -> RolloutView:
    """The rollout with its waves and devices."""
    rows = assignments.list_assignments(conn, row.rollout_id, with_previous=False)
    wave_rows = waves.list_waves(conn, row.rollout_id)
    by_wave: dict[int, Counter[str]] = {}
    for one in rows:
        by_wave.setdefault(one.wave, Counter())[one.state.value] += 1
    total = wave_rows[-1].cumulative if wave_rows else 0
    cap = wave_rows[row.current_wave - 1].cumulative if row.current_wave else 0
    return RolloutView(
        rollout_id=row.rollout_id,
        spec=parse_rollout_spec(row.spec),
        phase=row.phase,
        phase_reason=row.phase_reason,
        intent=row.intent,
        intent_by=row.intent_by,
        created_at=row.created_at,
        created_by=row.created_by,
        finished_at=row.finished_at,
        waves=_waves(wave_rows, by_wave),
        devices=total,
        exposed=sum(one.exposed for one in rows),
        exposed_cap=cap,
        current_wave=row.current_wave,
        pause_reasons=tuple(one.reason for one in row.pause_reasons),
        from_versions=dict(
            Counter(one.previous_version or "" for one in rows if one.position >= 0)
        ),
        bytes_sent=sum(_bytes(one) for one in rows if one.state in _FETCHED),
        bytes_total=sum(_bytes(one) for one in rows),
        offline=_offline(conn, ctx, rows),
    )


def view_assignments(conn: Connection, rollout_id: str) -> tuple[AssignmentView, ...]:
    """The devices of a rollout in its stable order."""
    return tuple(
        AssignmentView(
            device_id=row.device_id,
            wave=row.wave,
            state=row.state,
            reason=row.reason,
            updated_at=row.updated_at,
            previous_version=row.previous_version or "",
            inferences=int(row.evidence.get("inferences") or 0),
        )
        for row in assignments.list_assignments(conn, rollout_id)
    )


def _waves(rows: list[WaveRow], by_wave: Mapping[int, Counter[str]]) -> tuple[WaveView, ...]:
    views: list[WaveView] = []
    before = 0
    for row in rows:
        look = row.evidence.get("next_look_at")
        views.append(
            WaveView(
                number=row.number,
                entry=row.entry,
                devices=row.cumulative - before,
                cumulative=row.cumulative,
                states=dict(by_wave.get(row.number, {})),
                verdict=_verdict(row),
                verdict_reason=row.verdict_reason,
                samples=int(row.evidence.get("samples") or 0),
                samples_needed=int(row.evidence.get("samples_needed") or 0),
                p95_before_s=row.evidence.get("p95_before_s"),
                p95_after_s=row.evidence.get("p95_after_s"),
                errors=int(row.evidence.get("errors") or 0),
                opened_at=row.opened_at,
                next_look_at=None if look is None else datetime.fromisoformat(look),
            )
        )
        before = row.cumulative
    return tuple(views)


def _verdict(row: WaveRow) -> str:
    if row.opened_at is None:
        return ""
    return (row.verdict or Verdict.PENDING).value


def _bytes(row: AssignmentRow) -> int:
    return int(row.evidence.get("bytes") or 0)


def _offline(conn: Connection, ctx: Ctx, rows: list[AssignmentRow]) -> tuple[str, ...]:
    waiting = [row.device_id for row in rows if row.state is _A.PLANNED]
    found = devices.list_devices(conn, ctx.project, waiting) if waiting else []
    return tuple(row.device_id for row in found if not row.online)[:OFFLINE_SHOWN]
