"""One simulated device: its identity, its connections, its spool in memory, its models.

What it believes is checked as the agent checks it: the manifest's signature, device, project and
generation. Refuses to survive its process: the spool and what it remembers end with it.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from agent.domain.events import Downloaded, DownloadFailed
from agent.domain.instructions import Fetch, Report
from agent.domain.ladder import Pressure
from agent.domain.orders import orders_of
from agent.domain.ports import Identity
from agent.errors import AgentError
from agent.ids import new_boot_id
from agent.link.authority import parse_endpoint
from agent.link.backoff import Backoff
from agent.link.convert import (
    AssignmentReport,
    Evidence,
    Happening,
    ModelStatus,
    Stamp,
    TelemetryWindow,
    event_payload,
    parse_ack,
    parse_doorbell,
    presence_payload,
    report_payload,
    telemetry_payload,
)
from agent.link.errors import LinkError, LinkFault
from agent.link.trust import ManifestVerifier, SignedState
from agent.sim.around import Happened, Surroundings
from agent.sim.model import SimModel
from agent.sim.mqtt import BrokenError, MqttConnection, Will, open_connection
from agent.sim.spool import ACK_WAIT_S, SimSpool
from agent.sim.wire import DeviceCalls
from lighterman.v1 import topics

RSS_BYTES = 60 * 1024 * 1024  # what a real agent has; a simulated one has none of its own


@dataclass(slots=True)
class _Book:
    """Generations: `seen` accepted, `applied` as a whole, `rung` the highest a doorbell named."""

    seen: int = 0
    applied: int = 0
    rung: int = 0


class SimDevice:
    """Runs from `run` to `stop` in one loop."""

    def __init__(self, identity: Identity, around: Surroundings, source: str | None) -> None:
        self.device_id = identity.device_id
        self.connected = False
        self.models: dict[str, SimModel] = {}
        self._identity = identity
        self._around = around
        self._source = source
        self._chance = around.script.chance_of(identity.device_id)
        self._backoff = Backoff(chance=self._chance)
        self._verifier = ManifestVerifier(
            identity.signing_keys, identity.device_id, identity.project
        )
        self._calls = DeviceCalls(identity)
        self._book = _Book()
        self._boot_id = new_boot_id(int(around.clock.now().timestamp()))
        self._kept = SimSpool(identity.device_id, self._boot_id)
        self._mqtt: MqttConnection | None = None
        self._said: dict[int, dict[str, Any]] = {}  # reports that wait, for `acknowledged`
        self._lost = asyncio.Event()
        self._asking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopping = False

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Say hello, then keep one MQTT connection up until `stop`."""
        poll_s = 900.0
        said_hello = False
        self._every(self._around.telemetry_s, self._telemetry)
        self._every(ACK_WAIT_S, self._send_again)
        while not self._stopping:
            try:
                if not said_hello:
                    answer = await self._calls.hello(
                        self._boot_id, self._around.capabilities, self._book.applied
                    )
                    said_hello, poll_s = True, answer.poll_after_s or poll_s
                    self._every(self._backoff.spread(poll_s), lambda: self._ask(0))
                    self._ask(answer.desired_generation)
                await self._session()
                self._backoff.succeeded()
            except (AgentError, BrokenError, OSError, TimeoutError) as error:
                self._trouble(error)
            if not self._stopping:
                await asyncio.sleep(self._backoff.failed())

    async def stop(self) -> None:
        """Say goodbye and end everything."""
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        if self._mqtt is not None and self.connected:
            self._say_presence(online=False)
            self._mqtt.close()
        for task in list(self._tasks):
            task.cancel()
        await self._calls.close()

    async def _session(self) -> None:
        endpoint = parse_endpoint(self._identity.mqtt_endpoint)
        will = Will(self._topic(topics.UP_PRESENCE), self._presence(online=False))
        async with self._around.connecting:
            self._lost.clear()
            made = await open_connection(
                endpoint,
                self._tls(),
                self._source,
                lambda: MqttConnection(self._on_message, self._lost.set),
            )
            self._mqtt = made
            made.open(self.device_id, will)
            await made.ready
            made.subscribe(topics.device_down(self.device_id))
        self.connected = True
        try:
            self._say_presence(online=True)
            self._send_all()
            await self._lost.wait()
        finally:
            self.connected, self._mqtt = False, None
            made.drop()

    def _tls(self) -> ssl.SSLContext:
        """A context of its own; the library reads certificate and key from a file only."""
        who = self._identity
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=who.ca_pem.decode("ascii"))
        file = self._around.folder / f"{who.device_id}.pem"
        if not file.exists():
            file.touch(0o600)
            file.write_bytes(who.certificate_pem + who.key_pem)
        context.load_cert_chain(file)
        return context

    # -- downwards ---------------------------------------------------------------------------------

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic.endswith(topics.DOWN_DESIRED):
            generation = parse_doorbell(payload)
            if generation is not None and generation > self._book.seen:
                self._tell("rung", generation=generation)
                self._ask(generation)
        elif topic.endswith(topics.DOWN_ACK):
            point = parse_ack(payload)
            if point is not None:
                for number in self._kept.acked(point):
                    if (said := self._said.pop(number, None)) is not None:
                        self._tell("acknowledged", **said)

    def _ask(self, generation: int) -> None:
        """Fetch the desired state, unless a call that will see it is on its way already."""
        self._book.rung = max(self._book.rung, generation)
        if not self._asking and not self._stopping:
            self._asking = True
            self._start(self._fetch_desired())

    async def _fetch_desired(self) -> None:
        backoff = Backoff(chance=self._chance)
        try:
            while True:
                asked_for = self._book.rung
                try:
                    signed = await self._calls.desired(self._book.seen)
                except LinkError as error:
                    self._trouble(error)
                    if not error.retryable:
                        return
                    await asyncio.sleep(backoff.failed(error.retry_after_s))
                    continue
                if signed is not None and signed.generation > 0:
                    self._take(signed)
                if self._book.rung <= asked_for:
                    return
        finally:
            self._asking = False

    async def poll(self) -> None:
        """Fetch and verify the desired state again; nothing changes. LinkError, ManifestError."""
        signed = await self._calls.desired(0)
        if signed is not None:
            self._verifier.verify(signed, self._book.seen)
        self._tell("polled")

    def _take(self, signed: SignedState) -> None:
        """Verify, then give every model its order."""
        try:
            desired = self._verifier.verify(signed, self._book.seen)
        except AgentError as error:
            self._trouble(error)
            return
        self._book.seen = desired.generation
        for release in desired.models:
            self._tell(
                "fetched",
                rollout=release.rollout,
                version=release.version,
                generation=desired.generation,
            )
        for name, order in orders_of(desired, frozenset(self.models)).items():
            model = self.models.get(name)
            if model is None:
                model = SimModel(name, self, self._around.script, self._chance)
                self.models[name] = model
            model.feed(order)

    # -- what a model asks of its device -----------------------------------------------------------

    def monotonic(self) -> float:
        """See `Hands.monotonic`."""
        return self._around.clock.monotonic()

    def later(self, wait_s: float, act: Callable[[], None]) -> None:
        """See `Hands.later`."""
        loop = asyncio.get_running_loop()
        if wait_s <= 0:
            loop.call_soon(act)
            return

        def due() -> None:
            self._timers.discard(timer)
            act()

        timer = loop.call_later(wait_s, due)
        self._timers.add(timer)

    def fetch(self, model: SimModel, work: Fetch) -> None:
        """See `Hands.fetch`."""
        self._start(self._fetch_files(model, work))

    async def _fetch_files(self, model: SimModel, work: Fetch) -> None:
        if work.attempt:
            await asyncio.sleep(self._chance.uniform(0.5, 2.0) * min(work.attempt, 15))
        try:
            for target in work.targets:
                await self._calls.fetch_end(target)
        except LinkError as error:
            self._trouble(error)
            model.feed(DownloadFailed(work.ticket, error.message, error.retryable))
            return
        model.feed(Downloaded(work.ticket))

    def report(self, model: SimModel, said: Report, evidence: Evidence) -> None:
        """See `Hands.report`."""
        book = self._book
        applied = book.applied < book.seen and all(
            one.is_settled and one.state.generation >= book.seen for one in self.models.values()
        )
        if applied:
            book.applied = book.seen
        message = AssignmentReport(
            model=model.name,
            version=said.version,
            rollout=said.rollout,
            generation=said.generation,
            phase=said.phase,
            reason=said.reason,
            serving_version=said.serving_version,
            applied=applied,
            evidence=evidence,
        )
        facts = {
            "rollout": said.rollout,
            "version": said.version,
            "state": said.phase.value,
            "generation": said.generation,
            "applied": applied,
        }
        self._tell("reported", **facts)
        self._spool("report", report_payload(message, self._stamp()))
        self._said[self._kept.last] = facts

    def returned(self, model: SimModel, said: Report, left: str, cause: str) -> None:
        """See `Hands.returned`."""
        details = {"from": left, "to": said.serving_version, "rollout": said.rollout,
                   "cause": cause}  # fmt: skip
        happening = Happening(
            "rolled_back", self._around.clock.now(), said.reason, model.name, left, details
        )
        self._spool("event", event_payload(happening, self._stamp()))

    # -- upwards -----------------------------------------------------------------------------------

    def _spool(self, kind: str, payload: bytes) -> None:
        message = self._kept.add(kind, payload, self.monotonic())
        if self._mqtt is not None and self.connected:
            self._mqtt.publish(*message, 1)

    def _send_all(self) -> None:
        for message in self._kept.all(self.monotonic()):
            if self._mqtt is not None:
                self._mqtt.publish(*message, 1)

    def _send_again(self) -> None:
        if self.connected and self._kept.is_late(self.monotonic()):
            self._send_all()

    def _telemetry(self) -> None:
        if not self.connected or self._mqtt is None or not self.models:
            return
        rungs = [took for one in self.models.values() if (took := one.take_window()) is not None]
        window = TelemetryWindow(
            window_s=self._around.telemetry_s,
            rungs=tuple(rungs),
            pressure=Pressure(
                temperature_c=round(self._chance.uniform(40.0, 60.0), 1),
                memory_pct=round(self._chance.uniform(30.0, 50.0), 1),
                cpu_pct=round(self._chance.uniform(10.0, 40.0), 1),
            ),
            models=tuple(
                ModelStatus(one.name, one.state.current.release.version, one.rung,
                            one.state.phase, "")
                for one in self.models.values()
                if one.state.current is not None
            ),
            rss_bytes=RSS_BYTES,
            applied_generation=self._book.applied,
        )  # fmt: skip
        payload = telemetry_payload(self._boot_id, window, self._stamp())
        self._mqtt.publish(self._topic(topics.UP_TELEMETRY), payload, 0)

    def _say_presence(self, *, online: bool) -> None:
        if self._mqtt is not None:
            topic = self._topic(topics.UP_PRESENCE)
            self._mqtt.publish(topic, self._presence(online=online), 1, retain=True)

    def _presence(self, *, online: bool) -> bytes:
        return presence_payload(self._boot_id, online, self._stamp())

    def _stamp(self) -> Stamp:
        return Stamp(self._around.clock.now(), synced=True)

    def _topic(self, suffix: str) -> str:
        return topics.device(self.device_id, suffix)

    # -- small things ------------------------------------------------------------------------------

    @property
    def unacknowledged(self) -> int:
        """Reports and events that the controller has not acknowledged yet."""
        return self._kept.count

    @property
    def applied(self) -> int:
        """The generation that is applied as a whole."""
        return self._book.applied

    def _tell(self, kind: str, **facts: Any) -> None:
        at = self._around.clock.now().timestamp()
        self._around.tell(Happened(at, self.device_id, kind, **facts))

    def _trouble(self, error: BaseException) -> None:
        busy = isinstance(error, LinkError) and error.fault is LinkFault.BUSY
        said = error.message if isinstance(error, AgentError) else str(error)
        self._tell("busy" if busy else "failed", detail=said or type(error).__name__)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            if (error := task.exception()) is not None:
                self._trouble(error)

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        """Act again and again; the first time after a random part of the span."""

        def due() -> None:
            act()
            if not self._stopping:
                self.later(seconds, due)

        self.later(random.Random(self.device_id).uniform(0.0, seconds) or 1e-3, due)
