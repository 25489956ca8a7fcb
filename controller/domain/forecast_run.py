"""One run of a forecast: the planner, the judge, and devices that come, go, fetch and infer.

Time goes from one thing that happens to the next. Refuses to judge or plan anything itself.
"""

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from controller.domain.chance import Chance
from controller.domain.evidence import Soak, Trouble, WaveFacts
from controller.domain.health import LOOK_S, SOAK_GAP_S, Judgement, judge
from controller.domain.planner import Facts, PauseReason, is_over, plan
from controller.domain.rollout import AssignmentState, Intent, Phase, Verdict

if TYPE_CHECKING:
    from controller.domain.forecast import DeviceClass, Question

CANDIDATES = 100  # as many as the controller looks at in a portion
HORIZON_S = 90 * 86400.0
STEPS = 6_000  # at most, whatever the devices do
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_A = AssignmentState
_ROW = 5  # slow inferences in a row after which a device goes back
_ON_THE_WAY = (_A.OFFERED, _A.PROBATION)


@dataclass(frozen=True, slots=True)
class Played:
    """What one run came to. Steps are (seconds, value from then on)."""

    phase: Phase
    ended_s: float | None
    last_s: float
    fetched: int  # devices that fetched the version
    hit: int  # on which it failed
    exposed: tuple[tuple[float, int], ...]
    caps: tuple[tuple[float, int], ...]
    passed_s: tuple[float, ...]


@dataclass(slots=True)
class _Device:
    """One device: reachable until `here_until_s`, or away until then."""

    number: int
    of: "DeviceClass"
    rate: float
    is_here: bool
    until_s: float
    state: AssignmentState = _A.PLANNED
    wave: int = 0


@dataclass(slots=True)
class _Run:
    """The state of a run."""

    question: "Question"
    chance: Chance
    now_s: float = 0.0
    phase: Phase = Phase.PENDING
    reason: str = ""
    current: int = 0
    opened_s: float = 0.0
    soak: Soak = field(default_factory=Soak)
    looked_s: float = 0.0
    changed_s: float = 0.0
    verdict: Verdict = Verdict.PENDING
    pauses: tuple[PauseReason, ...] = ()
    devices: list[_Device] = field(default_factory=list)
    here: list[int] = field(default_factory=list)  # heap of PLANNED ones that are reachable
    away: list[tuple[float, int]] = field(default_factory=list)  # heap by when they come back
    events: list[tuple[float, int, AssignmentState]] = field(default_factory=list)
    shown: list[tuple[float, int]] = field(default_factory=list)  # heap: when each has enough
    counts: Counter[AssignmentState] = field(default_factory=Counter)
    in_wave: Counter[AssignmentState] = field(default_factory=Counter)
    infers: bool = False  # any committed one of the wave does
    troubles: list[Trouble] = field(default_factory=list)
    failed: list[Trouble] = field(default_factory=list)
    starved: list[Trouble] = field(default_factory=list)
    exposed: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    caps: list[tuple[float, int]] = field(default_factory=list)
    passed_s: list[float] = field(default_factory=list)
    fetched: int = 0


def play(question: "Question", chance: Chance) -> Played:
    """One run from the start to its end, or as far as it comes."""
    run = _Run(question, chance)
    _populate(run)
    for _ in range(STEPS):
        _happen(run)
        _look(run)
        if is_over(run.phase) or run.now_s > HORIZON_S or run.phase is Phase.PAUSED:
            break
        run.now_s = _next(run)
    over = is_over(run.phase) or run.phase is Phase.PAUSED
    return Played(
        phase=run.phase,
        ended_s=run.now_s if over else None,
        last_s=run.now_s,
        fetched=run.fetched,
        hit=len(run.troubles),
        exposed=tuple(run.exposed),
        caps=tuple(run.caps),
        passed_s=tuple(run.passed_s),
    )


def _populate(run: _Run) -> None:
    chance, classes = run.chance, run.question.classes
    listed = [one for one in classes for _ in range(one.devices)]
    for at in range(len(listed) - 1, 0, -1):  # a rollout's order knows no classes
        other = int(chance.share() * (at + 1))
        listed[at], listed[other] = listed[other], listed[at]
    for number, one in enumerate(listed):
        is_here = not chance.is_hit(one.away_pct) or math.isinf(one.here_s)
        mean = one.here_s if is_here else one.away_s
        until_s = math.inf if math.isinf(mean) else chance.wait(mean)
        rate = one.inferences_per_s * chance.between(0.7, 1.3)
        run.devices.append(_Device(number, one, rate, is_here, until_s))
        if is_here:
            run.here.append(number)
        else:
            run.away.append((until_s, number))
    heapq.heapify(run.away)
    run.counts[_A.PLANNED] = len(listed)


# -- devices ----------------------------------------------------------------------------------


