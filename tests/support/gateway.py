"""A controller for tests: its services over a real store, or the whole of it on free ports.

Also small clients that speak the real wire: devices over gRPC and MQTT. Asserts nothing.
"""

import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from controller.app import Controller, Listening
from controller.blobs.blobs import Blobs
from controller.ids import RandomIds
from controller.services.agenda import Agenda
from controller.services.context import Ctx, Deps, Limits
from controller.services.objects import load_shipped
from controller.services.samples import SampleWindow
from controller.settings import Settings
from controller.store.session import Store, migrate
from controller.trust.authority import Authority, Identity
from controller.trust.names import Role, Subject
from controller.trust.signing import Signer
from examples.fleet.ports import free_ports
from lighterman.v1 import device_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc, fleet_pb2_grpc

NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


def new_csr(curve: ec.EllipticCurve | None = None) -> tuple[bytes, bytes]:
    """A certificate request and its key, both PEM."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whatever")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return request.public_bytes(serialization.Encoding.PEM), pem


@dataclass(slots=True)
class Desk:
    """Services over a real SQLite store, at a time that a test moves."""

    deps: Deps
    now: datetime = NOW
    woken: int = 0

    def ctx(self, actor: str = "ana") -> Ctx:
        """The context of a call now."""
        return Ctx(self.now, RandomIds(), actor)

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)


@contextmanager
def open_desk(folder: Path, limits: Limits | None = None) -> Iterator[Desk]:
    """A desk with its own database, authority and shipped profiles."""
    url = f"sqlite:///{folder}/desk.db"
    migrate(url)
    store = Store.open(url)
    desk: Desk

    def wake() -> None:
        desk.woken += 1

    desk = Desk(
        Deps(
            store=store,
            blobs=Blobs(folder / "blobs"),
            authority=Authority.create(NOW),
            signer=Signer.create(),
            samples=SampleWindow(),
            limits=limits or Limits(),
            agenda=Agenda(lambda urgent: wake()),
            wake=wake,
        )
    )
    load_shipped(desk.deps, desk.ctx())
    try:
        yield desk
    finally:
        store.close()


def free_settings(folder: Path, **changes: Any) -> Settings:
    """Settings on free ports, without a worker."""
    grpc_port, enroll, mqtt, web = free_ports(4)
    base = Settings(
        data_dir=folder,
        listen_grpc=grpc_port,
        listen_enroll=enroll,
        listen_mqtt=mqtt,
        listen_web=web,
        workers=0,
        sample_flush_s=0.2,
        enroll_per_minute=1000,
    )
    return replace(base, **changes)


@dataclass(frozen=True, slots=True)
class Context:
    """A context file as read."""

    controller: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes


def read_context(path: Path) -> Context:
    """What `serve` and `operator issue` write."""
    document = json.loads(path.read_bytes())
    return Context(
        document["controller"],
        *(document[name].encode() for name in ("ca_pem", "certificate_pem", "key_pem")),
    )


def channel(context: Context, address: str | None = None) -> grpc.Channel:
    """A mutual TLS channel."""
    credentials = grpc.ssl_channel_credentials(
        context.ca_pem, context.key_pem, context.certificate_pem
    )
    return grpc.secure_channel(address or context.controller, credentials)


@dataclass(slots=True)
class Running:
    """A controller in this process and how to reach it."""

    controller: Controller
    listening: Listening
    folder: Path
    channels: list[grpc.Channel] = field(default_factory=list)

    @property
    def deps(self) -> Deps:
        """Its dependencies, to look at what was stored."""
        return self.controller._deps

    def ctx(self, actor: str = "test") -> Ctx:
        """The context of a call now."""
        return self.controller.new_ctx(actor)

    def keep(self, made: grpc.Channel) -> grpc.Channel:
        """Close this channel at the end."""
        self.channels.append(made)
        return made

    def fleet(self) -> Any:
        """FleetService as the local operator."""
        context = read_context(self.folder / "operator.json")
        return fleet_pb2_grpc.FleetServiceStub(self.keep(channel(context)))

    def enrolment(self) -> Any:
        """EnrollmentService with server TLS only."""
        ca = (self.folder / "ca.pem").read_bytes()
        made = grpc.secure_channel(self.listening.enroll, grpc.ssl_channel_credentials(ca))
        return enrollment_pb2_grpc.EnrollmentServiceStub(self.keep(made))

    def enrol(self, device_id: str, token: str, **more: Any) -> "DeviceClient":
        """A new device that holds its certificate."""
        csr, key = new_csr()
        request = enrollment_pb2.EnrollRequest(
            protocol_min=1,
            protocol_max=1,
            token_secret=token.split(".")[1],
            device_id=device_id,
            csr_pem=csr,
            **more,
        )
        answer = self.enrolment().Enroll(request, timeout=10)
        context = Context(answer.grpc_endpoint, answer.ca_pem, answer.certificate_pem, key)
        return DeviceClient(answer.device_id, context, answer.mqtt_endpoint, self)


@contextmanager
def running(folder: Path, **changes: Any) -> Iterator[Running]:
    """A whole controller in this process, ended at the end."""
    controller = Controller(free_settings(folder, **changes), contexts=False)
    listening = controller.start()
    started = Running(controller, listening, folder)
    try:
        yield started
    finally:
        for one in started.channels:
            one.close()
        controller.stop()


@dataclass(slots=True)
class DeviceClient:
    """An enrolled device: a certificate and where to go with it."""

    device_id: str
    context: Context
    mqtt_endpoint: str
    home: Running

    def api(self) -> Any:
        """DeviceService as this device."""
        return device_pb2_grpc.DeviceServiceStub(self.home.keep(channel(self.context)))


def client_context(folder: Path, context: Context) -> ssl.SSLContext:
    """A TLS context for MQTT; `folder` takes the key for a moment."""
    made = ssl.create_default_context(cadata=context.ca_pem.decode())
    file = folder / f"identity-{threading.get_ident()}-{id(context)}.pem"
    file.write_bytes(context.certificate_pem + context.key_pem)
    made.load_cert_chain(file)
    file.unlink()
    return made


def context_of(identity: Identity, authority: Authority) -> Context:
    """A context for a certificate that was issued directly."""
    return Context("", authority.certificate_pem, identity.issued.pem, identity.key_pem)


def identity(authority: Authority, role: Role, name: str, now: datetime | None = None) -> Context:
    """A fresh certificate of any role, good for an hour."""
    at = now or datetime.now(UTC)
    return context_of(authority.new_identity(Subject(role, name), at, 3600.0), authority)


class Mqtt:
    """A foreign MQTT client that notes what it is told. `version` 4 is 3.1.1, 5 is 5."""

    def __init__(
        self,
        context: ssl.SSLContext,
        client_id: str = "",
        version: int = 4,
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self.arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connected = threading.Event()
        self.refused = threading.Event()
        self.lost = threading.Event()
        self.reasons: list[str] = []
        kind = MQTTProtocolVersion.MQTTv5 if version == 5 else MQTTProtocolVersion.MQTTv311
        more: dict[str, Any] = {} if version == 5 else {"clean_session": clean}
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=kind,
            reconnect_on_failure=False,
            **more,
        )
        client.tls_set_context(context)
        if will is not None:
            client.will_set(will[0], will[1], qos=1)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _c, _d, m: self.arrived.put((m.topic, bytes(m.payload)))
        self.client = client

    def open(self, port: int, timeout_s: float = 15.0) -> bool:
        """Connect; False when the broker or TLS refused (and then it is closed)."""
        done = self._open(port, timeout_s)
        if not done:
            self.close()
        return done

    def _open(self, port: int, timeout_s: float) -> bool:
        try:
            self.client.connect("127.0.0.1", port, keepalive=20)
        except (OSError, ssl.SSLError):
            return False
        self.client.loop_start()
        waited = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if self.connected.is_set():
                return True
            if self.refused.is_set() or self.lost.is_set():
                return False
            waited.wait(0.02)
        return False

    def close(self) -> None:
        """Disconnect and end the thread."""
        self.client.disconnect()
        self.client.loop_stop()
        left = self.client.socket()
        if left is not None:
            left.close()

    def subscribe(self, *filters: str) -> None:
        """Ask for topics; what comes is in `arrived`."""
        for one in filters:
            self.client.subscribe(one, qos=1)

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish and wait for the broker's word."""
        info = self.client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc == paho.MQTT_ERR_SUCCESS:
            info.wait_for_publish(5.0)

    def topics(self) -> list[str]:
        """Topics of everything that arrived so far."""
        return [topic for topic, _ in list(self.arrived.queue)]

    def _on_connect(self, _c: Any, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        self.reasons.append(str(code))
        (self.refused if code.is_failure else self.connected).set()

    def _on_disconnect(self, _c: Any, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        self.reasons.append(str(code))
        self.lost.set()


def broker_files(
    authority: Authority, acl: str, revoked: Mapping[str, datetime] | None = None
) -> Callable[[], Mapping[str, bytes]]:
    """What a broker needs besides its configuration."""
    now = datetime.now(UTC)
    server = authority.new_identity(
        Subject(Role.SERVER, "server"), now, 3600.0, ["127.0.0.1", "localhost"]
    )
    crl = authority.revocation_list(list((revoked or {}).items()), now, 3600.0)
    return lambda: {
        "ca.pem": authority.certificate_pem,
        "server.pem": server.issued.pem + authority.certificate_pem,
        "server.key": server.key_pem,
        "crl.pem": crl,
        "acl": acl.encode(),
    }
