"""A device of the simulator: the agent's own update machine and rollback rule, in virtual time.

What is durable on a real device (the journal, the spool, the generation) outlives a power cut here;
what runs does not. The network between it and the controller is the world's.
"""

import base64
import heapq
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

from agent.domain.assignment import LIVE, WORKING, ModelState, Phase
from agent.domain.desired import DesiredState
from agent.domain.events import Booted, Downloaded, DownloadFailed, Ending
from agent.domain.instructions import Fetch, Report
from agent.domain.orders import orders_of
from agent.link.convert import Evidence
from agent.link.trust import ManifestVerifier, Signature, SignedState
from agent.sim.model import SimModel
from agent.sim.script import Script
from controller.domain.rollout import AssignmentState
from controller.services.reports import DeviceEnvelope, ReportBody
from tests.simulation.sim_model import JournalledModel

MODEL = "digits"
_BEGUN = WORKING | LIVE
_LINE = {
    phase: number
    for number, phase in enumerate(
        (
            Phase.IDLE,
            Phase.OFFERED,
            Phase.DOWNLOADING,
            Phase.VERIFIED,
            Phase.STAGED,
            Phase.ACTIVATED,
            Phase.PROBATION,
            Phase.COMMITTED,
            Phase.ROLLING_BACK,
        )
    )
}


class PowerCutError(Exception):
    """The power goes between two acts."""


@dataclass(slots=True)
class Disk:
    """What a power cut leaves."""

    states: dict[str, ModelState] = field(default_factory=dict)
    spool: list[DeviceEnvelope] = field(default_factory=list)
    seen: int = 0  # the newest order that was accepted
    taken: int = 0  # the newest of which every model has noted its part
    applied: int = 0
    boots: int = 1


