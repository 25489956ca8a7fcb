"""Composition root: settings, store, services, broker, servers, loops. Started and ended in order.

Decides nothing of the fleet; whatever was started is ended, also when a later part fails to start.
"""

import json
import logging
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from controller.api.base import Caller
from controller.api.device import DeviceApi
from controller.api.enrollment import Endpoints, EnrollmentApi, RateLimit
from controller.api.fleet import FleetServicer
from controller.api.server import (
    Listener,
    ServerLimits,
    ServerTls,
    Services,
    make_enrolment_listener,
    make_mutual_listener,
)
from controller.api.worker import BuildServicer
from controller.app_broker import BrokerSide, check_broker
from controller.app_identity import (
    ServerIdentity,
    load_trust,
    write_file,
)
from controller.app_loops import TICK_LEAST_S, Loop, WorkerChild, until, watch_loops
from controller.app_metrics import make_metered
from controller.app_people import write_contexts
from controller.app_ports import keep_ports
from controller.blobs.blobs import Blobs
from controller.clock import Clock, SystemClock
from controller.ids import RandomIds
from controller.mqtt.broker import check_port_free
from controller.services.agenda import Agenda
from controller.services.certificates import check_certificate
from controller.services.context import Ctx, Deps, Limits
from controller.services.jobs import expire_leases
from controller.services.objects import load_shipped
from controller.services.samples import SampleWindow, flush_samples
from controller.services.status import ProcessFacts
from controller.services.tick import tick
from controller.settings import Settings
from controller.store.session import Store, migrate
from controller.trust.names import Role
from controller.web.health import Health, WebServer

log = logging.getLogger("lighterman.app")

WORKER_SEEN_S = 60.0
RENEW_LOOK_S = 3600.0
HOLD_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Listening:
    """Where everything listens, host:port as agents and operators are told."""

    grpc: str
    enroll: str
    mqtt: str
    web: str

    def lines(self) -> tuple[str, ...]:
        """For people who start the controller."""
        return (
            f"grpc    {self.grpc}   devices, operators, workers (mutual TLS)",
            f"enroll  {self.enroll}   enrolment only (server TLS)",
            f"mqtt    {self.mqtt}   devices and consumers (mutual TLS)",
            f"web     https://{self.web}   /healthz /readyz /metrics",
        )


def product_version() -> str:
    """The installed version, or "unknown" beside a bare checkout."""
    try:
        return version("lighterman")
    except PackageNotFoundError:
        return "unknown"


