"""The agent's loop in this process: real store, host and models; the wire is a dictionary of bytes.

Everything of the update is real but the download, whose faults a test writes down.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from agent.clock import SystemClock
from agent.domain.assignment import ModelState
from agent.domain.desired import DesiredModel, DesiredState, Target
from agent.domain.events import Ending
from agent.domain.ladder import Pressure
from agent.domain.ports import Decision, SpoolEntry
from agent.errors import AgentError, FetchError
from agent.link.convert import numbered
from agent.loop import AgentLoop
from agent.loop_parts import LoopParts
from agent.loop_tell import Teller
from agent.loop_work import Means
from agent.runtime.host import ModelHost
from agent.runtime.remote import LinkProber
from agent.store.disk import Disk
from agent.store.journal import FileJournal
from agent.store.slots import FileSlots
from agent.store.spool import FileSpool
from lighterman.v1 import device_pb2
from tests.support.releases import digest_of
from tests.support.serving import tensor
from tests.support.wait import wait_for

BOOT = "0000000001-00000000"


class ScriptedWire:
    """Files by digest; `faults` are raised one per download, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[AgentError] = []
        self.hold: threading.Event | None = None
        self.fetched: list[str] = []

    def offer(self, *files: bytes) -> None:
        """Put files there."""
        self.files.update({digest_of(data): data for data in files})

    def fetch(self, target: Target, offset: int) -> Iterator[bytes]:
        """See `agent.domain.ports.Fetcher`."""
        self.fetched.append(target.digest)
        if self.faults:
            raise self.faults.pop(0)
        hold, data = self.hold, self.files.get(target.digest)
        if data is None:
            raise FetchError("nobody has it", retryable=False)
        for at in range(offset, len(data), 16):
            if hold is not None and at > 32 and not hold.wait(20):
                raise FetchError("held for too long")
            yield data[at : at + 16]


class ScriptedSensors:
    """What the host feels."""

    def __init__(self) -> None:
        self.felt = Pressure()

    def read(self) -> Pressure:
        """One look."""
        return self.felt


class LoopWorld:
    """One loop on one folder. `pump` keeps inferring, so that versions can prove themselves."""

    def __init__(
        self,
        root: Path,
        journal_disk: Disk | None = None,
        slots_disk: Disk | None = None,
        ending: Ending = Ending.CLEAN,
    ) -> None:
        self.clock = SystemClock()
        self.wire = ScriptedWire()
        self.sensors = ScriptedSensors()
        self.journal = FileJournal(root / "journal", journal_disk)
        self.store = FileSlots(root, slots_disk)
        self.spool = FileSpool(root / "spool", BOOT)
        self.windows: list[bytes] = []
        teller = Teller(self.spool, self.clock, BOOT, lambda: None, self._published)
        self.host = ModelHost(self.clock, self._decided, lambda: None)
        self.probe = LinkProber(self.clock)
        self.loop = AgentLoop(
            LoopParts(
                clock=self.clock,
                journal=self.journal,
                store=self.store,
                host=self.host,
                probe=self.probe,
                sensors=self.sensors,
                teller=teller,
                means=Means(
                    clock=self.clock,
                    host=self.host,
                    store=self.store,
                    fetcher=lambda: self.wire,
                    runtimes=lambda: frozenset({"onnxruntime"}),
                    memory_bytes=1 << 34,
                ),
                rss_bytes=lambda: 1,
                connected=lambda: True,
                telemetry_s=0.2,
            )
        )
        self._models: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._pump = threading.Thread(target=self._infer, daemon=True)
        served = self.loop.boot(ending, BOOT, ())
        self.loop.start()
        assert served.wait(20), "the boot did not end"
        self._pump.start()

    def _decided(self, decision: Decision) -> None:
        self.loop.decided(decision)

    def _published(self, payload: bytes) -> bool:
        self.windows.append(payload)
        return True

    def _infer(self) -> None:
        while not self._stop.wait(0.005):
            for model in self.host.models():
                try:
                    self.host.infer(model, [tensor()])
                except AgentError:
                    continue

    def stop(self) -> None:
        """End it all."""
        self._stop.set()
        self._pump.join(10)
        self.loop.stop()
        self.host.close()

    def order(self, generation: int, *releases: DesiredModel, rollout: str = "") -> None:
        """A verified desired state arrives."""
        models = tuple(replace(r, rollout=rollout or f"r-{generation}") for r in releases)
        self.loop.desired(
            DesiredState(generation, 1, "dev-1", "default", datetime.now(UTC), models)
        )

    def state(self, model: str = "photo") -> ModelState:
        """What the loop remembers."""
        return next((s for s in self.loop.states() if s.model == model), ModelState(model))

    def wait(self, what: Callable[[], object], told: str, timeout_s: float = 20) -> None:
        """Wait, and say where things stand when it takes too long."""
        wait_for(lambda: bool(what()), timeout_s, f"{told}; {self.reports()[-6:]}")

    def wait_applied(self, generation: int) -> None:
        """Wait until a generation is applied as a whole, and told so."""

        def told() -> bool:
            said = [e.report for e in self.envelopes() if e.WhichOneof("body") == "report"]
            return any(one.applied and one.generation == generation for one in said)

        self.wait(told, f"{generation} told as applied")
        assert self.loop.generations().applied == generation

    def envelopes(self) -> list[device_pb2.Envelope]:
        """Everything spooled so far."""
        entries: tuple[SpoolEntry, ...] = self.spool.pending(10_000)
        return [numbered(e) for e in entries]

    def reports(self) -> list[tuple[str, str, bool]]:
        """(rollout, state, applied) of every report, in order."""
        found = []
        for envelope in self.envelopes():
            if envelope.WhichOneof("body") == "report":
                said = envelope.report
                name = device_pb2.AssignmentState.Name(said.state)
                state = name.removeprefix("ASSIGNMENT_STATE_")
                found.append((said.rollout, state, said.applied))
        return found

    def events(self, kind: str) -> list[device_pb2.DeviceEvent]:
        """Spooled events of one kind."""
        return [e.event for e in self.envelopes() if e.event.kind == kind]

    def answer(self, model: str = "photo") -> float:
        """What a request gets now."""
        import numpy as np

        result = self.host.infer(model, [tensor(1.0, 1.0, 1.0, 1.0)])
        return float(np.frombuffer(result.outputs[0].data, np.float32)[0])
