"""The tick: facts, verdict, plan, and what follows of it, one transaction per rollout.

Everything it needs is in the database, so a controller that was killed anywhere goes on where it
was. The only writer of phases, waves and orders.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from controller.domain.evidence import Rules, WaveFacts
from controller.domain.group import parse_groups
from controller.domain.health import Judgement, judge
from controller.domain.planner import LOOK_S, PauseKind, Plan, is_over, plan
from controller.domain.rollout import Phase, RolloutSpec, Verdict, parse_rollout_spec
from controller.errors import LightermanError
from controller.services.context import Ctx, Deps
from controller.services.decisions import keep_decision
from controller.services.desired import Composer, make_composer, resolved_policies
from controller.services.rollout_facts import CANDIDATES, plan_facts, rules_of, wave_facts
from controller.services.rollout_feed import feed_rollout
from controller.services.rollout_orders import call_back, close_left, offer, withdraw
from controller.store import events, ledger, reported, rollouts, waves
from controller.store.rollouts import RolloutRow
from controller.store.session import Connection
from controller.store.waves import WaveRow

PORTIONS = 3  # of offers between two judgements
_JUDGED = frozenset({Phase.PROGRESSING, Phase.PAUSED})
_HOLDS = frozenset({PauseKind.INCONCLUSIVE, PauseKind.ERROR})


def tick(
    deps: Deps, ctx: Ctx, *, everything: bool = True, told: Callable[[], None] = lambda: None
) -> datetime | None:
    """Bring rollouts one step on; when to look again without news, None where nothing runs.

    All of them, or (without `everything`) those with news on the agenda and those whose time came;
    `told` hears of each step, which may have left something in the outbox. A rollout that fails
    does not hold up the others: the first error is raised after all were seen.
    """
    with deps.store.read() as conn:
        waiting = ledger.has_left_over(conn)  # look before writing: most ticks close nothing
        newest_first = rollouts.list_rollouts(conn, active_only=True)
    if waiting:
        with deps.store.write() as conn:
            closed = close_left(conn, deps, ctx)
        deps.agenda.note(closed)
    active = {row.rollout_id: row for row in reversed(newest_first)}
    named, all_of_them = deps.agenda.take_news(active)
    wanted = [
        row
        for row in active.values()
        if everything
        or all_of_them
        or row.rollout_id in named
        or deps.agenda.is_due(row.rollout_id, ctx.now)
    ]
    # Those that nobody has looked at first: they must not wait for the judging of a large one.
    wanted.sort(key=lambda row: row.phase is not Phase.PENDING)
    todo = {row.rollout_id: row for row in wanted}
    failed: LightermanError | None = None
    for row in _turns(deps, todo):
        todo.pop(row.rollout_id, None)
        try:
            _tick_rollout(deps, replace(ctx, project=row.project), row.rollout_id, told)
        except LightermanError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return deps.agenda.next_at()


def _turns(deps: Deps, todo: Mapping[str, RolloutRow]) -> Iterator[RolloutRow]:
    """Those to look at, one by one; before each the one that cannot wait, where there is one."""
    while True:
        urgent = deps.agenda.take_urgent()
        if urgent is not None:
            with deps.store.read() as conn:  # it may have begun since this round did
                row = rollouts.find_rollout(conn, urgent)
            if row is not None and not is_over(row.phase):
                yield row
        if todo:
            yield next(iter(todo.values()))
        elif urgent is None:
            return


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at a rollout found, and what it decided."""

    row: RolloutRow
    spec: RolloutSpec
    wave: WaveRow | None  # the open one, where it was judged
    judged: Judgement | None
    evidence: Mapping[str, Any]
    decided: Plan

    @property
    def is_full_portion(self) -> bool:
        """Whether there may be more devices to offer to."""
        return len(self.decided.take) == CANDIDATES

    def is_of(self, row: RolloutRow) -> bool:
        """Whether the verdict is of the wave that is open, and people want what they wanted."""
        mine = self.row
        return (self.judged is not None, mine.current_wave, mine.phase, mine.intent_at) == (
            True,
            row.current_wave,
            row.phase,
            row.intent_at,
        )

    @property
    def is_news(self) -> bool:
        """Whether anything is to be written."""
        decided, row = self.decided, self.row
        return (
            self.is_judged_anew
            or bool(decided.take or decided.withdraw or decided.roll_back)
            or _is_changed(row, decided)
        )

    @property
    def is_judged_anew(self) -> bool:
        """Whether the judge says something else than before."""
        if self.wave is None or self.judged is None:
            return False
        return _news(self.judged.verdict, self.judged.reason, self.evidence) != _news(
            self.wave.verdict, self.wave.verdict_reason, self.wave.evidence
        )


def _tick_rollout(deps: Deps, ctx: Ctx, rollout_id: str, told: Callable[[], None]) -> None:
    """Judge while others write; then carry out what follows, offers in portions.

    Who wrote meanwhile, and between portions, is heard: see `_look`.
    """
    with deps.store.read() as conn:
        look = _look(conn, ctx, rollout_id)
    if look is None:
        return
    for _ in range(PORTIONS if look.is_news else 0):
        with deps.store.write() as conn:
            again = _look(conn, ctx, rollout_id, look)
            if again is None:
                return
            look = again
            _write_judgement(conn, ctx, look)
            _carry_out(conn, deps, ctx, look)
        told()
        if not look.is_full_portion or deps.agenda.has_urgent():
            break
    wake_at = look.decided.wake_at or ctx.now + timedelta(seconds=LOOK_S)
    # There may be more to offer to: at once, but others have their turn between.
    deps.agenda.settle(rollout_id, look.decided.phase, ctx.now if look.is_full_portion else wake_at)


