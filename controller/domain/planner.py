"""Plans a rollout's next step: its phase, who is offered the version, who is called back.

Pure and total: the same facts give the same plan. It never sees the whole fleet, only counts per
state and at most K candidates in stable order; so whom to withdraw or return is said by state, not
by name. The exposure ledger is here, checked at every dispatch: a device counts from the moment it
was offered the version, whatever became of it, and is never counted out again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from controller.domain.rollout import (
    LIVE,
    OPEN,
    TERMINAL,
    UNDERWAY,
    AssignmentState,
    Intent,
    Phase,
    Verdict,
    check_phase,
)
from controller.domain.words import count_of

ERRORS_TOLERATED = 3  # judgements in a row that ended in ERROR
LOOK_S = 2.0

_A = AssignmentState


class PauseKind(StrEnum):
    """Who or what holds a rollout."""

    OPERATOR = "operator"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class PauseReason:
    """One reason to hold; a RUN newer than ``at`` clears it."""

    kind: PauseKind
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a rollout. Counts are devices."""

    rollout_id: str
    phase: Phase
    phase_reason: str
    intent: Intent
    intent_by: str
    intent_at: datetime
    intent_reason: str
    caps: tuple[int, ...]  # cumulative, wave 1 first
    current_wave: int  # 0: none open yet
    counts: Mapping[AssignmentState, int]
    exposed: int  # ever offered, without those that refused
    wave_live: int  # of the current wave, not closed or taken over: on the way or running it
    candidates: tuple[str, ...]  # PLANNED and online, stable order, at most K
    verdict: Verdict = Verdict.PENDING  # of the current wave
    verdict_reason: str = ""
    look_at: datetime | None = None
    errors_in_row: int = 0
    pause_reasons: tuple[PauseReason, ...] = ()
    not_returned: int = 0  # could not roll back
    taken_over: int = 0  # committed, then gone on to a newer version: nothing more to see of them
    superseded: str = ""  # why devices were superseded
    refused: str = ""  # who refused last, and why

    def count(self, states: frozenset[AssignmentState]) -> int:
        """Devices in any of these states."""
        return sum(self.counts.get(state, 0) for state in states)


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step. ``take`` are device ids; ``withdraw``, ``roll_back``: all in these states."""

    phase: Phase
    reason: str
    current_wave: int
    take: tuple[str, ...] = ()
    withdraw: frozenset[AssignmentState] = field(default_factory=frozenset)
    roll_back: frozenset[AssignmentState] = field(default_factory=frozenset)
    pause_reasons: tuple[PauseReason, ...] = ()
    wake_at: datetime | None = None


def plan(facts: Facts, now: datetime) -> Plan:
    """Decide. Raises IllegalTransitionError only where this module itself is wrong."""
    decided = _plan(facts, now)
    check_phase(facts.rollout_id, facts.phase, decided.phase, decided.reason)
    return decided


def _plan(facts: Facts, now: datetime) -> Plan:
    match facts.phase:
        case Phase.SUCCEEDED | Phase.ROLLED_BACK | Phase.FAILED | Phase.ABORTED:
            return Plan(facts.phase, facts.phase_reason, facts.current_wave)
        case Phase.ROLLING_BACK:
            if facts.intent is Intent.ABORT:
                return _abort(facts)
            return _return(facts, now)
        case Phase.PENDING | Phase.PROGRESSING | Phase.PAUSED:
            return _go_on(facts, now)
        case _:
            assert_never(facts.phase)


def _go_on(facts: Facts, now: datetime) -> Plan:
    match facts.intent:
        case Intent.ABORT:
            return _abort(facts)
        case Intent.ROLL_BACK:
            return _begin_return(facts, _said("rolled back", facts), now)
        case Intent.RUN | Intent.PAUSE:
            pass
        case _:
            assert_never(facts.intent)
    if facts.verdict is Verdict.FAILED and facts.current_wave:
        return _begin_return(facts, f"FAILED: {facts.verdict_reason}", now)
    over = _nothing_left(facts)
    if over is not None:
        return over
    if facts.phase is Phase.PENDING:
        if facts.intent is Intent.RUN:
            return _progress(facts, now)
        reason = _said("paused before the first wave", facts)
        return Plan(Phase.PENDING, reason, facts.current_wave)
    pauses = _pauses(facts, now)
    if pauses:
        return _hold(facts, pauses)
    return _progress(facts, now)


def _hold(facts: Facts, pauses: tuple[PauseReason, ...]) -> Plan:
    reason = "; ".join(pause.reason for pause in pauses)
    return Plan(
        Phase.PAUSED, reason, facts.current_wave, pause_reasons=pauses, wake_at=facts.look_at
    )


def _progress(facts: Facts, now: datetime) -> Plan:
    last = len(facts.caps)
    wave = facts.current_wave
    if wave == 0:
        wave = 1
    elif facts.verdict is Verdict.PASSED:
        if wave < last:
            wave += 1
        elif not facts.count(OPEN) and facts.phase is Phase.PROGRESSING:
            return Plan(Phase.SUCCEEDED, _finished(facts), wave)
    cap = facts.caps[wave - 1]
    take = dispatch(cap, facts.exposed, facts.candidates)
    return Plan(
        Phase.PROGRESSING,
        _progress_reason(facts, wave, len(take)),
        wave,
        take=take,
        wake_at=facts.look_at or now + timedelta(seconds=LOOK_S),
    )


def dispatch(cap: int, exposed: int, candidates: tuple[str, ...]) -> tuple[str, ...]:
    """The one place that exposes devices: never more than the cap, in stable order."""
    return candidates[: max(0, cap - exposed)]


def _progress_reason(facts: Facts, wave: int, taken: int) -> str:
    head = f"wave {wave} of {len(facts.caps)}"
    if taken:
        return f"{head}: offered to {taken} more, {facts.exposed + taken} of at most " + str(
            facts.caps[wave - 1]
        )
    if facts.verdict is Verdict.PASSED:
        waiting = count_of(facts.counts.get(_A.PLANNED, 0), "device")
        return f"{head} passed, waiting for {waiting} to be online"
    return f"{head}: {facts.verdict_reason}" if facts.verdict_reason else head


def _pauses(facts: Facts, now: datetime) -> tuple[PauseReason, ...]:
    """The reasons that still hold and those that are new, one of each kind."""
    run_at = facts.intent_at if facts.intent is Intent.RUN else None
    held = {
        pause.kind: pause
        for pause in facts.pause_reasons
        if (run_at is None or run_at <= pause.at)
        and (pause.kind is not PauseKind.OPERATOR or facts.intent is Intent.PAUSE)
    }
    if facts.intent is Intent.PAUSE:
        held[PauseKind.OPERATOR] = PauseReason(
            PauseKind.OPERATOR, _said("paused", facts), facts.intent_at
        )
    if facts.current_wave and facts.verdict is Verdict.INCONCLUSIVE:
        held.setdefault(
            PauseKind.INCONCLUSIVE,
            PauseReason(PauseKind.INCONCLUSIVE, f"INCONCLUSIVE: {facts.verdict_reason}", now),
        )
    errors = facts.errors_in_row
    if facts.current_wave and facts.verdict is Verdict.ERROR and errors > ERRORS_TOLERATED:
        held.setdefault(
            PauseKind.ERROR,
            PauseReason(PauseKind.ERROR, f"ERROR {errors} times: {facts.verdict_reason}", now),
        )
    return tuple(held[kind] for kind in PauseKind if kind in held)


def _nothing_left(facts: Facts) -> Plan | None:
    """The end of a rollout that has nobody left to offer to and nobody left to judge."""
    if facts.count(OPEN) or facts.wave_live:
        return None
    committed = facts.counts.get(_A.COMMITTED, 0)
    superseded = facts.counts.get(_A.SUPERSEDED, 0)
    proven = facts.verdict is Verdict.PASSED and facts.current_wave == len(facts.caps)
    if superseded or (facts.taken_over and not proven):
        left = committed - facts.taken_over
        keep = f"; {_keep(left)}" if left else ""
        why = facts.superseded or "superseded by a newer rollout"
        return Plan(Phase.ABORTED, why + keep, facts.current_wave)
    if committed == 0:
        return _nobody_took_it(facts)
    if facts.phase is Phase.PROGRESSING:
        # The waves before passed, and all that this one could have exposed is closed.
        return Plan(Phase.SUCCEEDED, _finished(facts), facts.current_wave)
    return None


def _nobody_took_it(facts: Facts) -> Plan:
    """Refused or failed everywhere: it did not do what it was started for, and nobody stopped it.

    Only where every device was taken from it (retired, say) is ABORTED the word.
    """
    tried = facts.counts.get(_A.REFUSED, 0) + facts.counts.get(_A.FAILED, 0)
    phase = Phase.FAILED if tried and facts.phase is not Phase.PENDING else Phase.ABORTED
    why = f"; {facts.refused}" if facts.refused else ""
    return Plan(phase, f"no device took it: {_finished(facts)}{why}", facts.current_wave)


def _abort(facts: Facts) -> Plan:
    live = facts.count(LIVE)
    left = f"; {_keep(live)}" if live else ""
    return Plan(
        Phase.ABORTED,
        _said("aborted", facts) + left,
        facts.current_wave,
        withdraw=UNDERWAY | {_A.PLANNED},
    )


def _begin_return(facts: Facts, reason: str, now: datetime) -> Plan:
    if facts.phase is Phase.PENDING:
        return Plan(
            Phase.ABORTED,
            f"{reason}; no device was touched",
            facts.current_wave,
            withdraw=frozenset({_A.PLANNED}),
        )
    return Plan(
        Phase.ROLLING_BACK,
        reason,
        facts.current_wave,
        withdraw=UNDERWAY | {_A.PLANNED},
        roll_back=LIVE,
        wake_at=now + timedelta(seconds=LOOK_S),
    )


def _return(facts: Facts, now: datetime) -> Plan:
    """Call back whoever still has it; over when nobody does."""
    if facts.count(LIVE | UNDERWAY | {_A.PLANNED, _A.ROLLING_BACK}):
        return Plan(
            Phase.ROLLING_BACK,
            facts.phase_reason,
            facts.current_wave,
            withdraw=UNDERWAY | {_A.PLANNED},
            roll_back=LIVE,
            wake_at=now + timedelta(seconds=LOOK_S),
        )
    if facts.not_returned:
        reason = f"{facts.phase_reason}; {count_of(facts.not_returned, 'device')} could not return"
        return Plan(Phase.FAILED, reason, facts.current_wave)
    return Plan(Phase.ROLLED_BACK, facts.phase_reason, facts.current_wave)


def _keep(count: int) -> str:
    return "1 device keeps it" if count == 1 else f"{count_of(count, 'device')} keep it"


def _finished(facts: Facts) -> str:
    committed = facts.counts.get(_A.COMMITTED, 0)
    parts = [f"{count_of(committed, 'device')} committed"] if committed else []
    for state, text in (
        (_A.REFUSED, "refused"),
        (_A.FAILED, "failed"),
        (_A.WITHDRAWN, "withdrawn"),
        (_A.SUPERSEDED, "superseded"),
    ):
        count = facts.counts.get(state, 0)
        if count:
            parts.append(f"{count} {text}")
    return ", ".join(parts) or "no device is left"


def _said(what: str, facts: Facts) -> str:
    return f"{what} by {facts.intent_by}" + (
        f": {facts.intent_reason}" if facts.intent_reason else ""
    )


def is_over(phase: Phase) -> bool:
    """Whether nothing will change any more."""
    return phase in TERMINAL