def _catch_up(run: _Run, one: _Device, now_s: float) -> None:
    """Whether it is reachable by now."""
    while one.until_s <= now_s:
        one.is_here = not one.is_here
        mean = one.of.here_s if one.is_here else one.of.away_s
        one.until_s += max(1.0, run.chance.wait(mean))


def _candidates(run: _Run, most: int) -> list[int]:
    """PLANNED ones that are reachable now, in the rollout's order; they are taken off the list."""
    while run.away and run.away[0][0] <= run.now_s:
        heapq.heappush(run.here, heapq.heappop(run.away)[1])
    found: list[int] = []
    while run.here and len(found) < most:
        one = run.devices[heapq.heappop(run.here)]
        _catch_up(run, one, run.now_s)
        if one.is_here:
            found.append(one.number)
        else:
            heapq.heappush(run.away, (one.until_s, one.number))
    return found


def _working(run: _Run, one: _Device, start_s: float, work_s: float) -> float:
    """When so much work that needs the network is done; it rests while the device is away."""
    at_s = start_s
    while True:
        _catch_up(run, one, at_s)
        if one.is_here and at_s + work_s <= one.until_s:
            return at_s + work_s
        if one.is_here:
            work_s -= one.until_s - at_s
        at_s = one.until_s


def _offer(run: _Run, one: _Device) -> None:
    """What the device will do with its order, and when the controller will hear of it."""
    question, chance = run.question, run.chance
    _move(run, one, _A.OFFERED)
    one.wave = run.current
    run.in_wave[_A.OFFERED] += 1
    fetch_s = question.bytes / one.of.bytes_per_s * chance.between(0.8, 1.5)
    fetched_s = _working(run, one, run.now_s + chance.between(0.2, 2.5), fetch_s)
    if chance.is_hit(one.of.fails_pct):
        heapq.heappush(run.events, (fetched_s, one.number, _A.FAILED))
        return
    run.fetched += 1
    active_s = fetched_s + question.load_s * chance.between(0.8, 1.5)
    rate = max(one.rate, 1e-9)
    if question.fails_on_pct and chance.is_hit(question.fails_on_pct):
        told_s = _working(run, one, active_s + max(1.0, _ROW / rate), 1.0)
        heapq.heappush(run.events, (told_s, one.number, _A.ROLLED_BACK))
        return
    proven_s = max(question.min_s, question.min_inferences / rate)
    if proven_s > question.max_s:
        at_s = _working(run, one, active_s + question.max_s, 1.0)
        heapq.heappush(run.events, (at_s, one.number, _A.PROBATION))
        return
    told_s = _working(run, one, active_s + proven_s, 1.0)
    heapq.heappush(run.events, (told_s, one.number, _A.COMMITTED))
    heapq.heappush(run.shown, (active_s + question.rules.min_samples / rate, one.number))


def _move(run: _Run, one: _Device, state: AssignmentState) -> None:
    run.counts[one.state] -= 1
    run.counts[state] += 1
    if one.wave == run.current and one.state in run.in_wave:
        run.in_wave[one.state] -= 1
        run.in_wave[state] += 1
    one.state = state
    run.changed_s = run.now_s


def _happen(run: _Run) -> None:
    """All that is due by now."""
    while run.events and run.events[0][0] <= run.now_s:
        _, number, state = heapq.heappop(run.events)
        one = run.devices[number]
        if one.state not in (*_ON_THE_WAY, _A.ROLLING_BACK):
            continue
        if one.state is _A.ROLLING_BACK and state is not _A.ROLLED_BACK:
            continue
        told = Trouble(f"device {number}", "the version fails there")
        match state:
            case _A.ROLLED_BACK if one.state is not _A.ROLLING_BACK:
                run.troubles.append(told)
            case _A.FAILED:
                run.failed.append(told)
            case _A.PROBATION:
                run.starved.append(told)
            case _A.COMMITTED:
                run.infers = run.infers or one.rate > 0
        _move(run, one, state)


# -- controller -------------------------------------------------------------------------------


def _moment(at_s: float) -> datetime:
    return _EPOCH + timedelta(seconds=at_s)


def _look(run: _Run) -> None:
    reason = ""
    if run.current and run.phase is Phase.PROGRESSING:
        found = judge(_wave_facts(run), run.question.rules, _moment(run.now_s))
        _note(run, found)
        reason = found.reason
    candidates = _candidates(run, CANDIDATES) if _room(run) else []
    facts = _facts(run, candidates, reason)
    decided = plan(facts, _moment(run.now_s))
    taken = {int(name) for name in decided.take}
    for number in candidates:
        if number not in taken:
            heapq.heappush(run.here, number)
    if decided.current_wave > run.current:
        run.current, run.opened_s, run.verdict = decided.current_wave, run.now_s, Verdict.PENDING
        run.soak, run.infers, run.in_wave = Soak(), False, Counter()
        run.starved.clear()
        run.caps.append((run.now_s, run.question.waves[run.current - 1].cumulative))
    for number in sorted(taken):
        _offer(run, run.devices[number])
    if taken:
        run.exposed.append((run.now_s, run.exposed[-1][1] + len(taken)))
    if decided.withdraw or decided.roll_back:
        _call_back(run, decided.withdraw, decided.roll_back)
    run.phase, run.reason, run.pauses = decided.phase, decided.reason, decided.pause_reasons


