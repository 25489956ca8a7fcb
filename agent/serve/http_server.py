"""The HTTP road of the local inference API: TCP and a Unix socket, one thread, no framework.

Refuses to listen beyond what it was told, and to be exhausted: connections, bodies and waits are
bounded, and who keeps a connection without using it makes room for who comes.

    HttpServer(
        desk: agent.serve.desk.Desk,           # the same as the gRPC server's
        listen: str | None = "127.0.0.1:8000", # port 0: a free one
        socket_path: Path | None = None,       # and, or instead, a Unix socket
        socket_mode: int = 0o660,
    )
    .start() -> str                            # where TCP listens; UnavailableError: taken
    .stop(grace_s=10.0)                        # no new requests, those in flight are answered
"""

import asyncio
import contextlib
import resource
import socket
import threading
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import uvloop

from agent.domain.tensor import Buffer
from agent.errors import AgentError, InferenceError, UnavailableError
from agent.serve.desk import MAX_MESSAGE_BYTES, Desk
from agent.serve.http_answer import Answer, refuse
from agent.serve.http_connection import Connection
from agent.serve.http_head import Head
from agent.serve.http_infer import HttpInfer
from agent.serve.http_routes import Routes
from agent.serve.lanes import Ticket
from agent.serve.sockets import UnixListener, tcp_listeners

MOST_CONNECTIONS = 1000
# Files that others of this process need: models, the controller's connections, gRPC's.
_FILES_SHARE = 2
# So many that come in vain are told so at a time; more are closed without a word.
_TURNED_AWAY = 32
_SCRATCH_BYTES = 64 * 1024
_MOST_BODIES_BYTES = 4 * MAX_MESSAGE_BYTES
_LOOK_S = 0.5
_BACKLOG = 512
_START_S = 10.0


class HttpServer:
    """See the module. All but start and stop is for the thread of the connections."""

    def __init__(
        self,
        desk: Desk,
        listen: str | None = "127.0.0.1:8000",
        socket_path: Path | None = None,
        socket_mode: int = 0o660,
    ) -> None:
        self._listen = listen
        self._unix = UnixListener(socket_path, socket_mode) if socket_path else None
        self._routes = Routes(desk)
        self._infer = HttpInfer(desk, self._finished)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._done: deque[tuple[Ticket, Answer]] = deque()
        self._is_woken = False
        self._looks = False
        self._connections: set[Connection] = set()
        self._resting: OrderedDict[Connection, None] = OrderedDict()
        self._empty = asyncio.Event()
        self._bodies_bytes = 0
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(MOST_CONNECTIONS, files // _FILES_SHARE))
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))

    # -- from other threads ------------------------------------------------------------------------

    def start(self) -> str:
        """Listen; gives HOST:PORT, or nothing without TCP. UnavailableError: cannot be had."""
        listeners = tcp_listeners(self._listen, _BACKLOG, "serve.http") if self._listen else []
        address = ""
        if self._listen:
            host = self._listen.rpartition(":")[0]
            address = f"{host}:{listeners[0].getsockname()[1]}"
        try:
            if self._unix is not None:
                listeners.append(self._unix.listen(_BACKLOG))
        except UnavailableError:
            for listener in listeners:
                listener.close()
            raise
        loop = self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="http", daemon=True)
        self._thread.start()

        async def serve() -> None:
            for listener in listeners:
                is_unix = listener.family == socket.AF_UNIX
                create: Any = loop.create_unix_server if is_unix else loop.create_server
                self._servers.append(
                    await create(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
                )

        asyncio.run_coroutine_threadsafe(serve(), loop).result(_START_S)
        return address

    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def stop(self, grace_s: float = 10.0) -> None:
        """Turn new clients away, answer requests in flight for at most `grace_s` seconds."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(grace_s), loop)
        thread.join(grace_s + _START_S)
        self._infer.stop()
        if self._unix is not None:
            self._unix.remove()
        self._loop = self._thread = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    def _finished(self, ticket: Ticket, answer: Answer) -> None:
        """A lane has an answer. One wake-up is enough for all that are there by then."""
        self._done.append((ticket, answer))
        if not self._is_woken:
            self._is_woken = True
            loop = self._loop
            if loop is not None:
                with contextlib.suppress(RuntimeError):  # closed: nobody waits any more
                    loop.call_soon_threadsafe(self._deliver)

    # -- in the thread of the connections ----------------------------------------------------------

    async def _end(self, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.close()
        self._empty.clear()
        for connection in list(self._connections):
            connection.end()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), grace_s)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        loop.stop()

    def _deliver(self) -> None:
        self._is_woken = False
        while self._done:
            ticket, answer = self._done.popleft()
            ticket.deliver(answer)

    def _look(self) -> None:
        now = self.now()
        for connection in [one for one in self._connections if one.deadline < now]:
            connection.expire()
        self._looks = bool(self._connections)
        if self._looks and self._loop is not None:
            self._loop.call_later(_LOOK_S, self._look)

    def now(self) -> float:
        """See Front."""
        assert self._loop is not None
        return self._loop.time()

    def begin(self, head: Head, body: Buffer, ticket: Ticket) -> Answer | None:
        """See Front."""
        try:
            found = self._routes.find(head, body)
            if isinstance(found, Answer):
                return found
            return self._infer.begin(found, head, body, ticket)
        except AgentError as error:
            return refuse(error)
        except Exception as error:  # noqa: BLE001 - a client is owed an answer, whatever it is
            return refuse(InferenceError(f"this agent failed: {type(error).__name__}: {error}"))

    def reserve(self, size: int) -> None:
        """See Front."""
        if self._bodies_bytes + size > _MOST_BODIES_BYTES:
            raise UnavailableError("too many large requests come at once")
        self._bodies_bytes += size

    def release(self, size: int) -> None:
        """See Front."""
        self._bodies_bytes -= size

    def opened(self, connection: Connection) -> bool:
        """See Front. Who has been idle longest makes room."""
        if len(self._connections) >= self._most:
            if not self._resting:
                if len(self._connections) >= self._most + _TURNED_AWAY:
                    connection.abort()
                else:
                    self._connections.add(connection)
                return False
            next(iter(self._resting)).abort()
        self._connections.add(connection)
        if not self._looks and self._loop is not None:
            self._looks = True
            self._loop.call_later(_LOOK_S, self._look)
        return True

    def rests(self, connection: Connection, *, resting: bool) -> None:
        """See Front."""
        self._resting.pop(connection, None)
        if resting:
            self._resting[connection] = None

    def closed(self, connection: Connection) -> None:
        """See Front."""
        self._resting.pop(connection, None)
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
