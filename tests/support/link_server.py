"""A controller's end of the wire for tests of `agent.link`: real gRPC, real TLS, scripted answers.

Holds no rule of the product beyond what a script says; where the real controller can run, use it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from cryptography import x509

from controller.trust.authority import Authority, Identity, read_request
from controller.trust.names import Role, Subject
from controller.trust.signing import Signer
from controller.trust.tokens import Token
from lighterman.v1 import (
    common_pb2,
    device_pb2,
    device_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
)

HOSTS = ("127.0.0.1", "localhost")
LIFE_S = 3600.0
CHUNK = 4096


def now() -> datetime:
    """Wall time; tests are an edge."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Trust:
    """An authority, a server identity, a signing key."""

    authority: Authority
    server: Identity
    signer: Signer

    @classmethod
    def create(cls) -> "Trust":
        """Fresh ones."""
        authority = Authority.create(now())
        server = authority.new_identity(Subject(Role.SERVER, "server"), now(), LIFE_S, HOSTS)
        return cls(authority, server, Signer.create())

    def device(self, name: str, life_s: float = LIFE_S) -> Identity:
        """A device's key and certificate."""
        return self.authority.new_identity(Subject(Role.DEVICE, name), now(), life_s)

    def token(self, secret: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") -> str:
        """An enrolment token that names this authority."""
        return Token(secret, self.authority.fingerprint).text()


@dataclass(slots=True)
class Script:
    """What the server answers and what it was asked. Locks are for the tests' patience only."""

    manifest: bytes = b""
    generation: int = 0
    signatures: list[device_pb2.Signed] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fetched: list[tuple[str, int]] = field(default_factory=list)
    cut_after: int | None = None
    stall_after: int | None = None
    hellos: list[device_pb2.HelloRequest] = field(default_factory=list)
    enrolled: list[enrollment_pb2.EnrollRequest] = field(default_factory=list)
    last_seq: dict[str, int] = field(default_factory=dict)
    stored: list[device_pb2.Envelope] = field(default_factory=list)
    renewed: list[bytes] = field(default_factory=list)
    fail: dict[str, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    fail_after: dict[str, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    retry_after_s: float = 0.0
    protocol: int = 1
    mqtt_endpoint: str = "127.0.0.1:1"
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, envelope: device_pb2.Envelope) -> int:
        """Store what is contiguous, as the wire's contract says; gives the last one stored."""
        with self.lock:
            last = self.last_seq.get(envelope.boot_id, 0)
            if envelope.seq == last + 1:
                self.stored.append(envelope)
                last = self.last_seq[envelope.boot_id] = envelope.seq
            return last


class LinkServer:
    """Both listeners on free loopback ports."""

    def __init__(self, trust: Trust, script: Script | None = None, port: int = 0) -> None:
        self.trust = trust
        self.script = script or Script()
        self._mutual = grpc.server(ThreadPoolExecutor(8))
        self._enrol = grpc.server(ThreadPoolExecutor(4))
        device_pb2_grpc.add_DeviceServiceServicer_to_server(_Device(self), self._mutual)
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(_Enrol(self), self._enrol)
        chain = trust.server.issued.pem + trust.authority.certificate_pem
        pair = [(trust.server.key_pem, chain)]
        ca = trust.authority.certificate_pem
        self.port = self._mutual.add_secure_port(
            f"127.0.0.1:{port}", grpc.ssl_server_credentials(pair, ca, True)
        )
        self.enrol_port = self._enrol.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(pair)
        )
        self._mutual.start()
        self._enrol.start()

    @property
    def grpc_endpoint(self) -> str:
        """host:port of the mutual listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """What people type at enrolment."""
        return f"https://127.0.0.1:{self.enrol_port}"

    def stop(self) -> None:
        """Cut everything."""
        self.script.released.set()
        self._mutual.stop(0).wait()
        self._enrol.stop(0).wait()

    def set_manifest(self, body: dict[str, Any]) -> bytes:
        """Sign and publish a manifest."""
        data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        self.script.manifest, self.script.generation = data, body["generation"]
        self.script.signatures = [
            device_pb2.Signed(key_id=s.key_id, signature=s.signature)
            for s in self.trust.signer.sign(data)
        ]
        return data

    def add_blob(self, data: bytes) -> str:
        """Offer a file; gives its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.script.blobs[digest] = data
        return digest


class _Enrol(enrollment_pb2_grpc.EnrollmentServiceServicer):
    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._issued: dict[str, bytes] = {}

    def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: grpc.ServicerContext
    ) -> enrollment_pb2.EnrollResponse:
        script, trust = self._server.script, self._server.trust
        script.enrolled.append(request)
        if script.retry_after_s:
            context.set_trailing_metadata((("retry-after-s", str(script.retry_after_s)),))
        _fail(script.fail.get("Enroll"), context)
        key = read_request(request.csr_pem)
        device_id = request.device_id or "given-1"
        known = self._issued.get(request.token_secret)
        if known is None:
            known = trust.authority.issue(Subject(Role.DEVICE, device_id), key, now(), LIFE_S).pem
            self._issued[request.token_secret] = known
        elif x509.load_pem_x509_certificate(known).public_key() != key:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token is used up")
        _fail(script.fail_after.pop("Enroll", None), context)
        return enrollment_pb2.EnrollResponse(
            protocol=script.protocol,
            device_id=device_id,
            project="default",
            certificate_pem=known,
            ca_pem=trust.authority.certificate_pem,
            signing_keys=[
                enrollment_pb2.SigningKey(key_id=k.key_id, public_key=k.public_key)
                for k in trust.signer.public_keys()
            ],
            grpc_endpoint=self._server.grpc_endpoint,
            mqtt_endpoint=script.mqtt_endpoint,
        )


