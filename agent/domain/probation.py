"""The rollback rule: is this version good enough here, or does the device go back?

Runs inline after every inference, so folding and judging are a few comparisons each. Refuses to
know versions, slots or hosts: `update` knows where to go back to.

The rule: `slow_count` service times in a row over `slow_threshold_s`. The first sample after an
idle gap and samples under a pressure mark neither count nor break the row. An output that is not
finite, or a failed inference, counts as one slow one. In probation a full row rolls back; a
committed version steps down first, and rolls back only from its lowest local rung under normal
pressure; one rollback, then the latch.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from agent.domain.policy import Policy
from agent.domain.words import count_of, ms, span, times_ms


class Trial(StrEnum):
    """Whether the version still has to prove itself on this device."""

    PROBATION = "probation"
    COMMITTED = "committed"


class LadderPosition(StrEnum):
    """Where on its ladder the version infers now."""

    REMOTE = "remote"
    LOCAL = "local"
    LOWEST_LOCAL = "lowest_local"


class Cause(StrEnum):
    """Why a version was left; the values of `lighterman_rollbacks_total{cause}`."""

    SLOW = "slow"
    NON_FINITE = "non_finite"
    ERRORS = "errors"
    CRASH = "crash"
    LOAD = "load"
    ORDERED = "ordered"


@dataclass(frozen=True, slots=True)
class ServiceSample:
    """One inference: `at_s` when it ended (monotonic), `service_s` the runtime call alone.

    `ok` is false when the runtime failed on a valid request; a refused request is no sample.
    `pressured`: the host was hot or throttled, or starved of CPU, while it ran.
    """

    at_s: float
    service_s: float
    ok: bool = True
    non_finite: bool = False
    pressured: bool = False


@dataclass(frozen=True, slots=True)
class RowState:
    """What the rule remembers: `row` the slow service times in a row (seconds, oldest first).

    `flaws` says of each of them what else was wrong: ERRORS, NON_FINITE, or None for slow alone.
    `counted` are inferences that can prove health: answered, finite, neither after an idle gap nor
    under pressure. `since_s` is the activation on this process's monotonic clock.
    """

    since_s: float
    last_at_s: float | None = None
    row: tuple[float, ...] = ()
    flaws: tuple[Cause | None, ...] = ()
    counted: int = 0
    seen: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """The version has proven itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `wake_at` (monotonic; None: until a sample comes).

    `starved`: the time is over but there were too few inferences; silence commits nothing.
    """

    wake_at: float | None
    reason: str
    starved: bool = False


@dataclass(frozen=True, slots=True)
class RollBack:
    """Leave this version now."""

    cause: Cause
    reason: str
    row: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StepDown:
    """Take the next lower rung now; the row starts anew there."""

    reason: str
    row: tuple[float, ...] = ()


Verdict = Commit | Wait | RollBack | StepDown

_STEADY = Wait(None, "committed, service times within the threshold")


def begin(now: float, counted: int = 0, elapsed_s: float = 0.0) -> RowState:
    """A fresh row; after a restart with the counters that the journal kept."""
    return RowState(since_s=now - elapsed_s, counted=counted, seen=counted)


def observe(state: RowState, sample: ServiceSample, policy: Policy) -> RowState:
    """Fold one inference into the row.

    The gap is measured from the end of the last sample to the *start* of this one: a model that
    takes longer than the gap itself must not excuse every one of its own inferences.
    """
    last = state.last_at_s
    idle = last is None or sample.at_s - sample.service_s - last > policy.idle_gap_s
    bad = not sample.ok or sample.non_finite
    at = sample.at_s if last is None or sample.at_s > last else last
    errors = state.errors + (0 if sample.ok else 1)
    if idle or sample.pressured:
        return RowState(
            state.since_s, at, state.row, state.flaws, state.counted, state.seen + 1, errors,
        )  # fmt: skip
    counted = state.counted + (0 if bad else 1)
    if not bad and sample.service_s <= policy.slow_threshold_s:
        return RowState(state.since_s, at, (), (), counted, state.seen + 1, errors)
    row = (*state.row, sample.service_s)[-policy.slow_count :]
    flaws = (*state.flaws, _flaw(sample))[-policy.slow_count :]
    return RowState(state.since_s, at, row, flaws, counted, state.seen + 1, errors)


def _flaw(sample: ServiceSample) -> Cause | None:
    if not sample.ok:
        return Cause.ERRORS
    return Cause.NON_FINITE if sample.non_finite else None


def on_rung_change(state: RowState) -> RowState:
    """Another rung answers from now on: the row of the old one says nothing about it."""
    return replace(state, row=(), flaws=())


def judge(
    state: RowState,
    trial: Trial,
    position: LadderPosition,
    pressure_normal: bool,
    policy: Policy,
    now: float,
    *,
    latched: bool = False,
) -> Verdict:
    """Say what follows from the row; `latched` once this device has rolled back by itself."""
    full = is_full(state, policy)
    if trial is Trial.PROBATION:
        if not full:
            return _prove(state, policy, now)
        if position is LadderPosition.REMOTE:
            return StepDown(row_text(state, policy) + " on the remote rung", state.row)
        return RollBack(_cause(state), row_text(state, policy), state.row)
    if not full:
        return _STEADY
    if position is not LadderPosition.LOWEST_LOCAL:
        return StepDown(row_text(state, policy), state.row)
    if not pressure_normal:
        return Wait(
            None, row_text(state, policy) + "; the device is under pressure, not the version"
        )
    if latched:
        return Wait(None, row_text(state, policy) + "; it rolled back once already and stays")
    return RollBack(_cause(state), row_text(state, policy) + " on the lowest local rung", state.row)


def is_full(state: RowState, policy: Policy) -> bool:
    """Whether so many slow or bad inferences in a row were seen that the rule acts."""
    return len(state.row) >= policy.slow_count


def _prove(state: RowState, policy: Policy, now: float) -> Commit | Wait:
    need = policy.probation
    elapsed = now - state.since_s
    seen = count_of(state.counted, "inference")
    if state.counted >= need.min_inferences:
        if elapsed >= need.min_s:
            return Commit(f"{seen} in {span(elapsed)}, no row of slow ones")
        return Wait(state.since_s + need.min_s, "enough inferences, the minimum time runs")
    if elapsed < need.max_s:
        return Wait(state.since_s + need.max_s, "waiting for inferences")
    return Wait(
        None,
        f"starved: {state.counted} of {count_of(need.min_inferences, 'inference')}"
        f" in {span(elapsed)};"
        " nothing is committed by silence",
        starved=True,
    )


def _cause(state: RowState) -> Cause:
    if Cause.ERRORS in state.flaws:
        return Cause.ERRORS
    return Cause.NON_FINITE if Cause.NON_FINITE in state.flaws else Cause.SLOW


def row_text(state: RowState, policy: Policy) -> str:
    """The row for people: how many, over what, and the times or what else was wrong."""
    row = len(state.row)
    if any(state.flaws):  # how long they took says nothing of that
        return (
            f"{count_of(row, 'bad inference')} in a row"
            f" ({state.flaws.count(Cause.ERRORS)} failed,"
            f" {state.flaws.count(Cause.NON_FINITE)} not finite)"
        )
    over = f"{count_of(row, 'inference')} in a row over {ms(policy.slow_threshold_s)}"
    return f"{over} ({times_ms(state.row)})"
