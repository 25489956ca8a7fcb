"""Which rung answers: steps down under pressure, back up when it is over for long enough.

Refuses to move without a sensor: a reading of None never triggers anything. Refuses a remote rung
and moves by p95 in probation: there the new build itself has to be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from agent.domain.desired import RungKind, RungSpec
from agent.domain.policy import LadderPolicy
from agent.domain.probation import LadderPosition, Trial
from agent.domain.words import ms, span


class ChangeKind(StrEnum):
    """Why a rung changed; the values of `lighterman_rung_changes_total{reason}`."""

    TEMPERATURE = "temperature"
    LOAD = "load"
    MEMORY = "memory"
    CPU = "cpu"
    NETWORK = "network"
    LATENCY = "latency"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Pressure:
    """Readings of the host and of the current rung; None where there is no sensor or no sample.

    `p95_s` is of the *current* rung alone within `window_s`. `queue_age_s` is the age of the oldest
    waiting request. `link_rtt_s` and `link_loss_pct` are of the remote rung's link; a probe without
    an answer is loss, not None; `link_why` says why a server that lives is no link. `throttled` and
    `starved` are what the host says of its clocks and of waiting for a CPU.
    """

    p95_s: float | None = None
    queue_age_s: float | None = None
    temperature_c: float | None = None
    memory_pct: float | None = None
    cpu_pct: float | None = None
    link_rtt_s: float | None = None
    link_loss_pct: float | None = None
    link_why: str = ""
    throttled: bool | None = None
    starved: bool | None = None


@dataclass(frozen=True, slots=True)
class LadderState:
    """Where the ladder stands, and since when (monotonic) each wish to leave has held.

    `backoff` doubles the wait before the next step up, each time a step up did not last.
    """

    rung: str
    changed_at_s: float
    down_since_s: tuple[tuple[ChangeKind, float], ...] = ()
    up_since_s: float | None = None
    link_since_s: float | None = None
    backoff: int = 0
    stepped_up: bool = False


@dataclass(frozen=True, slots=True)
class RungChange:
    """A move, its kind and its story."""

    from_rung: str
    to_rung: str
    kind: ChangeKind
    reason: str


@dataclass(frozen=True, slots=True)
class RungChoice:
    """The state to keep, the move to make (None: stay), and when to ask again at the latest."""

    state: LadderState
    change: RungChange | None
    wake_at: float | None
    reason: str


def begin_ladder(rungs: Sequence[RungSpec], now: float) -> LadderState:
    """The heaviest local rung: a start must not depend on any network."""
    return LadderState(next(r.name for r in rungs if r.kind is RungKind.LOCAL), now)


def choose_rung(
    state: LadderState,
    pressure: Pressure,
    policy: LadderPolicy,
    rungs: Sequence[RungSpec],
    now: float,
    trial: Trial = Trial.COMMITTED,
) -> RungChoice:
    """Decide the rung; `rungs` heavy to light, those that can be used now, one of them local."""
    names = [r.name for r in rungs]
    if state.rung not in names:
        reason = f"rung {state.rung} is not loaded any more"
        return _forced(state, rungs, ChangeKind.MEMORY, reason, now)
    here = names.index(state.rung)
    proving = trial is Trial.PROBATION
    if proving and rungs[here].kind is RungKind.REMOTE:
        reason = "in probation the new build itself has to be seen"
        return _forced(state, rungs, ChangeKind.NETWORK, reason, now)
    seen = _look(state, pressure, policy, rungs[here].kind, now, proving)
    for kind in _DOWN_ORDER:
        since = dict(seen.down_since_s).get(kind)
        if since is None or now - since < policy.dwell_down_s:
            continue
        lower = _lower(here, rungs, kind, _link_good(pressure, policy) and not proving)
        if lower is not None:
            reason = f"{_why(kind, pressure, policy)} for {span(now - since)}"
            return _move(seen, rungs[lower].name, kind, reason, now, policy)
    upper, reason = _upper(seen, here, rungs, policy, now, proving)
    if upper is not None:
        story = f"{reason} ({_show(pressure)})"
        return _move(seen, rungs[upper].name, ChangeKind.RECOVERED, story, now, policy)
    return RungChoice(seen, None, _wake(seen, policy, now), _stay(seen, pressure, policy))


def step_down(
    state: LadderState,
    rungs: Sequence[RungSpec],
    policy: LadderPolicy,
    reason: str,
    now: float,
) -> RungChoice:
    """The move that the rollback rule asks for (`StepDown`): the next lower local rung, at once."""
    names = [r.name for r in rungs]
    here = names.index(state.rung) if state.rung in names else -1
    local = [i for i, r in enumerate(rungs) if r.kind is RungKind.LOCAL]
    below = [i for i in local if i > here]
    target = below[0] if below else local[-1]
    if target == here:
        return RungChoice(state, None, None, "already on the lowest local rung")
    return _move(state, rungs[target].name, ChangeKind.LATENCY, reason, now, policy)


def position_of(rung: str, rungs: Sequence[RungSpec]) -> LadderPosition:
    """Where `rung` stands, for the rollback rule."""
    local = [r.name for r in rungs if r.kind is RungKind.LOCAL]
    if rung not in local:
        return LadderPosition.REMOTE
    return LadderPosition.LOWEST_LOCAL if rung == local[-1] else LadderPosition.LOCAL


def is_pressured(pressure: Pressure, policy: LadderPolicy) -> bool:
    """The pressure mark of the rollback rule: heat, throttled clocks or a starved CPU."""
    hot = pressure.temperature_c is not None and pressure.temperature_c >= policy.temperature_down_c
    return hot or pressure.throttled is True or pressure.starved is True


# Heat first: it is what damages. Only heat and memory may turn a model off: without inferences
# there would be no latency left to recover by.
_DOWN_ORDER = (
    ChangeKind.TEMPERATURE,
    ChangeKind.MEMORY,
    ChangeKind.NETWORK,
    ChangeKind.LOAD,
    ChangeKind.LATENCY,
    ChangeKind.CPU,
)
_MAY_TURN_OFF = (ChangeKind.TEMPERATURE, ChangeKind.MEMORY)
_MAX_BACKOFF = 5


def _look(
    state: LadderState,
    pressure: Pressure,
    policy: LadderPolicy,
    kind: RungKind,
    now: float,
    proving: bool,
) -> LadderState:
    """The same rung with the clocks of all wishes brought up to date."""
    before = dict(state.down_since_s)
    wishes = _wishes_down(pressure, policy, kind, proving)
    up = state.up_since_s if state.up_since_s is not None else now
    link = state.link_since_s if state.link_since_s is not None else now
    return replace(
        state,
        down_since_s=tuple((k, before.get(k, now)) for k in wishes),
        up_since_s=up if _calm(pressure, policy, proving) else None,
        link_since_s=link if _link_good(pressure, policy) else None,
    )


def _wishes_down(
    pressure: Pressure, policy: LadderPolicy, kind: RungKind, proving: bool
) -> list[ChangeKind]:
    if kind is RungKind.OFF:
        return []
    found = []
    if kind is RungKind.LOCAL:
        if _reaches(pressure.temperature_c, policy.temperature_down_c):
            found.append(ChangeKind.TEMPERATURE)
        if _reaches(pressure.memory_pct, policy.memory_down_pct):
            found.append(ChangeKind.MEMORY)
        if not proving and _reaches(pressure.cpu_pct, policy.cpu_down_pct):
            found.append(ChangeKind.CPU)
    elif _link_bad(pressure, policy):
        found.append(ChangeKind.NETWORK)
    if not proving and _reaches(pressure.queue_age_s, policy.queue_age_s):
        found.append(ChangeKind.LOAD)
    if not proving and pressure.p95_s is not None and pressure.p95_s > policy.p95_budget_s:
        found.append(ChangeKind.LATENCY)
    return found


def _calm(pressure: Pressure, policy: LadderPolicy, proving: bool) -> bool:
    """Whether every signal leaves room for a heavier rung."""
    recover = policy.p95_recover_pct / 100
    calm = _within(pressure.temperature_c, policy.temperature_up_c) and _within(
        pressure.memory_pct, policy.memory_up_pct
    )
    if proving or not calm:
        return calm
    return (
        _within(pressure.cpu_pct, policy.cpu_up_pct)
        and _within(pressure.p95_s, policy.p95_budget_s * recover)
        and _within(pressure.queue_age_s, policy.queue_age_s * recover)
    )


def _reaches(value: float | None, threshold: float) -> bool:
    return value is not None and value >= threshold


def _within(value: float | None, threshold: float) -> bool:
    return value is None or value <= threshold


def _link_good(pressure: Pressure, policy: LadderPolicy) -> bool:
    # An unmeasured link is not good: nothing goes over it before a probe came back.
    return (
        pressure.link_rtt_s is not None
        and pressure.link_rtt_s <= policy.link_up_s
        and _within(pressure.link_loss_pct, policy.link_loss_pct / 2)
    )


def _link_bad(pressure: Pressure, policy: LadderPolicy) -> bool:
    return _reaches(pressure.link_rtt_s, policy.link_down_s) or _reaches(
        pressure.link_loss_pct, policy.link_loss_pct
    )


def _lower(here: int, rungs: Sequence[RungSpec], kind: ChangeKind, link_good: bool) -> int | None:
    for i in range(here + 1, len(rungs)):
        match rungs[i].kind:
            case RungKind.LOCAL:
                return i
            case RungKind.REMOTE:
                if link_good and kind is not ChangeKind.NETWORK:
                    return i
            case RungKind.OFF:
                if kind in _MAY_TURN_OFF:
                    return i
            case never:
                assert_never(never)
    if rungs[here].kind is RungKind.REMOTE:
        # The remote rung stands last: away from it is back to the lightest local one.
        return max(i for i, r in enumerate(rungs) if r.kind is RungKind.LOCAL)
    return None


def _upper(
    state: LadderState,
    here: int,
    rungs: Sequence[RungSpec],
    policy: LadderPolicy,
    now: float,
    proving: bool,
) -> tuple[int | None, str]:
    """The highest rung that is due, one local step at a time; a good remote rung at once."""
    dwell = _dwell_up(state, policy)
    above = range(here)
    found: list[tuple[int, str]] = []
    if state.link_since_s is not None and now - state.link_since_s >= dwell and not proving:
        remote = [i for i in above if rungs[i].kind is RungKind.REMOTE]
        if remote:
            found.append((remote[0], f"the link is good for {span(now - state.link_since_s)}"))
    if state.up_since_s is not None and now - state.up_since_s >= dwell:
        local = [i for i in above if rungs[i].kind is RungKind.LOCAL]
        if local:
            found.append((local[-1], f"no pressure for {span(now - state.up_since_s)}"))
    return min(found) if found else (None, "")


def _dwell_up(state: LadderState, policy: LadderPolicy) -> float:
    return float(policy.dwell_up_s * 2**state.backoff)


def _move(
    state: LadderState,
    to: str,
    kind: ChangeKind,
    reason: str,
    now: float,
    policy: LadderPolicy,
) -> RungChoice:
    up = kind is ChangeKind.RECOVERED
    backoff = state.backoff
    if not up and state.stepped_up:
        lasted = now - state.changed_at_s
        short = lasted < max(2 * _dwell_up(state, policy), policy.window_s)
        backoff = min(backoff + 1, _MAX_BACKOFF) if short else 0
    if not up and backoff:
        reason += f"; the next step up waits {span(policy.dwell_up_s * 2**backoff)}"
    after = LadderState(to, now, backoff=backoff, stepped_up=up)
    change = RungChange(state.rung, to, kind, reason)
    return RungChoice(after, change, now + min(policy.dwell_down_s, policy.dwell_up_s), reason)


def _forced(
    state: LadderState, rungs: Sequence[RungSpec], kind: ChangeKind, reason: str, now: float
) -> RungChoice:
    start = begin_ladder(rungs, now)
    return RungChoice(start, RungChange(state.rung, start.rung, kind, reason), None, reason)


def _wake(state: LadderState, policy: LadderPolicy, now: float) -> float | None:
    due = [since + policy.dwell_down_s for _, since in state.down_since_s]
    for since_up in (state.up_since_s, state.link_since_s):
        if since_up is not None:
            due.append(since_up + _dwell_up(state, policy))
    later = [at for at in due if at > now]
    return min(later) if later else None


def _why(kind: ChangeKind, pressure: Pressure, policy: LadderPolicy) -> str:
    p = pressure
    match kind:
        case ChangeKind.TEMPERATURE:
            return (
                f"{_num(p.temperature_c)} °C ≥ {policy.temperature_down_c:g}"
                f" (back below {policy.temperature_up_c:g})"
            )
        case ChangeKind.MEMORY:
            return f"memory {_num(p.memory_pct)} % ≥ {policy.memory_down_pct:g}"
        case ChangeKind.CPU:
            return f"CPU {_num(p.cpu_pct)} % ≥ {policy.cpu_down_pct:g}"
        case ChangeKind.LOAD:
            return f"oldest request waits {ms(p.queue_age_s)} ≥ {ms(policy.queue_age_s)}"
        case ChangeKind.LATENCY:
            return f"p95 {ms(p.p95_s)} > {ms(policy.p95_budget_s)}"
        case ChangeKind.NETWORK:
            if p.link_why:
                return p.link_why
            loss = f"{_num(p.link_loss_pct)} % lost"
            return f"link {ms(p.link_rtt_s)} (limit {ms(policy.link_down_s)}), {loss}"
        case ChangeKind.RECOVERED:
            return "no pressure"
        case never:
            assert_never(never)


def _stay(state: LadderState, pressure: Pressure, policy: LadderPolicy) -> str:
    if not state.down_since_s:
        return f"rung {state.rung} fits"
    return "; ".join(_why(kind, pressure, policy) for kind, _ in state.down_since_s)


def _show(pressure: Pressure) -> str:
    parts = []
    if pressure.temperature_c is not None:
        parts.append(f"{pressure.temperature_c:.1f} °C")
    if pressure.p95_s is not None:
        parts.append(f"p95 {ms(pressure.p95_s)}")
    if pressure.memory_pct is not None:
        parts.append(f"memory {pressure.memory_pct:.0f} %")
    if pressure.cpu_pct is not None:
        parts.append(f"CPU {pressure.cpu_pct:.0f} %")
    if pressure.link_rtt_s is not None:
        parts.append(f"link {ms(pressure.link_rtt_s)}")
    return ", ".join(parts) or "no sensor"


def _num(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}".removesuffix(".0")
