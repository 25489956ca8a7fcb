"""Client of BuildService, the worker's only way to the controller. Wire types stop here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from controller.domain.device import Capabilities
from controller.errors import LightermanError, RefusedError, UnavailableError
from controller.worker.identity import Identity
from lighterman.v1 import build_pb2, build_pb2_grpc, common_pb2

CALL_S = 10.0
TRANSFER_S = 600.0
CHUNK_BYTES = 1024**2
MAX_MESSAGE_BYTES = 8 * 1024**2
FETCH_ATTEMPTS = 5

# Codes that a later attempt may cure.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True)
class JobInput:
    """An artifact that a job reads."""

    role: str
    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job in our hands."""

    job_id: str
    lease: str
    spec_json: str
    inputs: tuple[JobInput, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim: a job, or when to ask again."""

    job: ClaimedJob | None
    retry_after_s: float


class BuildClient:
    """Calls of one worker.

    Every method raises UnavailableError when the controller does not answer, and RefusedError with
    its words when it says no.
    """

    def __init__(self, identity: Identity, controller: str = "") -> None:
        credentials = grpc.ssl_channel_credentials(
            identity.ca_pem, identity.key_pem, identity.certificate_pem
        )
        self._name = identity.name
        self._channel = grpc.secure_channel(
            controller or identity.controller,
            credentials,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.keepalive_time_ms", 20_000),
            ],
        )
        self._stub = build_pb2_grpc.BuildServiceStub(self._channel)

    def close(self) -> None:
        """End all calls."""
        self._channel.close()

    def claim(self, host: Capabilities) -> Claim:
        """Ask for work."""
        request = build_pb2.ClaimRequest(worker=self._name, capabilities=_capabilities(host))
        try:
            answer = self._stub.Claim(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise _told(error) from error
        if not answer.HasField("job"):
            return Claim(None, answer.retry_after_s)
        job = answer.job
        inputs = tuple(JobInput(one.role, one.digest, one.length) for one in job.inputs)
        return Claim(ClaimedJob(job.job_id, job.lease, job.spec_json, inputs), 0.0)

    def beat(self, job: ClaimedJob, progress_pct: float, step: str) -> str:
        """A sign of life. Returns why to stop, or nothing."""
        request = build_pb2.HeartbeatRequest(
            job_id=job.job_id, lease=job.lease, progress_pct=progress_pct, step=step
        )
        try:
            answer = self._stub.Heartbeat(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise _told(error) from error
        return (answer.reason or "cancelled by the controller") if answer.cancel else ""

    def fetch(self, digest: str, target: Path) -> None:
        """Append to ``target`` until it is whole; a cut stream goes on at its byte."""
        attempt = 0
        while True:
            offset = target.stat().st_size if target.exists() else 0
            try:
                self._fetch_from(digest, target, offset)
                return
            except grpc.RpcError as error:
                attempt += 1
                told = _told(error)
                if not isinstance(told, UnavailableError) or attempt >= FETCH_ATTEMPTS:
                    raise told from error

    def _fetch_from(self, digest: str, target: Path, offset: int) -> None:
        request = common_pb2.FetchBlobRequest(digest=digest, offset=offset)
        with target.open("ab") as out:
            for chunk in self._stub.FetchBlob(request, timeout=TRANSFER_S):
                out.write(chunk.data)

    def put(self, job: ClaimedJob, digest: str, path: Path) -> None:
        """Bring a result."""
        try:
            self._stub.PutBlob(_upload(job, digest, path), timeout=TRANSFER_S)
        except grpc.RpcError as error:
            raise _told(error) from error

    def complete(
        self,
        job: ClaimedJob,
        *,
        ok: bool,
        result_json: str = "",
        error: str = "",
        last_lines: tuple[str, ...] = (),
    ) -> None:
        """Say how the job ended."""
        request = build_pb2.CompleteRequest(
            job_id=job.job_id,
            lease=job.lease,
            ok=ok,
            result_json=result_json,
            error=error,
            last_lines=last_lines,
        )
        try:
            self._stub.Complete(request, timeout=CALL_S)
        except grpc.RpcError as failed:
            raise _told(failed) from failed


def _upload(job: ClaimedJob, digest: str, path: Path) -> Iterator[build_pb2.PutBlobRequest]:
    header = build_pb2.PutBlobHeader(
        job_id=job.job_id, lease=job.lease, digest=digest, length=path.stat().st_size
    )
    yield build_pb2.PutBlobRequest(header=header)
    with path.open("rb") as stream:
        while data := stream.read(CHUNK_BYTES):
            yield build_pb2.PutBlobRequest(data=data)


def _capabilities(host: Capabilities) -> common_pb2.Capabilities:
    return common_pb2.Capabilities(
        arch=host.arch,
        os=host.os,
        cpu_model=host.cpu_model,
        device_model=host.device_model,
        accelerators=host.accelerators,
        runtimes=dict(host.runtimes),
        memory_bytes=host.memory_bytes,
        disk_bytes=host.disk_bytes,
        agent_version=host.agent_version,
        python=host.python,
        host_simulated=host.host_simulated,
    )


def _told(error: grpc.RpcError) -> LightermanError:
    call: Any = error  # every RpcError of a call is also a Call
    code, details = call.code(), call.details() or ""
    first, *lines = details.splitlines() or [code.name.lower()]
    if code in _PASSING:
        return UnavailableError(f"the controller does not answer: {first}", *lines)
    return RefusedError(first, *lines)
