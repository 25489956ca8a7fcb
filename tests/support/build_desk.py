"""The controller's end of BuildService in memory: real gRPC and TLS, faults that a test asks for.

Holds no rule of the product beyond leases; where the real controller can run, use it.
"""

import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from controller.trust.names import Role, Subject
from lighterman.v1 import build_pb2, build_pb2_grpc, common_pb2
from tests.support.link_server import LIFE_S, Trust, now

CHUNK = 64 * 1024


def digest_of(data: bytes) -> str:
    """As digests are written on the wire."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(slots=True)
class BuildDesk(build_pb2_grpc.BuildServiceServicer):
    """Jobs to hand out, and everything that came back."""

    queue: deque[build_pb2.BuildJob] = field(default_factory=deque)
    blobs: dict[str, bytes] = field(default_factory=dict)
    claims: list[build_pb2.ClaimRequest] = field(default_factory=list)
    beats: list[build_pb2.HeartbeatRequest] = field(default_factory=list)
    fetched: list[tuple[str, int]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    ends: list[build_pb2.CompleteRequest] = field(default_factory=list)
    cancel: str = ""
    void: bool = False
    cut_at: int = 0  # the next stream breaks after so many bytes
    spoil: int = 0  # so many streams carry other bytes
    away: int = 0  # so many completions meet a controller that does not answer
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, spec: dict[str, Any], **inputs: bytes) -> None:
        """Queue a job with its inputs by role."""
        listed = []
        for role, data in inputs.items():
            digest = digest_of(data)
            self.blobs[digest] = data
            listed.append(build_pb2.JobInput(role=role, digest=digest, length=len(data)))
        self.queue.append(
            build_pb2.BuildJob(
                job_id=spec["job_id"],
                lease="l-1",
                lease_s=30,
                spec_json=json.dumps(spec),
                inputs=listed,
            )
        )

    def Claim(
        self, request: build_pb2.ClaimRequest, context: grpc.ServicerContext
    ) -> build_pb2.ClaimResponse:
        """The oldest job, or come back soon."""
        with self.lock:
            self.claims.append(request)
            if not self.queue:
                return build_pb2.ClaimResponse(retry_after_s=0.05)
            return build_pb2.ClaimResponse(job=self.queue.popleft())

    def Heartbeat(
        self, request: build_pb2.HeartbeatRequest, context: grpc.ServicerContext
    ) -> build_pb2.HeartbeatResponse:
        """Noted; a cancel that the test asked for."""
        self.beats.append(request)
        if self.void:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the lease ran out")
        return build_pb2.HeartbeatResponse(cancel=bool(self.cancel), reason=self.cancel)

    def FetchBlob(
        self, request: common_pb2.FetchBlobRequest, context: grpc.ServicerContext
    ) -> Iterator[common_pb2.BlobChunk]:
        """Bytes from an offset, cut or spoiled where the test asked for it."""
        with self.lock:
            self.fetched.append((request.digest, request.offset))
            cut, self.cut_at = self.cut_at, 0
            spoiled = self.spoil > 0
            self.spoil -= spoiled
        data = self.blobs[request.digest]
        for start in range(request.offset, len(data), CHUNK):
            if cut and start >= cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
            part = data[start : start + CHUNK]
            yield common_pb2.BlobChunk(
                data=part[::-1] if spoiled else part, offset=start, total_bytes=len(data)
            )

    def PutBlob(
        self, request_iterator: Iterator[build_pb2.PutBlobRequest], context: grpc.ServicerContext
    ) -> build_pb2.PutBlobResponse:
        """Stored when the bytes are what the header says."""
        header = next(request_iterator).header
        data = b"".join(message.data for message in request_iterator)
        if digest_of(data) != header.digest or len(data) != header.length or header.lease != "l-1":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "other bytes than the header says")
        self.stored[header.digest] = data
        return build_pb2.PutBlobResponse(digest=header.digest)

    def Complete(
        self, request: build_pb2.CompleteRequest, context: grpc.ServicerContext
    ) -> build_pb2.CompleteResponse:
        """Noted, after as many refusals to answer as the test asked for."""
        with self.lock:
            if self.away:
                self.away -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        self.ends.append(request)
        return build_pb2.CompleteResponse()


@contextmanager
def serving(desk: BuildDesk) -> Iterator[tuple[str, Trust]]:
    """The desk behind mutual TLS; yields host:port and who signs certificates."""
    trust = Trust.create()
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    build_pb2_grpc.add_BuildServiceServicer_to_server(desk, server)
    credentials = grpc.ssl_server_credentials(
        [(trust.server.key_pem, trust.server.issued.pem)],
        root_certificates=trust.authority.certificate_pem,
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}", trust
    finally:
        server.stop(0).wait()


def write_identity(trust: Trust, controller: str, path: Path) -> Path:
    """A worker's context file."""
    identity = trust.authority.new_identity(Subject(Role.WORKER, "bench-1"), now(), LIFE_S)
    context = {
        "schema": 1,
        "name": "bench-1",
        "controller": controller,
        "project": "default",
        "ca_pem": trust.authority.certificate_pem.decode(),
        "certificate_pem": identity.issued.pem.decode(),
        "key_pem": identity.key_pem.decode(),
    }
    path.write_text(json.dumps(context), encoding="utf-8")
    return path
