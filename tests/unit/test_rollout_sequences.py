"""Long histories of one rollout: reports, silence, people, late joiners, crashes, in any order.

The real judge and planner over devices in memory. What must hold is watched from outside, by ghosts
that the cores do not see; two deliberately broken controllers have to be caught by the same ghosts.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from controller.domain.evidence import Rules, Side, Soak, Trouble, WaveFacts
from controller.domain.health import Judgement, judge
from controller.domain.histogram import histogram_of
from controller.domain.planner import Facts, PauseReason, Plan, plan
from controller.domain.rollout import (
    LIVE,
    OPEN,
    TERMINAL,
    AssignmentState,
    Intent,
    Phase,
    Verdict,
    check_state,
    on_report,
)

A = AssignmentState
START = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
RULES = Rules(soak_s=4, min_samples=10, deadline_s=60, slow_threshold_ms=100, p95_budget_ms=100)
CAPS = (1, 3, 8)
ON_THE_WAY = OPEN - {A.PLANNED}

Judge = Callable[[WaveFacts, Rules, datetime], Judgement]


@dataclass
class Device:
    name: str
    online: bool = True
    state: AssignmentState = A.PLANNED
    wave: int = 0
    exposed: bool = False
    activated: bool = False
    inferences: int = 0
    starved_at: datetime | None = None
    evidence_at: datetime | None = None
    changed_at: datetime = START


@dataclass
class Ghosts:
    """What an observer beside the controller remembers."""

    ever_offered: set[str] = field(default_factory=set)
    proven: int = 0  # waves whose every device was shown to work when the next one opened


class Histories(RuleBasedStateMachine):
    """One rollout over eight devices."""

    judge: Judge = staticmethod(judge)
    forgets = False

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.devices = [Device(f"pi-{n}") for n in range(CAPS[-1])]
        self.phase, self.reason = Phase.PENDING, ""
        self.intent, self.intent_at = Intent.RUN, START
        self.wave = 0
        self.opened: list[datetime] = []
        self.verdict: Verdict | None = None
        self.soak = Soak()
        self.errors_in_row = 0
        self.held_at: datetime | None = None
        self.pauses: tuple[PauseReason, ...] = ()
        self.ghosts = Ghosts()

    # -- the controller --------------------------------------------------------------------------

    def exposed(self) -> int:
        """The ledger."""
        if self.forgets:  # a broken one: what did not come to anything does not count
            return sum(device.state in ON_THE_WAY | {A.COMMITTED} for device in self.devices)
        return sum(device.exposed for device in self.devices)

    def wave_facts(self) -> WaveFacts:
        mine = [d for d in self.devices if d.wave == self.wave and d.exposed]
        committed = [d for d in mine if d.state is A.COMMITTED]
        acknowledged = self.held_at is not None and self.intent_at > self.held_at
        since = self.intent_at if acknowledged else self.opened[-1]
        samples = sum(d.inferences for d in mine)
        return WaveFacts(
            opened_at=self.opened[-1],
            exposed=len(mine),
            in_flight=sum(d.state in ON_THE_WAY for d in mine),
            committed=len(committed),
            offline=0,
            rolled_back=tuple(
                Trouble(d.name)
                for d in self.devices
                if d.state in (A.ROLLING_BACK, A.ROLLED_BACK)
                or (d.state is A.FAILED and d.activated)
            ),
            failed=tuple(
                Trouble(d.name)
                for d in mine
                if d.state is A.FAILED and not d.activated and d.changed_at > since
            ),
            starved=tuple(
                Trouble(d.name) for d in mine if d.starved_at is not None and d.starved_at > since
            ),
            after=Side(histogram_of([0.02] * samples)),
            samples=samples,
            short=tuple(d.name for d in committed if d.inferences < RULES.min_samples),
            last_evidence_at=max((d.evidence_at for d in mine if d.evidence_at), default=None),
            last_change_at=max((d.changed_at for d in mine), default=None),
            acknowledged_at=self.intent_at if acknowledged else None,
            passed=self.verdict is Verdict.PASSED,
            soak=self.soak,
        )

    def facts(self) -> Facts:
        verdict, reason = Verdict.PENDING, ""
        if self.wave and self.phase in (Phase.PROGRESSING, Phase.PAUSED):
            found = self.judge(self.wave_facts(), RULES, self.now)
            verdict, reason, self.soak = found.verdict, found.reason, found.soak
            self.verdict = verdict
            self.errors_in_row = self.errors_in_row + 1 if verdict is Verdict.ERROR else 0
        return Facts(
            rollout_id="r-1",
            phase=self.phase,
            phase_reason=self.reason,
            intent=self.intent,
            intent_by="ana",
            intent_at=self.intent_at,
            intent_reason="",
            caps=CAPS,
            current_wave=self.wave,
            counts=Counter(device.state for device in self.devices),
            exposed=self.exposed(),
            wave_live=sum(
                d.wave == self.wave and d.exposed and d.state in LIVE | ON_THE_WAY
                for d in self.devices
            ),
            candidates=tuple(d.name for d in self.devices if d.online and d.state is A.PLANNED),
            verdict=verdict,
            verdict_reason=reason,
            errors_in_row=self.errors_in_row,
            pause_reasons=self.pauses,
            not_returned=sum(d.state is A.FAILED and d.activated for d in self.devices),
        )

    def carry_out(self, decided: Plan) -> None:
        if self.phase in TERMINAL:
            assert decided.phase is self.phase, "what is over came back"
            assert not decided.take
        elif decided.phase is Phase.SUCCEEDED:
            assert all(d.state not in OPEN for d in self.devices), "ended with a device on its way"
        assert self.wave <= decided.current_wave <= self.wave + 1, "a wave was skipped"
        if decided.current_wave > self.wave:
            self.open_wave(decided.current_wave)
        if decided.pause_reasons and not self.pauses:
            self.held_at = self.now
        self.phase, self.reason, self.pauses = decided.phase, decided.reason, decided.pause_reasons
        for device in self.devices:
            if device.state in decided.withdraw:
                self.move(device, A.WITHDRAWN)
            elif device.state in decided.roll_back:
                self.move(device, A.ROLLING_BACK)
            elif device.name in decided.take:
                self.move(device, A.OFFERED)
                device.wave, device.exposed = self.wave, True
                self.ghosts.ever_offered.add(device.name)

    def open_wave(self, number: int) -> None:
        if self.wave:
            for device in self.devices:
                if device.state is A.COMMITTED:
                    shown = device.inferences
                    assert shown >= RULES.min_samples, f"passed on {shown} inferences"
                assert device.state not in ON_THE_WAY, "passed with a device on its way"
            self.ghosts.proven = self.wave
        self.wave, self.verdict, self.soak, self.held_at = number, None, Soak(), None
        self.opened.append(self.now)

    def move(self, device: Device, state: AssignmentState) -> None:
        device.state = check_state(device.name, device.state, state, "test")
        device.changed_at = self.now

    # -- what may happen -------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.2, 2.0, 10.0, 61.0]), crash=st.booleans())
    def tick(self, seconds: float, crash: bool) -> None:
        self.now += timedelta(seconds=seconds)
        before = (self.verdict, self.soak, self.errors_in_row)
        decided = plan(self.facts(), self.now)
        if crash:  # nothing of it was stored
            self.verdict, self.soak, self.errors_in_row = before
            return
        self.carry_out(decided)

    @rule(rounds=st.integers(1, 12))
    def go_on(self, rounds: int) -> None:
        """A while in which nothing special happens."""
        for _ in range(rounds):
            self.work(6)
            self.tick(1.0, crash=False)

    @rule(
        index=st.integers(0, CAPS[-1] - 1), state=st.sampled_from(list(A)), sure=st.integers(0, 3)
    )
    def report(self, index: int, state: AssignmentState, sure: int) -> None:
        """Any report at any time: late, repeated, or nonsense."""
        if sure == 3:
            self.take_report(self.devices[index], state)

    @rule(steps=st.integers(1, 6))
    def work(self, steps: int) -> None:
        """Devices under way go on as they should, infer, and are heard."""
        line = [A.OFFERED, A.DOWNLOADING, A.VERIFIED, A.STAGED, A.ACTIVATED, A.PROBATION]
        self.now += timedelta(seconds=1)
        for device in self.devices:
            if device.state in line and device.online:
                goal = min(line.index(device.state) + steps, len(line))
                self.take_report(device, [*line, A.COMMITTED][goal])
            elif device.state is A.ROLLING_BACK:
                self.take_report(device, A.ROLLED_BACK)
            if device.state in LIVE and device.online:
                self.infer(device, 5)

    def take_report(self, device: Device, state: AssignmentState) -> None:
        found = on_report(device.state, state)
        if not found.changed:
            return
        device.state, device.changed_at = found.state, self.now
        device.activated |= state in LIVE | {A.ROLLING_BACK, A.ROLLED_BACK}
        if state is A.REFUSED:
            device.exposed = False
            self.ghosts.ever_offered.discard(device.name)

    @rule(index=st.integers(0, CAPS[-1] - 1), sure=st.integers(0, 3))
    def starve(self, index: int, sure: int) -> None:
        device = self.devices[index]
        if sure == 3 and device.state is A.PROBATION:
            device.starved_at = self.now

    def infer(self, device: Device, count: int) -> None:
        device.inferences += count
        device.evidence_at = self.now

    @rule(index=st.integers(0, CAPS[-1] - 1), online=st.booleans())
    def presence(self, index: int, online: bool) -> None:
        self.devices[index].online = online

    @rule(intent=st.sampled_from([Intent.RUN, Intent.RUN, Intent.RUN, Intent.PAUSE]))
    @precondition(lambda self: self.intent in (Intent.RUN, Intent.PAUSE))
    def people(self, intent: Intent) -> None:
        self.now += timedelta(seconds=1)
        self.intent, self.intent_at = intent, self.now

    @rule(intent=st.sampled_from([Intent.ABORT, Intent.ROLL_BACK]), sure=st.integers(0, 9))
    @precondition(lambda self: self.phase not in TERMINAL)
    def end(self, intent: Intent, sure: int) -> None:
        if sure == 9:
            self.intent, self.intent_at = intent, self.now

    @rule(index=st.integers(0, CAPS[-1] - 1), sure=st.integers(0, 4))
    def newer_rollout(self, index: int, sure: int) -> None:
        device = self.devices[index]
        if sure == 4 and device.state in OPEN:
            self.move(device, A.SUPERSEDED)

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def exposure_stays_below_the_cap_of_what_was_proven(self) -> None:
        cap = CAPS[min(self.ghosts.proven, len(CAPS) - 1)]
        count = len(self.ghosts.ever_offered)
        assert count <= cap, (
            f"exposed {count}, cap {cap} until wave {self.ghosts.proven + 1} passed"
        )


def _forgive(facts: WaveFacts, rules: Rules, now: datetime) -> Judgement:
    """A broken judge: where nothing was heard, nothing was wrong."""
    found = judge(facts, rules, now)
    if found.verdict in (Verdict.PENDING, Verdict.INCONCLUSIVE) and not facts.in_flight:
        return replace(found, verdict=Verdict.PASSED)
    return found


class ForgetsRetries(Histories):
    """A ledger that counts only what is alive: every failed device makes room for another."""

    forgets = True


class LetsSilencePass(Histories):
    """A judge that takes silence for health."""

    judge: Judge = staticmethod(_forgive)


SETTINGS: dict[str, Any] = {
    "stateful_step_count": 60,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


def test_whatever_happens_the_rules_hold() -> None:
    run_state_machine_as_test(Histories, settings=settings(max_examples=150, **SETTINGS))


@pytest.mark.parametrize(
    ("broken", "message"),
    [(ForgetsRetries, "exposed "), (LetsSilencePass, "passed on ")],
)
def test_broken_controllers_are_caught(broken: type[Histories], message: str) -> None:
    """Negative control: the same histories, the same ghosts."""
    search = settings(
        max_examples=2000, phases=[Stage.generate], derandomize=True, database=None, **SETTINGS
    )
    with pytest.raises(AssertionError) as caught:
        run_state_machine_as_test(broken, settings=search)
    assert message in str(caught.value)
