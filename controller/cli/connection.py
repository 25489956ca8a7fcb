"""The connection to the controller: mutual TLS, a deadline on every call, clear refusals."""

import hashlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from controller.cli.contexts import OperatorContext
from controller.cli.problem import EXIT_UNREACHABLE, CliError
from controller.clock import SystemClock
from lighterman.v1 import fleet_pb2, fleet_pb2_grpc

CONNECT_TRIES = 3
CONNECT_TRY_S = 2.0
CALL_S = 60.0
CHUNK_BYTES = 1024 * 1024
CLOCK = SystemClock()


class Connection:
    """One channel to FleetService, opened at the first call."""

    def __init__(self, context: OperatorContext) -> None:
        self.context = context
        self._channel: grpc.Channel | None = None

    @property
    def stub(self) -> Any:
        """The service's stub; connects at the first use. Raises CliError where nobody answers."""
        if self._channel is None:
            self._channel = self._connect()
        return fleet_pb2_grpc.FleetServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connect(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=self.context.ca_pem.encode(),
            private_key=self.context.key_pem.encode(),
            certificate_chain=self.context.certificate_pem.encode(),
        )
        options = [
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            ("grpc.initial_reconnect_backoff_ms", 200),
        ]
        channel = grpc.secure_channel(self.context.controller, credentials, options=options)
        started = CLOCK.monotonic()
        for _ in range(CONNECT_TRIES):
            try:
                grpc.channel_ready_future(channel).result(timeout=CONNECT_TRY_S)
                return channel
            except grpc.FutureTimeoutError:
                continue
        channel.close()
        tried_s = CLOCK.monotonic() - started
        raise CliError(
            f"controller at {self.context.controller} does not answer "
            f"(tried {CONNECT_TRIES} times in {tried_s:.0f} s: {self._cause()})\n"
            f'context "{self.context.name}"; `fleetctl admin context list` shows others',
            EXIT_UNREACHABLE,
        )

    def _cause(self) -> str:
        host, _, port = self.context.controller.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
                return (
                    "the port is open, but TLS fails: another controller, or a new certificate"
                    " authority"
                )
        except socket.gaierror:
            return f"no address for {host}"
        except TimeoutError:
            return "no answer to the connection attempt"
        except OSError as error:
            return (error.strerror or str(error)).lower()

    def upload(self, path: Path, advance: Callable[[int], None]) -> str:
        """Send a file's bytes; returns its digest. ``advance`` is told the bytes of each step."""
        try:
            length = path.stat().st_size
            digest = file_digest(path)
        except OSError as error:
            raise CliError(f"{path} cannot be read: {error.strerror}") from None
        request = _upload_messages(path, digest, length, advance)
        response = self.stub.Upload(request, timeout=max(CALL_S, length / 100_000))
        return str(response.digest)


def file_digest(path: Path) -> str:
    """``sha256:<hex>`` of a file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _upload_messages(
    path: Path, digest: str, length: int, advance: Callable[[int], None]
) -> Iterator[fleet_pb2.UploadRequest]:
    header = fleet_pb2.UploadHeader(digest=digest, length=length, name=path.name)
    yield fleet_pb2.UploadRequest(header=header)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield fleet_pb2.UploadRequest(data=chunk)
            advance(len(chunk))