def _call_back(
    run: _Run, withdraw: frozenset[AssignmentState], roll_back: frozenset[AssignmentState]
) -> None:
    for one in run.devices:
        if one.state in withdraw:
            _move(run, one, _A.WITHDRAWN)
        elif one.state in roll_back:
            _move(run, one, _A.ROLLING_BACK)
            back_s = _working(run, one, run.now_s + run.chance.between(0.5, 3.0), 1.0)
            heapq.heappush(run.events, (back_s, one.number, _A.ROLLED_BACK))


def _room(run: _Run) -> int:
    """How many more may be offered it; as many as the next wave allows where this one passed."""
    waves = run.question.waves
    ahead = run.current if run.verdict is Verdict.PASSED or not run.current else run.current - 1
    return waves[min(ahead, len(waves) - 1)].cumulative - run.exposed[-1][1]


def _note(run: _Run, found: Judgement) -> None:
    if found.verdict is Verdict.PASSED and run.verdict is not Verdict.PASSED:
        run.passed_s.append(run.now_s)
    run.soak, run.verdict, run.looked_s = found.soak, found.verdict, run.now_s


def _wave_facts(run: _Run) -> WaveFacts:
    while run.shown and run.shown[0][0] <= run.now_s:
        heapq.heappop(run.shown)
    flight = sum(run.in_wave[state] for state in _ON_THE_WAY)
    committed = run.in_wave[_A.COMMITTED]
    short = tuple(f"device {number}" for _, number in run.shown[:1]) if not flight else ()
    needed = run.question.rules.min_samples * (committed + flight)
    heard = run.now_s if run.infers else None
    return WaveFacts(
        opened_at=_moment(run.opened_s),
        exposed=run.in_wave.total(),
        in_flight=flight,
        committed=committed,
        offline=0,
        rolled_back=tuple(run.troubles),
        failed=tuple(run.failed),
        starved=tuple(run.starved),
        samples=needed if run.infers else 0,
        short=short,
        last_evidence_at=None if heard is None else _moment(heard),
        last_change_at=_moment(max(run.changed_s, run.opened_s)),
        passed=run.verdict is Verdict.PASSED,
        soak=_soaked(run),
    )


def _soaked(run: _Run) -> Soak:
    """As if somebody had looked every two seconds since the last look."""
    gap_s = run.now_s - run.looked_s
    if run.soak.counted_until is None or gap_s <= SOAK_GAP_S:
        return run.soak
    return replace(
        run.soak,
        soaked_s=run.soak.soaked_s + gap_s - SOAK_GAP_S,
        counted_until=_moment(run.now_s - SOAK_GAP_S),
    )


def _facts(run: _Run, candidates: list[int], reason: str) -> Facts:
    alive = (*_ON_THE_WAY, _A.COMMITTED, _A.ROLLING_BACK)
    return Facts(
        rollout_id="r-forecast",
        phase=run.phase,
        phase_reason=run.reason,
        intent=Intent.RUN,
        intent_by="",
        intent_at=_EPOCH,
        intent_reason="",
        caps=tuple(wave.cumulative for wave in run.question.waves),
        current_wave=run.current,
        counts=run.counts,
        exposed=run.exposed[-1][1],
        wave_live=sum(run.in_wave[state] for state in alive),
        candidates=tuple(map(str, candidates)),
        verdict=run.verdict,
        verdict_reason=reason,
        pause_reasons=run.pauses,
    )


def _next(run: _Run) -> float:
    """When something is to be looked at: not before the controller would, seldom while it waits."""
    soonest = [HORIZON_S + 1.0]
    if run.events:
        soonest.append(run.events[0][0])
    if run.away and _room(run) > 0:
        soonest.append(run.away[0][0])
    if run.here and _room(run) > 0:
        soonest.append(run.now_s)
    if run.shown and not run.events:
        soonest.append(run.shown[0][0])
    if run.phase is Phase.ROLLING_BACK and not run.events:
        soonest.append(run.now_s)
    rest_s = run.question.rules.soak_s - run.soak.soaked_s
    if not run.events and run.phase is Phase.PROGRESSING:
        soonest.append(run.now_s + max(rest_s, 0.0) + 0.1)
    # What comes one by one over hours is looked at together: a hundredth of the time until now.
    least = max(LOOK_S, (run.now_s - run.opened_s) / 100)
    return max(run.now_s + least, min(soonest))
