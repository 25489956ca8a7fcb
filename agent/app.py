"""Composition root of the agent: settings in, a serving device out.

The order is the promise: number the start, verify the store, serve the last good ladder, and only
then connect. Refuses to end for lack of a controller, a broker or a sound identity.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from agent.app_beside import Beside, BesideParts
from agent.app_http import HttpListener
from agent.app_metrics import MetricsListener, Watched
from agent.clock import SystemClock
from agent.domain.assignment import ModelState
from agent.domain.capability import Capabilities
from agent.domain.ports import Decision, Fetcher, Identity
from agent.errors import AgentError, IdentityError, StoreError
from agent.host.capabilities import detect, installed_runtimes, runnable
from agent.host.notify import Notifier
from agent.host.other_python import OtherPython
from agent.host.sensors import Sensors, memory_available_bytes, memory_total_bytes
from agent.host.watchdog import Vitals, Watchdog
from agent.link.seals import Apart
from agent.loop import AgentLoop
from agent.loop_connection import Connection, ConnectionParts
from agent.loop_parts import LoopParts
from agent.loop_tell import Teller
from agent.loop_work import Means
from agent.process import Tidy, kernel_boot_id, limit_memory, rss_bytes, trim_memory, version
from agent.runtime.child_start import STARTING
from agent.runtime.compiling import clear, under_way
from agent.runtime.host import ModelHost
from agent.runtime.hosting import Hosting, plain_runtimes
from agent.runtime.registry import Keeping, open_backend
from agent.runtime.remote import LinkProber
from agent.serve.server import InferenceServer
from agent.settings import Settings
from agent.status import Facts, StatusBoard
from agent.store.boot import start as start_boot
from agent.store.identity import FileIdentityStore
from agent.store.journal import FileJournal
from agent.store.slots import FileSlots
from agent.store.spool import FileSpool

log = logging.getLogger("agent")

FIRST_SERVE_S = 60.0
DRAIN_S = 10.0
LOOK_S = 1.0
# What starting may take under a service manager: hashing what is stored, slowly, and then some.
START_S = 90.0
COMPILED = "compiled"
HASHED_BYTES_S = 2e6
# An inference is called off early enough to be answered by another version before it is a hang.
CALL_OFF_SHARE = 0.5
MODEL_MEMORY_SHARE = 0.8


class NotEnrolledError(AgentError):
    """There is no identity in the state folder."""


class HungError(AgentError):
    """This process hangs and no service manager ends it: it has to be started anew."""


class Agent:
    """One running agent. Build it under `process.only_one`; `run` returns after `stop`."""

    def __init__(self, settings: Settings) -> None:
        root = settings.state_dir
        self._settings = settings
        self._clock = SystemClock()
        self._stopping = threading.Event()
        self._identities = FileIdentityStore(root / "identity")
        self._identity = self._who()
        self._boot = start_boot(root, self._clock.now(), kernel_boot_id())
        self._journal = FileJournal(root / "journal")
        self._store = FileSlots(root)
        self._spool = FileSpool(root / "spool", self._boot.boot_id, settings.spool_bytes)
        self._probe = LinkProber(self._clock)
        self._connection: Connection | None = None
        self._teller = Teller(
            self._spool, self._clock, self._boot.boot_id, self._wake_sender, self._publish
        )
        clear(root / COMPILED)
        STARTING.begin()
        self._other_python = OtherPython(settings.runtime_python)
        self._beside = Beside(self._beside_parts())
        self._host = self._model_host(root / COMPILED)
        self._loop = AgentLoop(self._loop_parts())
        self._hung = ""
        self._tidy = Tidy(self._rest)
        self._notifier = Notifier(os.environ)
        vitals = Vitals(self._host.longest, lambda: self._server.ask(), self._loop_silent_s)
        self._watchdog = Watchdog(self._notifier, self._clock, vitals, settings.hang_s)
        self._limit_memory()
        self._server = InferenceServer(
            self._host,
            self._clock,
            version(),
            settings.serve_grpc,
            self._watchdog.served,
            shares_memory=settings.serve_shared_memory,
            socket_path=settings.serve_grpc_socket,
            socket_mode=settings.serve_mode,
        )
        self._http = HttpListener(self._server.desk, settings)
        facts = self._facts()
        self._board = StatusBoard(root, facts)
        self._metrics = MetricsListener(self._watched(facts), self._clock)

    def _model_host(self, compiled: Path) -> ModelHost:
        hosting = Hosting(open_backend, self._settings.runtime_python)
        return ModelHost(
            self._clock,
            self._decided,
            lambda: memory_available_bytes(self._settings.host_root),
            open_backend=Keeping(compiled, self._beside.sharing(hosting)),
            batching=self._settings.serve_batching,
        )

    def _who(self) -> Identity | None:
        """The identity, None when it is damaged; NotEnrolledError when there never was one."""
        try:
            identity = self._identities.current()
        except IdentityError as error:
            log.error("%s; serving what is here, without a controller", error)
            return None
        if identity is None:
            raise NotEnrolledError(
                f"{self._settings.state_dir} holds no identity: this device is not enrolled",
                "lighterman-agent enroll --controller https://HOST:7444 --token TOKEN",
            )
        return identity

    def _limit_memory(self) -> None:
        """Keep a model that eats memory from taking the device with it."""
        settings = self._settings
        most = settings.model_memory_bytes
        most = most or int((memory_total_bytes(settings.host_root) or 0) * MODEL_MEMORY_SHARE)
        if most and not limit_memory(most):
            log.warning("memory cannot be limited here: a model may take all of it")

    def _facts(self) -> Facts:
        who = self._identity
        return Facts(
            pid=os.getpid(),
            agent_version=version(),
            boot_id=self._boot.boot_id,
            started_at=self._clock.now().isoformat(timespec="seconds"),
            device_id=who.device_id if who else "",
            project=who.project if who else "",
            controller=who.grpc_endpoint if who else "",
        )

    def _beside_parts(self) -> BesideParts:
        return BesideParts(
            settings=self._settings,
            clock=self._clock,
            teller=self._teller,
            fetcher=self._fetcher,
            engines=lambda: self._connection.engines() if self._connection else None,
            requests=lambda: sum(self._server.requests().values()),
            running=lambda: self._host.longest() is not None,
            states=lambda: self._loop.states(),
            capabilities=self._capabilities,
        )

    def _loop_parts(self) -> LoopParts:
        root = self._settings.host_root
        means = Means(
            clock=self._clock,
            host=self._host,
            store=self._store,
            fetcher=self._fetcher,
            runtimes=lambda: frozenset({*installed_runtimes(), *self._elsewhere()}),
            memory_bytes=memory_total_bytes(root) or 0,
        )
        return LoopParts(
            clock=self._clock,
            journal=self._journal,
            store=self._store,
            host=self._host,
            probe=self._probe,
            sensors=Sensors(root),
            teller=self._teller,
            means=means,
            rss_bytes=rss_bytes,
            connected=lambda: self._connection is not None and self._connection.is_up,
            telemetry_s=self._settings.telemetry_s,
        )

    def _watched(self, facts: Facts) -> Watched:
        return Watched(
            settings=self._settings,
            facts=facts,
            started_at_s=self._clock.now().timestamp(),
            host=self._host,
            loop=self._loop,
            teller=self._teller,
            spool=self._spool,
            server=self._server,
        )

    # -- doors between parts that are built one after the other ------------------------------------

    def _capabilities(self) -> Capabilities:
        settings = self._settings
        return detect(settings.host_root, settings.state_dir, self._elsewhere())

    def _elsewhere(self) -> dict[str, str]:
        """Runtimes that run under another Python."""
        return runnable(self._other_python.versions(plain_runtimes()))

    def _fetcher(self) -> Fetcher | None:
        return self._connection.fetcher() if self._connection else None

    def _decided(self, decision: Decision) -> None:
        self._loop.decided(decision)

    def _wake_sender(self) -> None:
        if self._connection is not None:
            self._connection.wake_sender()

    def _publish(self, payload: bytes) -> bool:
        return self._connection is not None and self._connection.publish_telemetry(payload)

    # -- running -----------------------------------------------------------------------------------

    def _mend_journal(self) -> None:
        """Its damage is told: the next start shall not find the same again."""
        if not self._journal.is_sound:
            try:
                self._journal.compact()
            except StoreError as error:
                log.error("the journal stays damaged: %s", error)

    def run(self, ready: Callable[[str], None]) -> None:
        """Serve, connect, and stay until `stop`. `ready` is called with the serving address."""
        self._notifier.extend(START_S + self._store.stored_bytes() / HASHED_BYTES_S)
        troubles = [self._boot.trouble] if self._boot.trouble else []
        troubles += [str(d) for d in (*self._journal.damage, *self._spool.damage) if not d.torn]
        served = self._loop.boot(self._boot.ending, self._boot.boot_id, tuple(troubles))
        self._mend_journal()
        self._probe.start()
        self._loop.start()
        try:
            served.wait(FIRST_SERVE_S)
            address = self._server.start()
            self._board.update(
                listen_grpc=address,
                listen_http=self._http.start(),
                listen_metrics=self._metrics.start(),
            )
            ready(address)
            self._notifier.ready()
            self._connect()
            while not self._stopping.wait(LOOK_S):
                self._show()
                self._watch()
        except HungError:
            raise  # what hangs would hold up a tidy end as well
        except BaseException:
            self._end()
            raise
        self._end()

    def stop(self) -> None:
        """Ask the agent to end; safe in a signal handler."""
        self._stopping.set()

    def _rest(self) -> None:
        self._host.rest()
        trim_memory()

    def _loop_silent_s(self) -> float:
        return self._clock.monotonic() - self._loop.looked_at

    def _watch(self) -> None:
        for what in self._host.call_off(self._settings.hang_s * CALL_OFF_SHARE):
            log.warning("an inference of %s does not end and is called off", what)
        hangs = self._watchdog.look()
        if hangs and hangs.partition(" for ")[0] != self._hung.partition(" for ")[0]:
            log.critical("%s: this agent hangs and is not kept alive", hangs)
            self._teller.event("hung", hangs)
        self._hung = hangs
        if hangs and self._notifier.watchdog_s is None:
            raise HungError(hangs)

    def _connect(self) -> None:
        if self._identity is None:
            return
        settings = self._settings
        self._connection = Connection(
            ConnectionParts(
                boot_id=self._boot.boot_id,
                clock=self._clock,
                identities=self._identities,
                identity=self._identity,
                spool=self._spool,
                loop=self._loop,
                teller=self._teller,
                capabilities=self._capabilities,
                show=self._board.update,
                poll_s=settings.poll_s,
                seals=Apart(),
                orders=self._beside.ordered,
                orders_refused=self._beside.orders_refused,
                engine_refused=self._beside.engine_refused,
                engine_taken=self._beside.engine_taken,
            )
        )
        self._connection.start()

    def _show(self) -> None:
        known = self._loop.generations()
        models = [self._model_facts(s) for s in self._loop.states()]
        self._board.update(
            desired_generation=known.taken,
            applied_generation=known.applied,
            unacknowledged=len(self._spool.pending(1000)),
            models=models,
            compiling=under_way(self._settings.state_dir / COMPILED),
        )
        self._tidy.look((models, self._server.requests()))
        runs = ", ".join(f"{m['model']}:{m['version']} {m['rung']}" for m in models if m["version"])
        up = self._connection is not None and self._connection.is_up
        self._notifier.status(
            f"serves {runs or 'no model yet'}; {'connected' if up else 'not connected'}"
        )

    def _model_facts(self, state: ModelState) -> dict[str, object]:
        status, serving = self._loop.status(state), self._host.serving(state.model)
        return {
            "model": state.model,
            "version": status.version if status else "",
            "rung": status.rung if status else "",
            "rung_reason": status.rung_reason if status else "nothing answers",
            "phase": state.phase.value,
            "reason": state.reason,
            "remarks": serving.remarks if serving else (),
            "previous": state.previous.release.version if state.previous else "",
        }

    def _end(self) -> None:
        log.info("ending; requests in flight are answered")
        self._notifier.stopping()
        self._metrics.stop()
        self._http.stop(DRAIN_S)
        self._server.stop(DRAIN_S)
        self._beside.stop()
        if self._connection is not None:
            self._connection.stop()
        STARTING.end()  # nobody waits for what compiles now: the next start does it anew
        self._loop.stop()
        self._probe.stop()
        self._host.close()
        self._board.remove()
        with contextlib.suppress(StoreError):
            self._boot.end_clean()
