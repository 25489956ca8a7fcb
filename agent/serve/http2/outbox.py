"""What a connection has to say: written at once where the socket takes it, by whoever says it.

Keeps the peer's windows: a message larger than its window waits in its stream's turn. Safe for
threads; refuses to know calls.
"""

import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.serve.http2 import frames
from agent.serve.http2.frames import Code, ConnectionFault, Kind

_MOST_UNREAD_BYTES = 8 * 1024 * 1024  # of answers, to pings as well, that a peer does not read
_PIECE_BYTES = 256 * 1024
_STALLED_S = 60.0
_THE_END = frames.END_HEADERS | frames.END_STREAM


@dataclass(slots=True)
class Out:
    """One stream's way out: its window, what waits for it, and the trailers after that."""

    window: int
    waiting: deque[memoryview] = field(default_factory=deque)
    trailers: bytes | None = None
    begun: bool = False
    over: bool = False


class Outbox:
    """The sending half of a connection."""

    def __init__(self, sock: socket.socket, wake: Callable[[], None]) -> None:
        """`wake` is called when the socket takes no more: `flush` is wanted when it does."""
        self._sock = sock
        self._wake = wake
        self._moved = threading.Condition()
        self._raw: deque[memoryview] = deque()
        self._raw_bytes = 0
        self._streams: dict[int, Out] = {}
        self._window = frames.LEAST_WINDOW
        self._first_window = frames.LEAST_WINDOW
        self._frame_bytes = frames.LEAST_FRAME_BYTES
        self._closed = False

    # -- from the reading side ---------------------------------------------------------------------

    def opened(self, stream: int) -> None:
        """A stream began."""
        with self._moved:
            self._streams[stream] = Out(self._first_window)

    def control(self, data: bytes) -> None:
        """A frame that no window holds back."""
        with self._moved:
            if self._raw_bytes > _MOST_UNREAD_BYTES:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "answers are not read")
            self._write(data)

    def apply(self, name: int, value: int) -> None:
        """A setting of the peer."""
        with self._moved:
            if name == frames.Setting.INITIAL_WINDOW_SIZE:
                if value > frames.MOST_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window is too large")
                more = value - self._first_window
                self._first_window = value
                for out in self._streams.values():
                    out.window += more
                self._pump_all()
            elif name == frames.Setting.MAX_FRAME_SIZE:
                if not frames.LEAST_FRAME_BYTES <= value < 2**24:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame size that is none")
                self._frame_bytes = value

    def widened(self, stream: int, more: int) -> None:
        """The peer takes so many bytes more, on one stream or (0) on all."""
        with self._moved:
            if not stream:
                self._window += more
                if not more or self._window > frames.MOST_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window is no number")
                self._pump_all()
            elif out := self._streams.get(stream):
                out.window += more
                if not more or out.window > frames.MOST_WINDOW:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window is no number")
                self._pump(stream, out)

    def forget(self, stream: int) -> None:
        """The peer has reset a stream."""
        with self._moved:
            out = self._streams.pop(stream, None)
            if out:
                out.over = True
            self._moved.notify_all()

    def close(self) -> None:
        """The connection is gone: nothing will be said any more."""
        with self._moved:
            self._closed = True
            for out in self._streams.values():
                out.over = True
            self._streams.clear()
            self._raw.clear()
            self._moved.notify_all()

    def flush(self) -> bool:
        """The socket takes more; True when all is written. OSError where the peer is gone."""
        with self._moved:
            while self._raw:
                first = self._raw[0]
                try:
                    sent = self._sock.send(first)
                except (BlockingIOError, InterruptedError):
                    return False
                self._raw_bytes -= sent
                if sent == len(first):
                    self._raw.popleft()
                else:
                    self._raw[0] = first[sent:]
            self._pump_all()
            self._moved.notify_all()
            return not self._raw

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be written."""
        with self._moved:
            return not self._raw and not any(out.waiting for out in self._streams.values())

    # -- from the calls ----------------------------------------------------------------------------

    def put(self, stream: int, message: bytes, last: bytes | None = None) -> bool:
        """A message, and with `last` the trailers of a call that ends with it.

        Waits while the one before it is not taken. False when the stream is over.
        """
        with self._moved:
            out = self._streams.get(stream)
            while out and out.waiting and not out.over:
                if not self._moved.wait(_STALLED_S):
                    return False
            if out is None or out.over:
                return False
            head = b""
            if not out.begun:
                head = frames.frame(Kind.HEADERS, frames.END_HEADERS, stream, frames.OK_HEADERS)
                out.begun = True
            whole = b"\x00" + len(message).to_bytes(4, "big") + message
            if last is not None and len(whole) <= min(out.window, self._window, self._frame_bytes):
                # The usual answer: one write.
                self._window -= len(whole)
                del self._streams[stream]
                out.over = True
                whole = frames.frame(Kind.DATA, 0, stream, whole)
                self._write(head + whole + frames.frame(Kind.HEADERS, _THE_END, stream, last))
                return True
            if head:
                self._write(head)
            out.waiting.append(memoryview(whole))
            out.trailers = last
            self._pump(stream, out)
            return True

    def refill(self, stream: int, count: int) -> None:
        """The peer may send so many bytes more on a stream that is not over."""
        with self._moved:
            if stream in self._streams:
                self._write(frames.window_update(stream, count))

    def finish(self, stream: int, block: bytes) -> None:
        """Trailers after what waits; alone they are the whole answer."""
        with self._moved:
            out = self._streams.get(stream)
            if out is None:
                return
            out.trailers = block if out.begun else frames.OK_HEADERS + block
            self._pump(stream, out)

    # -- with the lock held ------------------------------------------------------------------------

    def _pump_all(self) -> None:
        for stream, out in list(self._streams.items()):
            self._pump(stream, out)

    def _pump(self, stream: int, out: Out) -> None:
        moved = False
        while out.waiting and not self._raw:
            most = min(out.window, self._window, self._frame_bytes, _PIECE_BYTES)
            if most <= 0:
                break
            piece = out.waiting[0][:most]
            out.window -= len(piece)
            self._window -= len(piece)
            if len(piece) == len(out.waiting[0]):
                out.waiting.popleft()
                moved = True
            else:
                out.waiting[0] = out.waiting[0][len(piece) :]
            self._write(frames.frame(Kind.DATA, 0, stream, bytes(piece)))
        if not out.waiting and out.trailers is not None:
            self._write(frames.frame(Kind.HEADERS, _THE_END, stream, out.trailers))
            self._streams.pop(stream, None)
            out.over = moved = True
        if moved:
            self._moved.notify_all()

    def _write(self, data: bytes) -> None:
        if self._closed:
            return
        if not self._raw:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                return  # the reading side sees it, too, and closes
            if sent == len(data):
                return
            data = data[sent:]
        self._raw.append(memoryview(data))
        self._raw_bytes += len(data)
        self._wake()