class Controller:
    """One running controller. `start`, then `stop`; both once."""

    def __init__(self, settings: Settings, *, contexts: bool = True) -> None:
        self.settings = settings
        self._contexts = contexts
        self._clock: Clock = SystemClock()
        self._ids = RandomIds()
        self._ended = ExitStack()
        self._tick: Loop | None = None
        self._agenda = Agenda(self._ring)
        self._workers: dict[str, float] = {}
        self._run_dir = settings.data_dir / "run"
        self._loops: tuple[Loop, ...] = ()
        self._started_at = self._clock.now()

    def new_ctx(self, actor: str) -> Ctx:
        """The context of a call that begins now."""
        return Ctx(self._clock.now(), self._ids, actor)

    def start(self) -> Listening:
        """Start all parts. Raises LightermanError, with everything ended that was started."""
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all parts in the reverse order of their start."""
        self._ended.close()

    def _start(self) -> Listening:
        settings = self.settings
        check_broker(settings)  # before anything is made
        self._deps = self._make_deps()  # and with it the lock: the ports before are ours to take
        self.settings = settings = keep_ports(settings)
        self._server = ServerIdentity(self._deps.authority, self._clock, self._host_names())
        self._start_broker()
        health = Health(alive=lambda: watch_loops(self._loops), ready=self._checks)
        metered = make_metered(
            settings, self._deps, self._clock, self._process_facts, self._side.ingest
        )
        self._web = WebServer(settings.listen_host, settings.listen_web, health, metered)
        self._ended.callback(self._web.stop)
        mqtt = self._side.told or self._told(self._side.port)
        grpc, enrolment = self._start_listeners(mqtt)
        self._start_web()
        self._start_loops()
        listening = Listening(
            grpc=self._told(grpc.port),
            enroll=self._told(enrolment.port),
            mqtt=mqtt,
            web=self._told(self._web.port),
        )
        write_file(
            settings.data_dir / "endpoints.json",
            json.dumps(
                {name: getattr(listening, name) for name in ("grpc", "enroll", "mqtt", "web")}
            ).encode("ascii"),
            0o644,
        )
        worker_file, told = write_contexts(
            self._deps,
            self.new_ctx("controller"),
            settings.data_dir,
            listening.grpc,
            register=self._contexts,
        )
        if told:
            log.warning("%s", told)
        if settings.workers:
            self._start_worker(grpc.port, worker_file)
        return listening

    def _make_deps(self) -> Deps:
        settings = self.settings
        store = Store.open(settings.database_url(), settings.data_dir)
        self._ended.callback(store.close)
        migrate(settings.database_url())
        trust = load_trust(settings.data_dir, settings.trust_folder(), self._clock.now())
        blobs = Blobs(settings.data_dir / "blobs")
        blobs.sweep()
        deps = Deps(
            store=store,
            blobs=blobs,
            authority=trust.authority,
            signer=trust.signer,
            engines=trust.engines,
            samples=SampleWindow(),
            limits=Limits(
                job_memory_bytes=settings.job_memory_bytes,
                job_time_s=settings.job_time_s,
                job_lease_s=settings.job_lease_s,
                device_certificate_s=settings.device_certificate_s,
                python_entry_points=settings.python_entry_points == "on",
            ),
            agenda=self._agenda,
            wake=self._wake,
        )
        load_shipped(deps, self.new_ctx("controller"))
        return deps

    def _start_broker(self) -> None:
        settings = self.settings
        port = settings.listen_mqtt
        if not settings.broker_address:
            port = port or free_port(settings.listen_host)
        self._side = BrokerSide(settings, self._deps, self._server, self._clock, self.new_ctx, port)
        self._side.start(self._ended)

    def _start_listeners(self, mqtt: str) -> tuple[Listener, Listener]:
        settings, deps = self.settings, self._deps
        port = settings.listen_grpc or free_port(settings.listen_host)
        told = Endpoints(self._told(port), mqtt)
        for number, what in ((port, "grpc"), (settings.listen_enroll, "enrolment")):
            if number:
                check_port_free(settings.listen_host, number, what)
        services = Services(
            fleet=FleetServicer(deps, self.new_ctx, self._process_facts),
            device=DeviceApi(deps, self.new_ctx, told.mqtt, settings.poll_s),
            build=BuildServicer(deps, self.new_ctx),
        )
        host = settings.listen_host
        grpc = make_mutual_listener(
            f"{host}:{port}", self._tls(), services, self.new_ctx, self._admit, ServerLimits()
        )
        limit = RateLimit(settings.enroll_per_minute, self._clock)
        enrolment = make_enrolment_listener(
            f"{host}:{settings.listen_enroll}",
            self._tls(),
            EnrollmentApi(deps, self.new_ctx, told, limit),
            self.new_ctx,
            ServerLimits(threads=8, concurrent_calls=32, message_bytes=65536),
        )
        for listener in (grpc, enrolment):
            self._ended.callback(listener.stop)
            listener.start()
        return grpc, enrolment

    def _tls(self) -> ServerTls:
        refresher = self._server.refresher()
        return ServerTls(
            ca_pem=self._deps.authority.certificate_pem,
            chain_pem=self._server.chain_pem(),
            key_pem=self._server.current().key_pem,
            refresh=refresher,
        )

    def _admit(self, caller: Caller) -> None:
        check_certificate(
            self._deps,
            self.new_ctx(caller.name),
            caller.role,
            caller.name,
            caller.certificate_pem,
        )
        if caller.role == Role.WORKER:
            self._workers[caller.name] = self._clock.monotonic()

    def _start_web(self) -> None:
        self._renewed = self._server.refresher()
        self._web.start(*self._web_files())

    def _web_files(self) -> tuple[Path, Path]:
        chain, key = self._run_dir / "web.pem", self._run_dir / "web.key"
        write_file(chain, self._server.chain_pem(), 0o644)
        write_file(key, self._server.current().key_pem)
        return chain, key

    def _start_loops(self) -> None:
        deps, settings = self._deps, self.settings

        def tick_once() -> float:
            ctx = self.new_ctx("controller")
            wake_at = tick(deps, ctx, everything=False, told=self._side.doorbells.wake)
            return until(wake_at, self._clock.now())

        def flush_once() -> float:
            flush_samples(deps)
            return settings.sample_flush_s

        def expire_once() -> float:
            expire_leases(deps, self.new_ctx("controller"))
            return min(2.0, settings.job_lease_s / 3)

        def hold_once() -> float:
            deps.store.keep_hold()
            return HOLD_LOOK_S

        loops = (
            Loop("tick", tick_once, self._clock, TICK_LEAST_S),
            Loop("flush", flush_once, self._clock),
            Loop("leases", expire_once, self._clock),
            Loop("certificates", self._renew_once, self._clock),
            Loop("hold", hold_once, self._clock),
        )
        self._tick = loops[0]
        for loop in loops:
            self._ended.callback(loop.stop)
            loop.start()
        self._loops = loops

    def _renew_once(self) -> float:
        """gRPC asks by itself for a newer pair; the broker and the web are told."""
        self._side.renew()
        if self._renewed() is not None:
            self._web.renew(*self._web_files())
            log.info("the listeners present a new certificate")
        return RENEW_LOOK_S

    def _start_worker(self, port: int, identity: Path) -> None:
        address = f"{reachable(self.settings.listen_host)}:{port}"
        child = WorkerChild(
            [
                *("--controller", address, "--identity", str(identity.resolve())),
                *("--log", self.settings.log, "--end-with-stdin"),
            ],
            self._clock,
        )
        self._ended.callback(child.stop)
        child.start()

    def _wake(self) -> None:
        self._agenda.note_all()
        self._ring(urgent=False)

    def _ring(self, urgent: bool) -> None:
        if self._tick is not None:  # else it begins with a look at everything anyway
            self._tick.wake(hurry=urgent)
            self._side.doorbells.wake()

    def _process_facts(self) -> ProcessFacts:
        now = self._clock.monotonic()
        return ProcessFacts(
            version=product_version(),
            started_at=self._started_at,
            broker_ok=self._side.trouble() is None,
            workers=sum(1 for at in list(self._workers.values()) if now - at < WORKER_SEEN_S),
        )

    def _checks(self) -> Mapping[str, str | None]:
        try:
            self._deps.store.check()
            store = None
        except Exception as error:  # noqa: BLE001 - whatever it is, the store is not ready
            store = str(error).splitlines()[0]
        return {"store": store, "broker": self._side.trouble()}

    def _told(self, port: int) -> str:
        name = self.settings.names()[0]
        return f"{socket.gethostname() if name == '0.0.0.0' else name}:{port}"

    def _host_names(self) -> list[str]:
        names = ["localhost", "127.0.0.1", socket.gethostname(), *self.settings.names()]
        return [name for name in dict.fromkeys(names) if name != "0.0.0.0"]


def reachable(host: str) -> str:
    """An address of this machine on which a listener of `host` answers."""
    return "127.0.0.1" if host == "0.0.0.0" else host


def free_port(host: str) -> int:
    """A port that is free now, for those that cannot bind to 0 themselves."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
