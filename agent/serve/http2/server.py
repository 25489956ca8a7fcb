"""A gRPC server over plain sockets: one thread reads for all connections, a pool answers.

Takes gRPC's own generic handlers, speaks to any client of gRPC. Built for few clients and large
messages: what comes is read into the memory that the handler gets a view of. Refuses TLS (it is for
the device itself) and knows nothing of models.

    GrpcServer(pool, most_calls=256, limit=64 MiB, most_bytes=256 MiB)
    .add_generic_rpc_handlers((handlers,))
    .listen(sock)          # a listening socket, TCP or Unix; as many as wanted
    .start()
    .stop(grace_s)         # no new calls; those that run have so long
"""

import errno
import os
import resource
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agent.serve.http2.buffers import Buffers
from agent.serve.http2.call import Call
from agent.serve.http2.connection import Connection
from agent.serve.http2.frames import ConnectionFault
from agent.serve.http2.reader import SCRATCH_BYTES

_MOST_STREAMING = 64
_MOST_CONNECTIONS = 1024
_FILES_SHARE = 4  # one in so many files of the process may be a connection here
_QUIET_S = 10.0  # then memory is not kept for the next request
_LOOK_EVERY_S = 1.0
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class _Details:
    """What gRPC's generic handlers ask for."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


class GrpcServer:
    """See the module."""

    def __init__(
        self,
        pool: Executor,
        *,
        clock: Callable[[], float],
        most_calls: int = 256,
        limit: int = 64 * 1024 * 1024,
        most_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        """`limit` is of one message, `most_bytes` of all that wait, in bytes."""
        self.buffers = Buffers(most_bytes)
        self.limit = limit
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.clock = clock
        self._pool = pool
        self._places: dict[str, Callable[[Call], None]] = {}
        self._most_calls = most_calls
        self._handlers: list[Any] = []
        self._known: dict[str, Any] = {}
        self._listeners: list[socket.socket] = []
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._streaming = 0
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wanting: deque[Connection] = deque()
        self._stopping: float | None = None
        self._closed = self._told = False
        self._asked: deque[Callable[[], None]] = deque()
        self._paused: list[socket.socket] = []
        self._looked_at = self._busy_at = 0.0
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_connections = max(1, min(_MOST_CONNECTIONS, files // _FILES_SHARE))
        self._thread = threading.Thread(target=self._loop, name="grpc", daemon=True)

    # -- from outside ------------------------------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """As `grpc.Server` does."""
        self._handlers += handlers

    def place(self, path: str, begin: Callable[[Call], None]) -> None:
        """Have calls of this unary method begun by `begin`, in the reading thread.

        It reads the request (`prepare`) and sees that `run`, or `release` and `reply`, are called.
        """
        self._places[path] = begin

    def listen(self, sock: socket.socket) -> None:
        """Accept on this socket, which listens already, and close it in the end."""
        sock.setblocking(False)
        self._listeners.append(sock)

    def start(self) -> None:
        """Begin to accept."""
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        for sock in self._listeners:
            self._selector.register(sock, selectors.EVENT_READ)
        self._thread.start()

    def ask(self, task: Callable[[], None]) -> None:
        """Have the reading thread give the pool a task: its end shows that both work."""
        self._asked.append(task)
        self._wake()

    def stop(self, grace_s: float = 0.0) -> None:
        """Take no new calls, wait for those that run at most `grace_s`, close everything."""
        self._stopping = self.clock() + grace_s
        if self._thread.ident:
            self._wake()
            self._thread.join(grace_s + _LOOK_EVERY_S)
        else:
            self._close_all()

    # -- for connections ---------------------------------------------------------------------------

    def handler(self, path: str) -> Any | None:
        """See `Host`."""
        found = self._known.get(path)
        if found is None:
            for handlers in self._handlers:
                found = handlers.service(_Details(path))
                if found is not None:
                    self._known[path] = found
                    break
        return found

    def admit(self, call: Call) -> bool:
        """See `Host`."""
        streaming = call.handler.request_streaming or call.handler.response_streaming
        with self._lock:
            if len(self._calls) >= self._most_calls or (
                streaming and self._streaming >= _MOST_STREAMING
            ):
                return False
            self._calls.add(call)
            self._streaming += bool(streaming)
        return True

    def start_call(self, call: Call) -> None:
        """Run it: in the pool, or in a thread of its own when it may last for ever."""
        if call.handler.request_streaming or call.handler.response_streaming:
            threading.Thread(target=self.run, args=(call,), name="stream", daemon=True).start()
            return
        begin = self._places.get(call.path)
        if begin is not None:
            begin(call)
            return
        self.submit(call)

    def submit(self, call: Call) -> None:
        """Run it in the pool."""
        try:
            self._pool.submit(self.run, call)
        except RuntimeError:  # the pool was shut down
            call.cancel()
            self.left(call)

    def left(self, call: Call) -> None:
        """See `Host`."""
        with self._lock:
            if call in self._calls:
                self._calls.remove(call)
                self._streaming -= bool(
                    call.handler.request_streaming or call.handler.response_streaming
                )

    def wants_write(self, connection: Connection) -> None:
        """See `Host`."""
        self._wanting.append(connection)
        self._wake()

    def run(self, call: Call) -> None:
        """Run it here."""
        try:
            call.run()
        finally:
            self.left(call)

    def _wake(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    # -- the reading thread ------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not self._is_over():
                for key, events in self._selector.select(self._wait_s()):
                    self._handle(key, events)
                self._serve_wanting()
                self._serve_asked()
                self._look()
        finally:
            self._close_all()

    def _is_over(self) -> bool:
        if self._stopping is None:
            return False
        if not self._told:
            self._told = True
            self._go_away()
        self._close_done()
        return not self._connections or self.clock() >= self._stopping

    def _serve_asked(self) -> None:
        while self._asked:
            # A pool that has just been shut down takes nothing, and needs no watching either.
            with suppress(RuntimeError):
                self._pool.submit(self._asked.popleft())

    def _wait_s(self) -> float | None:
        if self._stopping is not None:
            return max(0.0, min(0.05, self._stopping - self.clock()))
        return _LOOK_EVERY_S if self._connections or self._paused else None

    def _handle(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fd == self._wake_fd:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        elif isinstance(key.data, Connection):
            self._serve(key.data, events)
        elif isinstance(key.fileobj, socket.socket):
            self._accept(key.fileobj)

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and connection.writable():
                self._watch(connection, writes=False)
            if events & selectors.EVENT_READ and not connection.readable():
                self._close(connection)
        except ConnectionFault as fault:
            with suppress(ConnectionFault):  # who reads nothing is not told either
                connection.fault(fault)
            self._close(connection)
        except Exception:  # noqa: BLE001 - one peer's bytes must not end the thread of all
            self._close(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in _NO_MORE:  # it would be asked for again and again
                self._selector.unregister(listener)
                self._paused.append(listener)
            return
        if len(self._connections) >= self._most_connections and not self._make_room():
            sock.close()
            return
        sock.setblocking(False)
        peer = "unix:"
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = (
                f"{'ipv6' if sock.family == socket.AF_INET6 else 'ipv4'}:{address[0]}:{address[1]}"
            )
        connection = Connection(sock, peer, self)
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _make_room(self) -> bool:
        """Close who has rested longest."""
        resting = [one for one in self._connections.values() if one.is_resting]
        if not resting:
            return False
        self._close(min(resting, key=lambda one: one.heard_at))
        return True

    def _watch(self, connection: Connection, *, writes: bool) -> None:
        if connection.writes != writes:
            connection.writes = writes
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writes else 0)
            self._selector.modify(connection.sock, events, connection)

    def _serve_wanting(self) -> None:
        while self._wanting:
            connection = self._wanting.popleft()
            if self._connections.get(connection.sock.fileno()) is connection:
                self._watch(connection, writes=True)

    def _look(self) -> None:
        """Close who began something and went silent."""
        now = self.clock()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        while self._paused:
            self._selector.register(self._paused.pop(), selectors.EVENT_READ)
        for connection in list(self._connections.values()):
            if connection.is_late(now):
                self._close(connection)
        if self._calls:
            self._busy_at = now
        elif now - self._busy_at > _QUIET_S:
            self.buffers.trim()

    def _go_away(self) -> None:
        for listener in self._listeners:
            if listener not in self._paused:
                self._selector.unregister(listener)
            listener.close()
        self._paused.clear()
        for connection in list(self._connections.values()):
            try:
                connection.go_away()
            except ConnectionFault:
                self._close(connection)

    def _close_done(self) -> None:
        for connection in list(self._connections.values()):
            with suppress(ConnectionFault):
                if not connection.is_done:
                    continue
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        number = connection.sock.fileno()
        if self._connections.pop(number, None):
            self._selector.unregister(connection.sock)
            connection.close()

    def _close_all(self) -> None:
        for connection in list(self._connections.values()):
            self._close(connection)
        for listener in self._listeners:
            listener.close()
        self._selector.close()
        with self._lock:
            self._closed = True  # its number may be another file's soon
            os.close(self._wake_fd)
