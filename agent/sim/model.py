"""One model on one simulated device: the agent's own update machine, with hands that only pretend.

Desired states, phases, the rollback rule and reports are the agent's (`agent.domain`); loading,
inferring and the disk are simulated. Refuses to know the wire: `Hands` does.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from agent.domain.assignment import CLOSED, ModelState, Phase
from agent.domain.desired import DesiredModel, RungSpec
from agent.domain.events import (
    Activated,
    Event,
    Loaded,
    PreflightOk,
    ProbationVerdict,
    RolledBack,
    Staged,
    Verified,
)
from agent.domain.histogram import Histogram
from agent.domain.instructions import (
    CollectGarbage,
    Fetch,
    Instruction,
    LoadAndWarm,
    MarkBad,
    MarkGood,
    Preflight,
    Reconfigure,
    Report,
    Serve,
    SetSlots,
    Swap,
    SwapBack,
    Unload,
    Verify,
    WriteJournal,
)
from agent.domain.ports import RungWindow
from agent.domain.probation import (
    LadderPosition,
    RollBack,
    RowState,
    ServiceSample,
    StepDown,
    Trial,
    Verdict,
    Wait,
    begin,
    judge,
    observe,
)
from agent.domain.update import step
from agent.link.convert import Evidence
from agent.sim.script import Script

SETTLED = CLOSED | {Phase.IDLE, Phase.COMMITTED}
LOOK_S = 0.5  # how often a version in probation infers and is judged
DRAWN_MAX = 20  # distinct service times drawn for one telemetry window


class Hands(Protocol):
    """What a model asks of its device. Events come back through `SimModel.feed`."""

    device_id: str

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def later(self, wait_s: float, act: Callable[[], None]) -> None:
        """Act in `wait_s` seconds; 0: behind what is due now."""
        ...

    def fetch(self, model: "SimModel", work: Fetch) -> None:
        """Get the files; Downloaded or DownloadFailed follows."""
        ...

    def report(self, model: "SimModel", said: Report, evidence: Evidence) -> None:
        """Tell the controller."""
        ...

    def returned(self, model: "SimModel", said: Report, left: str, cause: str) -> None:
        """Tell the controller that the device has gone back from version `left`."""
        ...


@dataclass(slots=True)
class _Trial:
    """A version that proves itself."""

    slot_id: str
    row: RowState
    times: Histogram = field(default_factory=Histogram)


class SimModel:
    """State and pretended work of one model. Used in one loop, by one device."""

    __slots__ = (
        "_cause",
        "_chance",
        "_decided_at_s",
        "_hands",
        "_inferred_at_s",
        "_left",
        "_returned_in_s",
        "_script",
        "_trial",
        "_verdict",
        "_window",
        "name",
        "state",
    )

    def __init__(self, name: str, hands: Hands, script: Script, chance: random.Random) -> None:
        self.name = name
        self.state = ModelState(name)
        self._hands = hands
        self._script = script
        self._chance = chance
        self._trial: _Trial | None = None
        self._window = Histogram()
        self._inferred_at_s = hands.monotonic()
        self._verdict: RollBack | None = None
        self._decided_at_s = 0.0
        self._returned_in_s = 0.0
        self._left = ""
        self._cause = ""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way."""
        return self.state.phase in SETTLED

    def feed(self, event: Event) -> None:
        """Take one event and do what follows."""
        before = self.state
        self.state, todo = step(self.state, event)
        for item in todo:
            self._do(before, item)

    def _soon(self, event: Event, wait_s: float = 0.0) -> None:
        self._hands.later(wait_s, lambda: self.feed(event))

    def _do(self, before: ModelState, item: Instruction) -> None:
        match item:
            case SetSlots():
                if item.ticket is not None:
                    self._soon(Staged(item.ticket))
            case Preflight():
                self._soon(PreflightOk(item.ticket))
            case Fetch():
                self._hands.fetch(self, item)
            case Verify():
                self._soon(Verified(item.ticket))
            case LoadAndWarm():
                self._soon(Loaded(item.ticket), self._script.loading_s(self._chance))
            case Swap():
                self._begin_trial()
                self._soon(Activated(item.ticket))
            case SwapBack():
                self._trial = None
                self._returned_in_s = max(1e-6, self._hands.monotonic() - self._decided_at_s)
                self._soon(RolledBack(item.ticket))
            case MarkGood():
                self._trial = None
            case MarkBad():
                self._left = before.current.release.version if before.current else ""
                self._cause = item.cause.value
            case Report():
                self._report(item)
            case WriteJournal() | Serve() | Unload() | Reconfigure() | CollectGarbage():
                pass  # nothing of it can be seen from outside
            case never:
                assert_never(never)

    def _report(self, said: Report) -> None:
        self._hands.report(self, said, self._evidence())
        if said.phase is Phase.ROLLED_BACK:
            self._hands.returned(self, said, self._left, self._cause)
            self._verdict, self._returned_in_s = None, 0.0

    def _evidence(self) -> Evidence:
        row = self._verdict.row if self._verdict is not None else ()
        trial = self._trial
        return Evidence(
            inferences=trial.row.seen if trial is not None else len(row),
            errors=trial.row.errors if trial is not None else 0,
            p95_s=trial.times.quantile(0.95) if trial is not None else None,
            last_service_s=row,
            starved=self.state.starved,
            rolled_back_in_s=self._returned_in_s,
        )

    # -- pretended inference -----------------------------------------------------------------------

    def _begin_trial(self) -> None:
        current = self.state.current
        if current is None:
            return
        now_s = self._hands.monotonic()
        self._infer(now_s)
        trial = _Trial(current.slot_id, begin(now_s))
        self._trial = trial
        self._hands.later(LOOK_S, lambda: self._look(trial))

    def _look(self, trial: _Trial) -> None:
        """Infer since the last look, one by one, and judge after each as a real host does."""
        current = self.state.current
        if self._trial is not trial or current is None or current.slot_id != trial.slot_id:
            return
        policy = current.release.policy
        now_s = self._hands.monotonic()
        count = max(1, round(self._script.inferences_per_s * LOOK_S))
        bad = self._script.is_bad(self._hands.device_id, current.release.version)
        verdict: Verdict = Wait(None, "nothing was inferred yet")
        for number in range(count):
            service_s = self._script.service_s(
                self._chance, bad=bad, threshold_s=policy.slow_threshold_s
            )
            at_s = now_s - LOOK_S * (count - 1 - number) / count
            trial.row = observe(trial.row, ServiceSample(at_s, service_s), policy)
            trial.times.add(service_s)
            self._window.add(service_s)
            self._inferred_at_s = now_s
            verdict = judge(
                trial.row, Trial.PROBATION, LadderPosition.LOWEST_LOCAL, True, policy, at_s
            )
            if isinstance(verdict, RollBack):
                self._verdict, self._decided_at_s = verdict, self._hands.monotonic()
                self.feed(ProbationVerdict(trial.slot_id, verdict))
                return
        if isinstance(verdict, StepDown):
            return
        self.feed(ProbationVerdict(trial.slot_id, verdict))
        if self._trial is trial:
            self._hands.later(LOOK_S, lambda: self._look(trial))

    def _infer(self, now_s: float) -> None:
        """What was inferred since the last time: few times are drawn, each counts often."""
        elapsed_s, self._inferred_at_s = now_s - self._inferred_at_s, now_s
        current = self.state.current
        if current is None:
            return
        count = round(self._script.inferences_per_s * elapsed_s)
        drawn = min(count, DRAWN_MAX)
        for number in range(drawn):
            times = count // drawn + (1 if number < count % drawn else 0)
            self._window.add(self._script.service_s(self._chance, bad=False, threshold_s=0), times)

    def take_window(self) -> RungWindow | None:
        """Everything inferred since the last call, for telemetry; None where nothing serves."""
        current = self.state.current
        if current is None:
            return None
        if self._trial is None:
            self._infer(self._hands.monotonic())
        rung = _serving(current.release)
        window, self._window = self._window, Histogram()
        digest = rung.target.digest if rung.target is not None else ""
        return RungWindow(self.name, current.release.version, rung.name, digest, window)

    @property
    def rung(self) -> str:
        """The rung that is said to answer: the heaviest local one."""
        current = self.state.current
        return _serving(current.release).name if current is not None else ""


def _serving(release: DesiredModel) -> RungSpec:
    return release.local_rungs[0]
