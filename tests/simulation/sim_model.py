"""One model on a device of the simulator: it can die between any two acts, get slow, get hot.

The update machine, the rollback rule and the latch are the agent's own.
"""

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from agent.domain.assignment import ModelState, Phase
from agent.domain.desired import DesiredModel
from agent.domain.events import Ending, LoadFailed, ProbationVerdict
from agent.domain.instructions import Instruction, LoadAndWarm, MarkGood, Serve, WriteJournal
from agent.domain.probation import (
    LadderPosition,
    RollBack,
    ServiceSample,
    StepDown,
    Trial,
    Verdict,
    begin,
    judge,
    observe,
    on_rung_change,
)
from agent.sim.model import LOOK_S, SimModel, _Trial
from agent.sim.script import Script

if TYPE_CHECKING:
    from tests.simulation.sim_agent import SimAgent

WATCH_S = 4.0  # between looks at a committed version
LOOKED = 6  # inferences of such a look
HOT_FACTOR = 8.0


@dataclass(frozen=True, slots=True)
class SimScript(Script):
    """Good times; what makes a version bad is asked of `JournalledModel`."""

    load_s: float = 0.3


class JournalledModel(SimModel):
    """A simulated model that can die and begin again."""

    __slots__ = ("stepped_down", "went_back")

    def __init__(self, name: str, agent: "SimAgent", script: Script, chance: Random) -> None:
        super().__init__(name, agent, script, chance)
        self.stepped_down = False
        self.went_back = False

    @property
    def agent(self) -> "SimAgent":
        """The device."""
        from tests.simulation.sim_agent import SimAgent

        assert isinstance(self._hands, SimAgent)
        return self._hands

    def _do(self, before: ModelState, item: Instruction) -> None:
        agent = self.agent
        agent.spend()
        match item:
            case WriteJournal():
                agent.disk.states[self.name] = item.state
            case Serve() if self.state.phase is Phase.PROBATION:
                self._begin_trial()
            case Serve():
                self.watch()
            case MarkGood():
                pass  # watched further, see `_look`
            case LoadAndWarm() if agent.how(item.release.version) == "refuses":
                failed = LoadFailed(item.ticket, item.release.slot_id, "the runtime refused it")
                self._soon(failed, 0.1)
            case _:
                super()._do(before, item)

    def watch(self) -> None:
        """Look at a committed version too, where anything could happen to it."""
        current = self.state.current
        if self._trial is None and current is not None and self._is_worth_it(current.release):
            trial = _Trial(current.slot_id, begin(self.agent.now_s))
            self._trial = trial
            self.agent.later(WATCH_S, lambda: self._look(trial))

    def _is_worth_it(self, release: DesiredModel) -> bool:
        agent = self.agent
        return agent.hot or agent.sick or agent.how(release.version) == "slow later"

    def _begin_trial(self) -> None:
        self.stepped_down = False
        super()._begin_trial()
        agent, current = self.agent, self.state.current
        if current is not None and agent.how(current.release.version) == "crashes":
            agent.later(0.3, lambda: agent.die(Ending.CRASHED))

    def _look(self, trial: _Trial) -> None:
        """Infer since the last look, and judge after each inference as a real host does."""
        current, agent = self.state.current, self.agent
        if self._trial is not trial or current is None or current.slot_id != trial.slot_id:
            return
        proving = not current.committed
        every_s, count = (LOOK_S, 5) if proving else (WATCH_S, LOOKED)
        verdict: Verdict | None = None
        for number in range(count):
            at_s = agent.now_s - every_s * (count - 1 - number) / count
            verdict = self._infer_once(trial, current.release, at_s, proving=proving)
            if isinstance(verdict, RollBack):
                self._verdict, self._decided_at_s = verdict, agent.now_s
                self.feed(ProbationVerdict(trial.slot_id, verdict))
                return
            if isinstance(verdict, StepDown):
                self.stepped_down = True
                trial.row = on_rung_change(trial.row)
        if proving and verdict is not None and not isinstance(verdict, StepDown):
            self.feed(ProbationVerdict(trial.slot_id, verdict))
        now = self.state.current
        if self._trial is trial and now is not None and now.slot_id == trial.slot_id:
            if now.committed and not self._is_worth_it(now.release):
                self._trial, self.stepped_down = None, False
                return
            wait_s = WATCH_S if now.committed else LOOK_S
            agent.later(wait_s, lambda: self._look(trial))

    def _infer_once(
        self, trial: _Trial, release: DesiredModel, at_s: float, *, proving: bool
    ) -> Verdict:
        policy, agent = release.policy, self.agent
        lowest = self.stepped_down or len(release.local_rungs) == 1
        service_s = self._time_of(release, proving=proving)
        sample = ServiceSample(at_s, service_s, pressured=agent.hot)
        trial.row = observe(trial.row, sample, policy)
        trial.times.add(service_s)
        return judge(
            trial.row,
            Trial.PROBATION if proving else Trial.COMMITTED,
            LadderPosition.LOWEST_LOCAL if lowest else LadderPosition.LOCAL,
            not agent.hot,
            policy,
            at_s,
            latched=self.state.latched,
        )

    def _time_of(self, release: DesiredModel, *, proving: bool) -> float:
        how = self.agent.how(release.version)
        bad = how == "slow" or (how == "slow later" and not proving)
        bad = bad or (how == "slow on some" and self.agent.is_some)
        threshold_s = release.policy.slow_threshold_s
        time_s = self._script.service_s(self._chance, bad=bad, threshold_s=threshold_s)
        return time_s * HOT_FACTOR if self.agent.hot or self.agent.sick else time_s

    @property
    def rung(self) -> str:
        """The rung that answers."""
        current = self.state.current
        if current is None:
            return ""
        rungs = current.release.local_rungs
        return rungs[-1 if self.stepped_down else 0].name
