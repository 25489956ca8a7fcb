"""A device of the simulator: the agent's own update machine and rollback rule, in virtual time.

What is durable on a real device (the journal, the spool, the generation) outlives a power cut here;
what runs does not. The network between it and the controller is the world's.
"""

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from agent.domain.assignment import ModelState, Phase
from agent.domain.desired import DesiredState
from agent.domain.events import Booted, Downloaded, DownloadFailed, Ending, LoadFailed
from agent.domain.instructions import (
    Fetch,
    Instruction,
    LoadAndWarm,
    Report,
    Serve,
    WriteJournal,
)
from agent.domain.orders import orders_of
from agent.link.convert import Evidence
from agent.link.trust import ManifestVerifier, Signature, SignedState
from agent.sim.model import SimModel
from agent.sim.script import Script
from controller.domain.rollout import AssignmentState
from controller.services.reports import DeviceEnvelope, ReportBody

MODEL = "digits"


@dataclass(slots=True)
class Disk:
    """What a power cut leaves."""

    states: dict[str, ModelState] = field(default_factory=dict)
    spool: list[DeviceEnvelope] = field(default_factory=list)
    seen: int = 0
    applied: int = 0
    boots: int = 1


class JournalledModel(SimModel):
    """A simulated model that can die and begin again, and versions that kill or refuse."""

    def _do(self, before: ModelState, item: Instruction) -> None:
        agent = self._hands
        assert isinstance(agent, SimAgent)
        match item:
            case WriteJournal():
                agent.disk.states[self.name] = item.state
            case Serve() if self.state.phase is Phase.PROBATION:
                self._begin_trial()
            case LoadAndWarm() if agent.how(item.release.version) == "refuses":
                failed = LoadFailed(item.ticket, item.release.slot_id, "the runtime refused it")
                self._soon(failed, 0.1)
            case _:
                super()._do(before, item)

    def _begin_trial(self) -> None:
        super()._begin_trial()
        agent, current = self._hands, self.state.current
        assert isinstance(agent, SimAgent)
        if current is not None and agent.how(current.release.version) == "crashes":
            agent.later(0.3, lambda: agent.die(Ending.CRASHED))


class SimAgent:
    """One device. Time passes where the world calls `run_until`."""

    def __init__(
        self,
        device_id: str,
        verifier: ManifestVerifier,
        script: Script,
        hows: dict[str, str],
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
        self.models: dict[str, SimModel] = {}
        self.fetched: set[str] = set()  # rollouts whose manifest came
        self.ran: set[str] = set()  # rollouts whose version answered here

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
        self.queue.append((self.now_s + max(wait_s, 0.0), self.number, self.life, act))

    def run_until(self, now_s: float) -> None:
        """Do all that is due, in order."""
        while due := [one for one in self.queue if one[0] <= now_s]:
            first = min(due, key=lambda one: one[:2])
            self.queue.remove(first)
            self.now_s = max(self.now_s, first[0])
            if first[2] == self.life:
                first[3]()
        self.now_s = now_s

    def die(self, ending: Ending) -> None:
        """The power goes, or the process; it starts again at once from what is on the disk."""
        self.tell(f"{self.device_id} {ending.value}")
        self.life += 1
        self.disk.boots += 1
        self.seq = 0
        self.models = {}
        for name, state in list(self.disk.states.items()):
            model = self._model(name)
            model.state = state
            slots = (state.current, state.previous, state.staged)
            present = frozenset(one.slot_id for one in slots if one is not None)
            model.feed(Booted(ending, present))

    # -- downwards -------------------------------------------------------------------------------

    def take(self, generation: int, manifest: bytes, signatures: list[dict[str, str]]) -> None:
        """A desired state came, perhaps again, perhaps an old one."""
        signed = tuple(
            Signature(one["key_id"], base64.b64decode(one["signature"])) for one in signatures
        )
        if generation <= self.disk.seen:
            return
        desired: DesiredState = self.verifier.verify(
            SignedState(generation, manifest, signed), self.disk.seen
        )
        self.disk.seen = desired.generation
        self.fetched.update(one.rollout for one in desired.models)
        for name, order in orders_of(desired, frozenset(self.models)).items():
            self._model(name).feed(order)

    def _model(self, name: str) -> SimModel:
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
        if said.phase is Phase.ACTIVATED:
            self.ran.add(said.rollout)

    def returned(self, model: SimModel, said: Report, left: str, cause: str) -> None:
        """See `Hands.returned`."""
        self.tell(f"{self.device_id} went back from {left}: {cause}")

    # -- seen from outside -----------------------------------------------------------------------

    @property
    def serving(self) -> str:
        """The version that answers; empty: none."""
        model = self.models.get(MODEL)
        current = model.state.current if model is not None else None
        return current.release.version if current is not None else ""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way here and all is told."""
        return not self.disk.spool and all(one.is_settled for one in self.models.values())
