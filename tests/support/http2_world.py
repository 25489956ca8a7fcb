"""A server of the inference road's own gRPC with a few methods, and a peer that speaks frames."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from agent.clock import SystemClock
from agent.serve.http2 import frames
from agent.serve.http2.frames import Kind
from agent.serve.http2.server import GrpcServer

SERVICE = "test.Echo"
LIMIT = 4 * 1024 * 1024


@dataclass
class World:
    """The server, and what its methods share with the test."""

    server: GrpcServer
    address: str
    unix: Path
    go: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    @contextmanager
    def channel(self, **options: Any) -> Iterator[Any]:
        """gRPC's own client."""
        found = grpc.insecure_channel(
            self.address,
            [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
             *((name.replace("__", "."), value) for name, value in options.items())],
        )  # fmt: skip
        try:
            yield found
        finally:
            found.close()

    def call(self, data: bytes, method: str = "Echo") -> bytes:
        """One call by gRPC's own client on a channel of its own."""
        with self.channel() as channel:
            found: bytes = channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20)
            return found

    def peer(self) -> "Peer":
        """Somebody who speaks frames."""
        host, _, port = self.address.rpartition(":")
        return Peer(socket.create_connection((host, int(port)), 10))

    # -- methods -----------------------------------------------------------------------------------

    def wait(self, request: bytes, context: Any) -> bytes:
        """Answer when the test says so."""
        context.add_callback(self.ended.release)
        self.entered.release()
        self.go.wait(20)
        return request

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods; requests are copied, except where a test looks at them."""
        unary = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(SERVICE, {
            "Echo": unary(lambda request, _: request, bytes),
            "Wait": unary(self.wait, bytes),
            "Raise": unary(_raise, bytes),
            "Abort": unary(_abort, bytes),
            "Tell": unary(_tell, bytes),
            "Both": grpc.stream_stream_rpc_method_handler(_both, bytes),
            "Sum": grpc.stream_unary_rpc_method_handler(_sum, bytes),
            "Count": grpc.unary_stream_rpc_method_handler(_count, bytes),
        })  # fmt: skip


def _raise(request: bytes, context: Any) -> bytes:
    raise ValueError("nothing of the kind")


def _abort(request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.NOT_FOUND, "no model 'ä%'\nthere is 'b'")
    raise AssertionError


def _tell(request: bytes, context: Any) -> bytes:
    left = context.time_remaining()
    found = {**dict(context.invocation_metadata()), "left": "" if left is None else f"{left:.0f}"}
    return repr(sorted(found.items())).encode()


def _both(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for request in requests:
        yield request.upper()


def _sum(requests: Iterator[bytes], context: Any) -> bytes:
    return str(sum(len(request) for request in requests)).encode()


def _count(request: bytes, context: Any) -> Iterator[bytes]:
    for number in range(int(request)):
        yield str(number).encode()


@contextmanager
def world(root: Path, **options: Any) -> Iterator[World]:
    """Serve on a free port and on a Unix socket."""
    pool = ThreadPoolExecutor(4)
    defaults = {"limit": LIMIT, "clock": SystemClock().monotonic}
    server = GrpcServer(pool, **{**defaults, **options})
    listener = socket.create_server(("127.0.0.1", 0))
    server.listen(listener)
    unix = root / "grpc.sock"
    by_file = socket.socket(socket.AF_UNIX)
    by_file.bind(str(unix))
    by_file.listen()
    server.listen(by_file)
    made = World(server, f"127.0.0.1:{listener.getsockname()[1]}", unix)
    server.add_generic_rpc_handlers((made.handlers(),))
    server.start()
    try:
        yield made
    finally:
        made.go.set()
        server.stop(0.0)
        pool.shutdown()


@dataclass(frozen=True, slots=True)
class Frame:
    """What came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Peer:
    """A client that says exactly what a test wants said."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def hello(self, **values: int) -> "Peer":
        """Preface and settings."""
        given = {frames.Setting[name]: value for name, value in values.items()}
        self.send(frames.PREFACE + frames.settings(given))
        return self

    def send(self, data: bytes) -> None:
        """These bytes."""
        self.sock.sendall(data)

    def frames(self) -> Iterator[Frame]:
        """What comes, until the end."""
        while True:
            head = self._read(frames.HEAD_BYTES)
            if len(head) < frames.HEAD_BYTES:
                return
            payload = self._read(int.from_bytes(head[:3], "big"))
            yield Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    def until(self, kind: Kind, stream: int | None = None) -> Frame:
        """The next frame of a kind."""
        for found in self.frames():
            if found.kind == kind and stream in (None, found.stream):
                return found
        raise AssertionError(f"the connection ended before a {kind.name}")

    def is_over(self) -> bool:
        """Read to the end of the connection."""
        try:
            for _ in self.frames():
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.sock.recv(size - len(found))
            if not piece:
                break
            found += piece
        return found


def headers(method: str = "Echo", *more: tuple[bytes, bytes]) -> bytes:
    """A header block of literals."""
    fields = (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{SERVICE}/{method}".encode()),
        (b":authority", b"here"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        *more,
    )  # fmt: skip
    return b"".join(frames.literal(name, value) for name, value in fields)


def opened(stream: int, method: str = "Echo", flags: int = 0) -> bytes:
    """The HEADERS of a call."""
    return frames.frame(Kind.HEADERS, frames.END_HEADERS | flags, stream, headers(method))


def message(data: bytes) -> bytes:
    """With gRPC's prefix."""
    return b"\0" + len(data).to_bytes(4, "big") + data


def call(stream: int, data: bytes, method: str = "Echo") -> bytes:
    """A whole call."""
    body = frames.frame(Kind.DATA, frames.END_STREAM, stream, message(data))
    return opened(stream, method) + body