def _look(conn: Connection, ctx: Ctx, rollout_id: str, before: _Look | None = None) -> _Look | None:
    """Facts, verdict, plan. Reads only; None where the rollout is over.

    With `before` the plan is new and the verdict is the one of a moment ago, unless a device has
    left the version: so no offer is decided in ignorance of a rollback that is stored.
    """
    row = rollouts.get_rollout(conn, ctx.project, rollout_id)
    if row is None or is_over(row.phase):
        return None
    spec = parse_rollout_spec(row.spec)
    listed = waves.list_waves(conn, rollout_id)
    wave = listed[row.current_wave - 1] if row.current_wave else None
    if wave is None or row.phase not in _JUDGED:
        verdict = (wave.verdict if wave else None) or Verdict.PENDING
        reason = wave.verdict_reason if wave else ""
        facts = plan_facts(conn, row, listed, verdict, reason)
        return _Look(row, spec, None, None, {}, plan(facts, ctx.now))
    if before is not None and before.is_of(row) and not reported.has_left(conn, rollout_id):
        found, evidence = before.judged, before.evidence
    else:
        policies = resolved_policies(row.policies, parse_groups(spec.groups), row.model)
        rules = rules_of(policies, spec)
        seen = wave_facts(conn, row, wave, ctx.now, listed[: wave.number - 1])
        found = judge(seen, rules, ctx.now)
        evidence = _evidence(wave, seen, found, rules, ctx.now)
    assert found is not None
    listed[row.current_wave - 1] = replace(wave, evidence=dict(evidence))
    facts = plan_facts(conn, row, listed, found.verdict, found.reason)
    return _Look(row, spec, wave, found, evidence, plan(facts, ctx.now))


def _write_judgement(conn: Connection, ctx: Ctx, look: _Look) -> None:
    """Write what was said, where anything changed."""
    row, wave, found = look.row, look.wave, look.judged
    if wave is None or found is None:
        return
    if look.is_judged_anew:
        soaking = wave.soak_started_at or found.soak.counted_until
        waves.set_verdict(
            conn,
            row.rollout_id,
            wave.number,
            found.verdict,
            found.reason,
            dict(look.evidence),
            soaking if found.soak.counted_until else None,
            ctx.now,
        )
    if found.verdict is not (wave.verdict or Verdict.PENDING):
        _tell(conn, ctx, row, "wave_judged", f"wave {wave.number} {found.verdict}: {found.reason}")


def _news(verdict: Verdict | None, reason: str, evidence: Mapping[str, Any]) -> tuple[object, ...]:
    """What is worth a write: that there will be another look is not."""
    kept = {name: value for name, value in evidence.items() if name != "next_look_at"}
    return verdict, reason, kept


def _evidence(
    wave: WaveRow, facts: WaveFacts, found: Judgement, rules: Rules, now: datetime
) -> dict[str, Any]:
    """The figures people see, and what the next look has to remember."""
    until, look = found.soak.counted_until, found.look_at
    before, after = facts.before.histogram, facts.after.histogram
    errors = int(wave.evidence.get("errors_in_row") or 0)
    return {
        "soaked_s": found.soak.soaked_s,
        "counted_until": None if until is None else until.isoformat(),
        "samples": facts.samples,
        "samples_needed": rules.min_samples
        * ((facts.in_flight + facts.committed) or facts.exposed),
        "p95_before_s": before.quantile(0.95),
        "p95_after_s": after.quantile(0.95),
        "errors": facts.after.faults,
        "errors_in_row": errors + 1 if found.verdict is Verdict.ERROR else 0,
        "held_at": wave.evidence.get("held_at"),
        "decisions": keep_decision(wave.evidence, wave.verdict, facts, rules, found, now),
        "next_look_at": None if look is None else look.isoformat(timespec="seconds"),
    }


def _is_changed(row: RolloutRow, decided: Plan) -> bool:
    return (
        decided.phase is not row.phase
        or decided.current_wave != row.current_wave
        or decided.reason != row.phase_reason
        or decided.pause_reasons != row.pause_reasons
    )


def _carry_out(conn: Connection, deps: Deps, ctx: Ctx, look: _Look) -> None:
    row, decided = look.row, look.decided
    if decided.current_wave > row.current_wave:
        waves.open_wave(conn, row.rollout_id, decided.current_wave, ctx.now)
        _tell(conn, ctx, row, "wave_opened", f"wave {decided.current_wave} is open")
    if decided.withdraw:
        withdraw(conn, deps, ctx, row, decided.withdraw, decided.reason)
    if decided.roll_back:
        call_back(conn, deps, ctx, row, decided.roll_back, decided.reason)
    if decided.take:
        composer = _composer(conn, look)
        offer(conn, deps, ctx, row, composer, decided.current_wave, decided.take)
    _remember_hold(conn, ctx, row, decided)
    if not _is_changed(row, decided):
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
        now = replace(
            row,
            phase=decided.phase,
            phase_reason=decided.reason,
            current_wave=decided.current_wave,
        )
        feed_rollout(conn, ctx.now, now)


def _composer(conn: Connection, look: _Look) -> Composer:
    """Reads the version: only who offers it needs to."""
    row, spec = look.row, look.spec
    return make_composer(
        conn,
        row.project,
        row.model,
        row.version,
        row.policies,
        pinned=bool(spec.policy),
        groups=parse_groups(spec.groups),
    )


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
