"""The tick: facts, verdict, plan, and what follows of it, one transaction per rollout.

Everything it needs is in the database, so a controller that was killed anywhere goes on where it
was. The only writer of phases, waves and orders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from controller.domain.health import Judgement, WaveFacts, judge
from controller.domain.planner import PauseKind, Plan, is_over, plan
from controller.domain.rollout import Phase, Verdict, parse_rollout_spec
from controller.errors import LightermanError
from controller.services.context import Ctx, Deps
from controller.services.desired import Composer, canonical, make_composer
from controller.services.rollout_facts import plan_facts, rules_of, wave_facts
from controller.services.rollout_orders import call_back, close_left, offer, withdraw
from controller.store import assignments, events, outbox, rollouts, waves
from controller.store.outbox import OutboxKind
from controller.store.rollouts import RolloutRow
from controller.store.session import Connection
from controller.store.waves import WaveRow

_JUDGED = frozenset({Phase.PROGRESSING, Phase.PAUSED})
_HOLDS = frozenset({PauseKind.INCONCLUSIVE, PauseKind.ERROR})


def tick(deps: Deps, ctx: Ctx) -> datetime | None:
    """Bring every rollout one step on; when to look again without news, None where nothing runs.

    A rollout that fails does not hold up the others: the first error is raised after all were seen.
    """
    _close_left(deps, ctx)
    with deps.store.read() as conn:
        active = rollouts.list_rollouts(conn, active_only=True)
    wakes: list[datetime] = []
    failed: LightermanError | None = None
    active.reverse()
    # Those that nobody has looked at first: they must not wait for the judging of a large one.
    for row in sorted(active, key=lambda row: row.phase is not Phase.PENDING):
        try:
            wake_at = _tick_rollout(deps, replace(ctx, project=row.project), row.rollout_id)
        except LightermanError as error:
            failed = failed or error
            continue
        wakes += [wake_at] if wake_at is not None else []
    if failed is not None:
        raise failed
    return min(wakes, default=None)


def _close_left(deps: Deps, ctx: Ctx) -> None:
    """Look before writing: most ticks have nothing to close."""
    with deps.store.read() as conn:
        waiting = (
            assignments.list_unsettled(conn, 1)
            or assignments.list_recalled(conn, 1)
            or assignments.list_retired(conn, 1)
        )
    if waiting:
        with deps.store.write() as conn:
            close_left(conn, deps, ctx)


def _tick_rollout(deps: Deps, ctx: Ctx, rollout_id: str) -> datetime | None:
    with deps.store.write() as conn:
        row = rollouts.get_rollout(conn, ctx.project, rollout_id)
        if row is None or is_over(row.phase):
            return None
        composer = make_composer(
            conn,
            ctx.project,
            row.model,
            row.version,
            row.policies,
            pinned=bool(parse_rollout_spec(row.spec).policy),
        )
        judged = _judge(conn, ctx, row, composer)
        facts = plan_facts(
            conn, row, waves.list_waves(conn, rollout_id), judged.verdict, judged.reason
        )
        decided = plan(facts, ctx.now)
        _carry_out(conn, deps, ctx, row, decided, composer)
        return decided.wake_at


@dataclass(frozen=True, slots=True)
class _Judged:
    verdict: Verdict
    reason: str


def _judge(conn: Connection, ctx: Ctx, row: RolloutRow, composer: Composer) -> _Judged:
    """Judge the open wave and write what was said, where anything changed."""
    listed = waves.list_waves(conn, row.rollout_id)
    if row.current_wave == 0:
        return _Judged(Verdict.PENDING, "")
    wave = listed[row.current_wave - 1]
    if row.phase not in _JUDGED:
        return _Judged(wave.verdict or Verdict.PENDING, wave.verdict_reason)
    facts = wave_facts(conn, row, wave, ctx.now)
    rules = rules_of(composer, parse_rollout_spec(row.spec))
    found = judge(facts, rules, ctx.now)
    evidence = _evidence(wave, facts, found, rules.min_samples)
    if _news(found.verdict, found.reason, evidence) != _news(
        wave.verdict, wave.verdict_reason, wave.evidence
    ):
        soaking = wave.soak_started_at or found.soak.counted_until
        waves.set_verdict(
            conn,
            row.rollout_id,
            wave.number,
            found.verdict,
            found.reason,
            evidence,
            soaking if found.soak.counted_until else None,
            ctx.now,
        )
    if found.verdict is not (wave.verdict or Verdict.PENDING):
        _tell(conn, ctx, row, "wave_judged", f"wave {wave.number} {found.verdict}: {found.reason}")
    return _Judged(found.verdict, found.reason)


def _news(verdict: Verdict | None, reason: str, evidence: Mapping[str, Any]) -> tuple[object, ...]:
    """What is worth a write: that there will be another look is not."""
    kept = {name: value for name, value in evidence.items() if name != "next_look_at"}
    return verdict, reason, kept


def _evidence(
    wave: WaveRow, facts: WaveFacts, found: Judgement, min_samples: int
) -> dict[str, Any]:
    """The figures people see, and what the next look has to remember."""
    until, look = found.soak.counted_until, found.look_at
    before, after = facts.before.histogram, facts.after.histogram
    errors = int(wave.evidence.get("errors_in_row") or 0)
    return {
        "soaked_s": found.soak.soaked_s,
        "counted_until": None if until is None else until.isoformat(),
        "samples": facts.samples,
        "samples_needed": min_samples * ((facts.in_flight + facts.committed) or facts.exposed),
        "p95_before_s": before.quantile(0.95),
        "p95_after_s": after.quantile(0.95),
        "errors": facts.after.faults,
        "errors_in_row": errors + 1 if found.verdict is Verdict.ERROR else 0,
        "held_at": wave.evidence.get("held_at"),
        "next_look_at": None if look is None else look.isoformat(timespec="seconds"),
    }


def _carry_out(
    conn: Connection, deps: Deps, ctx: Ctx, row: RolloutRow, decided: Plan, composer: Composer
) -> None:
    if decided.current_wave > row.current_wave:
        waves.open_wave(conn, row.rollout_id, decided.current_wave, ctx.now)
        _tell(conn, ctx, row, "wave_opened", f"wave {decided.current_wave} is open")
    if decided.withdraw:
        withdraw(conn, deps, ctx, row, decided.withdraw, decided.reason)
    if decided.roll_back:
        call_back(conn, deps, ctx, row, decided.roll_back, decided.reason)
    if decided.take:
        offer(conn, deps, ctx, row, composer, decided.current_wave, decided.take)
    _remember_hold(conn, ctx, row, decided)
    changed = (
        decided.phase is not row.phase
        or decided.current_wave != row.current_wave
        or decided.reason != row.phase_reason
        or decided.pause_reasons != row.pause_reasons
    )
    if not changed:
        return
    over = is_over(decided.phase)
    rollouts.set_phase(
        conn,
        row.rollout_id,
        decided.phase,
        decided.reason,
        decided.current_wave,
        decided.pause_reasons,
        decided.wake_at,
        ctx.now if over else None,
    )
    if decided.phase is not row.phase:
        _tell(
            conn,
            ctx,
            row,
            "rollout_phase",
            decided.reason,
            {"from": row.phase.value, "to": decided.phase.value},
        )
    if decided.phase is not row.phase or decided.current_wave != row.current_wave:
        _feed(conn, ctx, row, decided)


def _remember_hold(conn: Connection, ctx: Ctx, row: RolloutRow, decided: Plan) -> None:
    """Note when the judge held the wave: a later RUN says that a person has looked at it."""
    before = {pause.kind for pause in row.pause_reasons}
    new = {pause.kind for pause in decided.pause_reasons} - before
    if not new & _HOLDS:
        return
    wave = waves.list_waves(conn, row.rollout_id)[row.current_wave - 1]
    waves.set_verdict(
        conn,
        row.rollout_id,
        wave.number,
        wave.verdict or Verdict.PENDING,
        wave.verdict_reason,
        {**wave.evidence, "held_at": ctx.now.isoformat()},
        wave.soak_started_at,
        ctx.now,
    )


def _feed(conn: Connection, ctx: Ctx, row: RolloutRow, decided: Plan) -> None:
    """Tell consumers; the MQTT door knows the topic."""
    listed = waves.list_waves(conn, row.rollout_id)
    cap = listed[decided.current_wave - 1].cumulative if decided.current_wave else 0
    document = {
        "schema_version": 1,
        "rollout": row.rollout_id,
        "model": row.model,
        "version": row.version,
        "phase": decided.phase.value,
        "reason": decided.reason,
        "wave": decided.current_wave,
        "waves": len(listed),
        "exposed": assignments.count_exposed(conn, row.rollout_id),
        "exposed_cap": cap,
        "at": ctx.now.isoformat(timespec="milliseconds"),
    }
    topic = f"rollout/{row.project}/{row.rollout_id}"
    outbox.append(conn, ctx.now, OutboxKind.FEED, topic, canonical(document), retain=True)


def _tell(
    conn: Connection,
    ctx: Ctx,
    row: RolloutRow,
    kind: str,
    reason: str,
    details: Mapping[str, object] | None = None,
) -> None:
    events.append(
        conn,
        row.project,
        ctx.now,
        kind,
        ctx.actor,
        model=row.model,
        version=row.version,
        rollout_id=row.rollout_id,
        reason=reason,
        details=details,
    )