class _Device(device_pb2_grpc.DeviceServiceServicer):
    def __init__(self, server: LinkServer) -> None:
        self._server = server

    def Hello(
        self, request: device_pb2.HelloRequest, context: grpc.ServicerContext
    ) -> device_pb2.HelloResponse:
        script = self._server.script
        _fail(script.fail.get("Hello"), context)
        script.hellos.append(request)
        answer = device_pb2.HelloResponse(
            protocol=script.protocol,
            desired_generation=script.generation,
            mqtt_endpoint=script.mqtt_endpoint,
            profile="generic-x86-64",
        )
        answer.now.FromDatetime(now())
        return answer

    def GetOrders(
        self, request: device_pb2.GetOrdersRequest, context: grpc.ServicerContext
    ) -> device_pb2.Orders:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older controller")

    def FindEngine(
        self, request: device_pb2.FindEngineRequest, context: grpc.ServicerContext
    ) -> device_pb2.Engine:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older controller")

    def PublishEngine(
        self, request: Iterator[device_pb2.PublishEngineRequest], context: grpc.ServicerContext
    ) -> device_pb2.Engine:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older controller")

    def GetDesired(
        self, request: device_pb2.GetDesiredRequest, context: grpc.ServicerContext
    ) -> device_pb2.DesiredState:
        script = self._server.script
        _fail(script.fail.get("GetDesired"), context)
        if script.generation in (0, request.known_generation):
            return device_pb2.DesiredState(generation=script.generation, unchanged=True)
        return device_pb2.DesiredState(
            generation=script.generation, manifest=script.manifest, signatures=script.signatures
        )

    def FetchBlob(
        self, request: common_pb2.FetchBlobRequest, context: grpc.ServicerContext
    ) -> Iterator[common_pb2.BlobChunk]:
        script = self._server.script
        _fail(script.fail.get("FetchBlob"), context)
        data = script.blobs[request.digest]
        script.fetched.append((request.digest, request.offset))
        at, sent = request.offset, 0
        while at < len(data):
            size = min(CHUNK, len(data) - at)
            if script.cut_after is not None:
                size = min(size, script.cut_after - sent)
                if size <= 0:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            if script.stall_after is not None and sent >= script.stall_after:
                script.released.wait(30)
                return
            first = len(data) if sent == 0 else 0
            yield common_pb2.BlobChunk(data=data[at : at + size], offset=at, total_bytes=first)
            at, sent = at + size, sent + size

    def Report(
        self, request: device_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> device_pb2.Ack:
        script = self._server.script
        _fail(script.fail.get("Report"), context)
        last = 0
        for envelope in request.envelopes:
            last = script.take(envelope)
        return device_pb2.Ack(boot_id=request.envelopes[0].boot_id, seq=last)

    def Renew(
        self, request: device_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> device_pb2.RenewResponse:
        script, trust = self._server.script, self._server.trust
        _fail(script.fail.get("Renew"), context)
        script.renewed.append(request.csr_pem)
        names: Any = context.auth_context()["x509_common_name"]
        name = next(iter(names)).decode()
        issued = trust.authority.issue(
            Subject(Role.DEVICE, name), read_request(request.csr_pem), now(), LIFE_S
        )
        return device_pb2.RenewResponse(
            certificate_pem=issued.pem, ca_pem=trust.authority.certificate_pem
        )


def _fail(said: tuple[grpc.StatusCode, str] | None, context: grpc.ServicerContext) -> None:
    if said is not None:
        context.abort(*said)


def later(seconds: float) -> datetime:
    """A time to come."""
    return now() + timedelta(seconds=seconds)
