"""A small TCP relay with faults: the bad network between two programs that know nothing of it.

Per direction and at run time: delay with jitter, bandwidth, a cut after N bytes, half open (nothing
passes and nobody is told). For both: connections reset, new ones refused or closed at once. What
chance decides (jitter, where a cut falls) follows from the seed, the number of the connection and
the direction alone. Knows no protocol and changes no byte.
"""

import asyncio
import contextlib
import random
import socket
import struct
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CHUNK_BYTES = 64 * 1024
QUEUED_CHUNKS = 64
CONNECT_S = 5.0
SLICE_S = 0.02  # a limited line is fed in slices of this length
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


class Direction(StrEnum):
    """UP: from who connected to the target. DOWN: back."""

    UP = "up"
    DOWN = "down"


class Door(StrEnum):
    """What becomes of a new connection: relayed, refused by the kernel, or taken and closed."""

    OPEN = "open"
    REFUSE = "refuse"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Faults:
    """How one direction treats bytes. Times in seconds, `bytes_per_s` 0: unlimited.

    `cut_after_bytes`: each connection ends once exactly so many bytes (and up to `cut_spread_bytes`
    more, by seed) went this way. `half_open`: nothing passes, an end neither, until it is lifted.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    cut_after_bytes: int | None = None
    cut_spread_bytes: int = 0
    half_open: bool = False


@dataclass(slots=True)
class _Lane:
    """One direction of the proxy: its faults, whether it flows, what passed so far."""

    faults: Faults = Faults()
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    passed_bytes: int = 0

    def set(self, faults: Faults) -> None:
        self.faults = faults
        if faults.half_open:
            self.flows.clear()
        else:
            self.flows.set()


class Proxy:
    """Relays 127.0.0.1:`port` to a target from construction to `close`; usable as a context.

    Its methods may be called from any thread; when they return, the fault is in force.
    """

    def __init__(self, target_host: str, target_port: int, seed: int = 0) -> None:
        self._target = (target_host, target_port)
        self._seed = seed
        self._lanes = {direction: _Lane() for direction in Direction}
        for lane in self._lanes.values():
            lane.set(Faults())
        self._door = Door.OPEN
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()
        self._connections = 0
        # Keeps the port while nobody listens on it: connecting is refused, taking it is not ours.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port: int = self._held.getsockname()[1]
        self._listener: socket.socket | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._open_door())

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- control -----------------------------------------------------------------------------------

    def set(self, faults: Faults, *directions: Direction) -> None:
        """Treat these directions so from now on, open connections too; without a name: both."""
        self._call(self._set(faults, directions or tuple(Direction)))

    def reset(self) -> None:
        """End every open connection with RST; new ones are as welcome as before."""
        self._call(self._reset())

    def cut(self, door: Door = Door.REFUSE) -> None:
        """Reset every connection, and refuse (or take and close) new ones until `restore`."""
        self._call(self._cut(door))

    def restore(self) -> None:
        """A good network again: no faults, open door. What is on its way keeps its delay."""
        self._call(self._restore())

    def close(self) -> None:
        """Stop for good."""
        if self._loop.is_closed():
            return
        self._call(self._cut(Door.REFUSE))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._held.close()

    @property
    def connections(self) -> int:
        """How many connections were relayed so far."""
        return self._connections

    @property
    def open_connections(self) -> int:
        """How many are relayed now."""
        return len(self._tasks)

    def passed_bytes(self, direction: Direction) -> int:
        """Bytes that went this way so far."""
        return self._lanes[direction].passed_bytes

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _set(self, faults: Faults, directions: tuple[Direction, ...]) -> None:
        for direction in directions:
            self._lanes[direction].set(faults)

    async def _reset(self) -> None:
        tasks = list(self._tasks)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut(self, door: Door) -> None:
        self._door = door
        if door is Door.REFUSE:
            await self._close_door()
        elif self._listener is None:
            await self._open_door()
        await self._reset()

    async def _restore(self) -> None:
        await self._set(Faults(), tuple(Direction))
        self._door = Door.OPEN
        if self._listener is None:
            await self._open_door()

    # -- relaying ----------------------------------------------------------------------------------

    async def _open_door(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(1024)
        listener.setblocking(False)
        self._listener = listener
        self._loop.add_reader(listener, self._accept, listener)

    async def _close_door(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # gone again
            return
        if self._door is Door.CLOSE:
            client.close()
            return
        self._connections += 1
        task = self._loop.create_task(self._relay(client, self._connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: client.close())  # also where it never began

    async def _relay(self, client: socket.socket, number: int) -> None:
        upstream = socket.socket()
        pair = (client, upstream)
        self._sockets.update(pair)
        try:
            for sock in pair:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_S):
                await self._loop.sock_connect(upstream, self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(client, upstream, Direction.UP, number))
                both.create_task(self._pump(upstream, client, Direction.DOWN, number))
        except (OSError, TimeoutError, ExceptionGroup):
            pass  # one end is gone or was cut: so is the other
        finally:
            for sock in pair:
                sock.close()
            self._sockets.difference_update(pair)

    async def _pump(
        self, source: socket.socket, sink: socket.socket, way: Direction, number: int
    ) -> None:
        """Relay one direction: what is read waits in line until it is due."""
        chance = random.Random(f"{self._seed}/{number}/{way}")
        spread = chance.random()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
        lane = self._lanes[way]
        async with asyncio.TaskGroup() as line:
            line.create_task(self._read(source, queue, lane, chance))
            line.create_task(self._write(sink, queue, lane, spread))

    async def _read(
        self,
        source: socket.socket,
        queue: asyncio.Queue[tuple[float, bytes]],
        lane: _Lane,
        chance: random.Random,
    ) -> None:
        while True:
            await lane.flows.wait()
            try:
                data = await self._loop.sock_recv(source, CHUNK_BYTES)
            except OSError:
                await lane.flows.wait()  # half open: nobody is told of a reset either
                raise
            faults = lane.faults
            jitter_s = chance.random() * faults.jitter_s
            await queue.put((self._loop.time() + faults.delay_s + jitter_s, data))
            if not data:
                return

    async def _write(
        self,
        sink: socket.socket,
        queue: asyncio.Queue[tuple[float, bytes]],
        lane: _Lane,
        spread: float,
    ) -> None:
        sent = 0
        free_at = 0.0  # when a limited line can take the next slice
        while True:
            due_at, data = await queue.get()
            await asyncio.sleep(due_at - self._loop.time())
            await lane.flows.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            while data:
                rate = lane.faults.bytes_per_s
                limit = _limit(lane.faults, spread)
                piece = min(len(data), max(0, limit - sent))
                if rate > 0:
                    piece = min(piece, max(1, int(rate * SLICE_S)))
                    free_at = max(free_at, self._loop.time()) + piece / rate
                    await asyncio.sleep(free_at - self._loop.time())
                await lane.flows.wait()
                await self._loop.sock_sendall(sink, data[:piece])
                sent += piece
                lane.passed_bytes += piece
                data = data[piece:]
                if sent >= limit:
                    raise ConnectionAbortedError("cut")


def _limit(faults: Faults, spread: float) -> int:
    """After how many bytes this connection ends; `spread` is its own part of chance, 0 to 1."""
    if faults.cut_after_bytes is None:
        return sys.maxsize
    return faults.cut_after_bytes + int(spread * (faults.cut_spread_bytes + 1))