class SimAgent:
    """One device. Time passes where the world calls `run_until`."""

    def __init__(
        self,
        device_id: str,
        verifier: ManifestVerifier,
        script: Script,
        hows: Mapping[str, str],
        told: Callable[[str], None],
    ) -> None:
        self.device_id = device_id
        self.verifier = verifier
        self.script = script
        self.hows = hows
        self.tell = told
        self.chance = Random(device_id)
        self.disk = Disk()
        self.now_s = 0.0
        self.life = 0
        self.queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self.number = 0
        self.seq = 0
        self.disk_full = False
        self.hot = False
        self.sick = False  # slow whatever runs, and no sensor says why
        self.is_some = int(device_id.rpartition("-")[2] or 0) % 3 == 0
        self.cut_in = -1  # acts until the power goes; negative: it stays
        self.models: dict[str, JournalledModel] = {}
        self.fetched: set[str] = set()  # rollouts whose manifest came
        self.ran: set[str] = set()  # rollouts whose version answered here
        self.left: set[str] = set()  # rollouts whose version this device left, or could not take
        self.said: dict[str, ModelState] = {}  # in which each model spoke last
        self.wrong: list[str] = []  # what no device may do

    def copy(
        self, script: Script, hows: Mapping[str, str], told: Callable[[str], None], chance: Random
    ) -> "SimAgent":
        """The same device at rest, in another world."""
        made = SimAgent(self.device_id, self.verifier, script, hows, told)
        made.chance = chance
        made.disk = replace(self.disk, states=dict(self.disk.states), spool=[])
        made.now_s, made.seq = self.now_s, self.seq
        made.fetched, made.ran = set(self.fetched), set(self.ran)
        made.said = dict(self.said)
        for name, state in self.disk.states.items():
            made._model(name).state = state
        return made

    def how(self, version: str) -> str:
        """In which way a version is bad; empty: it is good."""
        return self.hows.get(version, "")

    # -- time ------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """See `Hands.monotonic`."""
        return self.now_s

    def later(self, wait_s: float, act: Callable[[], None]) -> None:
        """See `Hands.later`; what was to be done in an earlier life is not done."""
        self.number += 1
        heapq.heappush(self.queue, (self.now_s + max(wait_s, 0.0), self.number, self.life, act))

    def run_until(self, now_s: float) -> None:
        """Do all that is due, in order."""
        while self.queue and self.queue[0][0] <= now_s:
            at_s, _, life, act = heapq.heappop(self.queue)
            self.now_s = max(self.now_s, at_s)
            if life == self.life:
                self._try(act)
        self.now_s = now_s

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except PowerCutError:
            self.die(Ending.POWER_LOST)

    def spend(self) -> None:
        """One act more; PowerCutError where it comes to no other."""
        if self.cut_in == 0:
            self.cut_in = -1
            raise PowerCutError
        self.cut_in -= self.cut_in > 0

    def weaken(self, *, hot: bool = False, sick: bool = False) -> None:
        """The sun comes, or something ails it; neither: it is well again."""
        self.hot, self.sick = hot, sick
        self.tell(f"{self.device_id} is {'hot' if hot else 'sick' if sick else 'well again'}")
        for model in self.models.values():
            model.watch()

    def die(self, ending: Ending) -> None:
        """The power goes, or the process; it starts again at once from what is on the disk."""
        self.tell(f"{self.device_id} {ending.value}")
        self.life += 1
        self.cut_in = -1
        self._check_memory()
        self.disk.boots += 1
        self.seq = 0
        self.models = {}
        for name, state in list(self.disk.states.items()):
            model = self._model(name)
            model.state = state
            slots = (state.current, state.previous, state.staged)
            present = frozenset(one.slot_id for one in slots if one is not None)
            model.feed(Booted(ending, present))

    def _check_memory(self) -> None:
        """What a device told its controller, it must know after a power cut as well."""
        for name, told in self.said.items():
            state = self.disk.states.get(name, ModelState(name))
            if _how_far(state) < _how_far(told):
                self.wrong.append(f"spoke as {told.phase} of {name}, and remembers {state.phase}")

    # -- downwards -------------------------------------------------------------------------------

    def take(self, generation: int, manifest: bytes, signatures: list[dict[str, str]]) -> None:
        """A desired state came, perhaps again, perhaps an old one."""
        signed = tuple(
            Signature(one["key_id"], base64.b64decode(one["signature"])) for one in signatures
        )
        if generation < self.disk.seen or generation == self.disk.taken:
            return
        desired: DesiredState = self.verifier.verify(
            SignedState(generation, manifest, signed), self.disk.seen
        )
        self.disk.seen = desired.generation
        self.fetched.update(one.rollout for one in desired.models)
        try:
            self._share_out(desired)
        except PowerCutError:
            self.die(Ending.POWER_LOST)

    def _share_out(self, desired: DesiredState) -> None:
        """Each model notes its part; only then is the order taken, and not asked for again."""
        for name, order in orders_of(desired, frozenset(self.models)).items():
            self._model(name).feed(order)
        self.disk.taken = desired.generation

    def _model(self, name: str) -> JournalledModel:
        if name not in self.models:
            self.models[name] = JournalledModel(name, self, self.script, self.chance)
        return self.models[name]

    def fetch(self, model: SimModel, work: Fetch) -> None:
        """See `Hands.fetch`."""
        if self.disk_full:
            model._soon(DownloadFailed(work.ticket, "the disk is full", False), 0.2)
        elif self.chance.random() < 0.1:
            model._soon(DownloadFailed(work.ticket, "the connection broke", True), 0.5)
        else:
            model._soon(Downloaded(work.ticket), self.chance.uniform(0.2, 2.0))

    # -- upwards ---------------------------------------------------------------------------------

    def report(self, model: SimModel, said: Report, evidence: Evidence) -> None:
        """See `Hands.report`: into the spool, which only an acknowledgement empties."""
        applied = self.disk.applied < self.disk.seen and all(
            one.is_settled and one.state.generation >= self.disk.seen
            for one in self.models.values()
        )
        if applied:
            self.disk.applied = self.disk.seen
        known: dict[str, Any] = asdict(evidence)
        known["last_service_s"] = list(evidence.last_service_s)
        body = ReportBody(
            model=model.name,
            version=said.version,
            rollout=said.rollout,
            generation=said.generation,
            state=AssignmentState(said.phase.value),
            reason=said.reason,
            serving_version=said.serving_version,
            applied=applied,
            evidence=known,
        )
        self.seq += 1
        self.disk.spool.append(DeviceEnvelope(f"{self.disk.boots}-abc", self.seq, body))
        self._remember(model.name, said)

    def _remember(self, name: str, said: Report) -> None:
        self.said[name] = self.models[name].state
        if said.phase is Phase.ACTIVATED:
            self.ran.add(said.rollout)
            self.models[name].went_back = False
        if said.phase in _BEGUN and said.rollout in self.left:
            self.wrong.append(f"took {said.version} of {said.rollout} again, which it had left")

    def returned(self, model: SimModel, said: Report, left: str, cause: str) -> None:
        """See `Hands.returned`."""
        self.tell(f"{self.device_id} went back from {left}: {cause}")
        if cause == "ordered":
            return
        here = self.models[model.name]
        if here.went_back:
            self.wrong.append(f"went back from {left}, and had gone back already")
        if self.hot and self.how(left) in ("", "heavier") and cause == "slow":
            self.wrong.append(f"left {left}, which is good: the device was hot")
        here.went_back = True
        self.left.add(said.rollout)

    # -- seen from outside -----------------------------------------------------------------------

    def serving(self, name: str = MODEL) -> str:
        """The version that answers; empty: none."""
        model = self.models.get(name)
        current = model.state.current if model is not None else None
        return current.release.version if current is not None else ""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way here and all is told."""
        return not self.disk.spool and all(one.is_settled for one in self.models.values())


def _how_far(state: ModelState) -> tuple[int, int]:
    """Order by order, and step by step."""
    return state.ticket, _LINE.get(state.phase, len(_LINE))
