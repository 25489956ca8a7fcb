"""The connection to the controller: mutual TLS, a deadline on every call, clear refusals."""

import contextlib
import hashlib
import socket
import ssl
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
LOOK_S = 2.0  # for finding out why nobody answered
CALL_S = 60.0
CHUNK_BYTES = 1024 * 1024
CLOCK = SystemClock()
# OpenSSL's numbers of what is wrong with the certificate that the controller shows.
_CERTIFICATE = {
    9: "by this machine's clock its certificate is not valid yet: one of the two clocks is wrong",
    10: "by this machine's clock its certificate has ended: one of the two clocks is wrong",
    62: "its certificate is for other names: its setting `advertise` has to name this one",
    64: "its certificate is for other addresses: its setting `advertise` has to name this one",
}


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
            with socket.create_connection((host.strip("[]"), int(port)), LOOK_S) as open_port:
                return self._refusal(open_port, host.strip("[]"))
        except socket.gaierror:
            return f"no address for {host}"
        except TimeoutError:
            return "no answer to the connection attempt"
        except OSError as error:
            return (error.strerror or str(error)).lower()

    def _refusal(self, open_port: socket.socket, host: str) -> str:
        """Why TLS fails, as far as the certificate of the other side tells."""
        tls = ssl.create_default_context(cadata=self.context.ca_pem)
        tls.set_alpn_protocols(["h2"])
        try:
            with tls.wrap_socket(open_port, server_hostname=host) as secure:
                # Without a certificate a controller that lives hangs up at once.
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    secure.recv(1)
                return (
                    "it does not take this context's certificate: expired, or one of the two"
                    " clocks is wrong"
                )
        except TimeoutError:
            return (
                f"the port is open, and nothing answered there in {LOOK_S:.0f} s: the controller"
                " hangs or is overloaded, or the network drops what is sent"
            )
        except ssl.SSLCertVerificationError as error:
            said = _CERTIFICATE.get(error.verify_code)
            if said is not None:
                return said
        except (OSError, ssl.SSLError):
            pass
        return "the port is open, but TLS fails: another controller, or a new certificate authority"

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
