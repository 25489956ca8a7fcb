"""One connection of HTTP/2: reads what its peer sends and makes calls of it.

Lives in the server's one reading thread; only `say`, `end` and `refill` are called by others.
Refuses whatever breaks the protocol by ending the connection, and whatever is no gRPC call by
ending the stream.
"""

import socket
from collections import deque
from typing import Any

import grpc
from hpack import Decoder, HPACKError, OversizedHeaderListError

from agent.serve.http2 import frames
from agent.serve.http2.call import Call
from agent.serve.http2.frames import Code, ConnectionFault, Kind, Setting
from agent.serve.http2.headers import Request, read_request
from agent.serve.http2.messages import PREFIX_BYTES, Assembler, MessageFault
from agent.serve.http2.outbox import Outbox
from agent.serve.http2.reader import FRAME_BYTES, MOST_HEADER_BYTES, FrameReader
from agent.serve.http2.stream import LEAST_S, Host, Stream

STREAMS = 512
_PING_BYTES = 8
_SILENT_S = 30.0  # with something begun
# A header field that is one number of the table is a byte from here to before there.
_FIRST_NUMBER, _LONG_NUMBER = 0x81, 0xFF
_MOST_KNOWN = 64
_TOO_MANY = "as many calls as are allowed wait here already; try again later"
_MOST_RESETS = 1000  # of calls that had not been answered, between two answers


class Connection(FrameReader):
    """See the module."""

    def __init__(self, sock: socket.socket, peer: str, host: Host) -> None:
        super().__init__(sock, host.scratch)
        self.peer = peer
        self.heard_at = self.opened_at = host.clock()
        self.writes = False  # whether the server waits for the socket to take more
        self._host = host
        self._out = Outbox(sock, lambda: host.wants_write(self))
        self._decoder = Decoder(MOST_HEADER_BYTES)
        self._reading: Stream | None = None  # where they belong; None: nowhere
        self._ends = False  # whether that frame ends its stream
        self._streams: dict[int, Stream] = {}
        self._finished: deque[int] = deque()  # answered by other threads
        self._last = 0
        self._debt = 0
        self._known: dict[bytes, Request] = {}
        self._closing = False
        self._resets = 0
        room = host.limit + 5 + frames.LEAST_WINDOW
        self._out.control(
            frames.settings({
                Setting.INITIAL_WINDOW_SIZE: room,
                Setting.MAX_FRAME_SIZE: FRAME_BYTES,
                Setting.MAX_CONCURRENT_STREAMS: STREAMS,
                Setting.MAX_HEADER_LIST_SIZE: MOST_HEADER_BYTES,
            })
            + frames.window_update(0, room - frames.LEAST_WINDOW)
        )  # fmt: skip

    # -- the reading thread ------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Whether the peer owes something: the rest of what it began, or room for an answer."""
        return (
            self.is_amid
            or not self._out.is_idle
            or any(
                not (stream.complete or stream.assembler.is_between)
                for stream in self._streams.values()
            )
        )  # fmt: skip

    def is_late(self, now: float) -> bool:
        """Whether the peer takes too long for what it has begun."""
        if not self._prefaced:
            return now - self.opened_at > LEAST_S
        if now - self.heard_at > _SILENT_S and self.is_waiting:
            return True
        return any(stream.is_late(now) for stream in self._streams.values())

    @property
    def is_resting(self) -> bool:
        """Whether nothing is under way."""
        return not self._streams and not self.is_waiting

    @property
    def is_done(self) -> bool:
        """Whether it was told to go and nothing is left to do."""
        self._drop_finished()
        return self._closing and not self._streams and self._out.is_idle

    def readable(self) -> bool:
        """Read what is there. False at the end of the connection; ConnectionFault, OSError."""
        self._drop_finished()
        self.heard_at = self._host.clock()
        return self.read()

    def writable(self) -> bool:
        """Write what waits; True when all is."""
        return self._out.flush()

    def go_away(self) -> None:
        """Take no new calls."""
        self._closing = True
        self._out.control(frames.goaway(self._last, Code.NO_ERROR))

    def fault(self, fault: ConnectionFault) -> None:
        """Tell the peer why this is the end."""
        self._out.control(frames.goaway(self._last, fault.code, str(fault)))

    def close(self) -> None:
        """Cancel what runs, give back what is held."""
        self._out.close()
        self._reading = None
        for stream in list(self._streams.values()):
            stream.assembler.drop()
            self._give_up(stream)
        self._streams.clear()
        self.sock.close()

    # -- messages ----------------------------------------------------------------------------------

    def begin_data(self, number: int, size: int, flags: int) -> None:
        """See `FrameReader`."""
        if not number or number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "data of no stream")
        self._reading = self._streams.get(number)
        if self._reading and self._reading.complete:
            raise ConnectionFault(Code.STREAM_CLOSED, "data after the end of its stream")
        self._ends = bool(flags & frames.END_STREAM)
        if self._reading and self._reading.assembler.is_between:
            self._reading.began_at = self.heard_at
        # What is held is bounded by the buffers, not by this window: it never closes.
        self._debt += size
        if self._debt * 2 >= self._host.limit:
            self._out.control(frames.window_update(0, self._debt))
            self._debt = 0

    def room(self) -> memoryview | None:
        """See `FrameReader`."""
        stream = self._reading
        if stream is None:
            return None
        try:
            return stream.assembler.room()
        except MessageFault as error:
            self._refuse(stream, error.code, str(error))
            return None

    def filled(self, count: int) -> None:
        """See `FrameReader`."""
        stream = self._reading
        assert stream is not None
        message = stream.assembler.filled(count)
        if message:
            self._received(stream, message)

    def take(self, piece: memoryview) -> None:
        """See `FrameReader`."""
        stream = self._reading
        if stream is None:
            return
        try:
            for message in stream.assembler.take(piece):
                self._received(stream, message)
                if self._reading is not stream:
                    break  # refused
        except MessageFault as error:
            self._refuse(stream, error.code, str(error))

    def data_ended(self) -> None:
        """See `FrameReader`."""
        stream, self._reading = self._reading, None
        if self._ends and stream:
            self._half_closed(stream)

    def _received(self, stream: Stream, message: Any) -> None:
        if not stream.call.handler.request_streaming and stream.started:
            self._host.buffers.give(message.buffer)
            self._refuse(stream, grpc.StatusCode.INTERNAL, "one message was to come, not several")
            return
        stream.call.received(message)
        self._start(stream)

    def _start(self, stream: Stream) -> None:
        if not stream.started:
            stream.started = True
            call = stream.call
            try:
                self._host.start_call(call)
            except Exception as error:  # noqa: BLE001 - its place and its bytes must not be lost
                call.reply(None, grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
                call.release()
                self._host.left(call)

    def _half_closed(self, stream: Stream) -> None:
        stream.complete = True
        if not stream.assembler.is_between:
            self._refuse(stream, grpc.StatusCode.INTERNAL, "the request is cut off in a message")
            return
        stream.call.half_closed()
        self._start(stream)

    def _refuse(self, stream: Stream, code: grpc.StatusCode, why: str) -> None:
        """End a call from here."""
        number = stream.call.stream
        stream.assembler.drop()
        if self._reading is stream:
            self._reading = None
        if stream.call.is_active():
            self.end(number, None, code, why)
            self._give_up(stream)
        if not stream.complete:
            self._out.control(frames.reset(number, Code.NO_ERROR))
        self._streams.pop(number, None)

    # -- frames of other kinds ---------------------------------------------------------------------

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """See `FrameReader`."""
        if kind == Kind.HEADERS:
            self._opened(flags, number, payload)
        elif kind == Kind.WINDOW_UPDATE:
            self._out.widened(number, frames.number(payload) & frames.MOST_WINDOW)
        elif kind == Kind.SETTINGS:
            self._settings(flags, number, payload)
        elif kind == Kind.PING:
            if len(payload) != _PING_BYTES or number:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a ping of a wrong length")
            if not flags & frames.ACK:
                self._out.control(frames.frame(Kind.PING, frames.ACK, 0, payload))
        elif kind == Kind.RST_STREAM:
            self._reset(number, payload)
        elif kind == Kind.PUSH_PROMISE:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "clients promise nothing")
        # PRIORITY, GOAWAY and what is not known: nothing to do.

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or (flags & frames.ACK and payload):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "settings that are none")
        if flags & frames.ACK:
            return
        for name, value in frames.read_settings(payload):
            self._out.apply(name, value)
        self._out.control(frames.frame(Kind.SETTINGS, frames.ACK, 0))

    def _reset(self, number: int, payload: bytes) -> None:
        frames.number(payload)
        if not number or number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a reset of no stream")
        stream = self._streams.pop(number, None)
        self._out.forget(number)
        if stream is None:
            return
        if self._reading is stream:
            self._reading = None
        stream.assembler.drop()
        if self._give_up(stream):
            self._resets += 1
            if self._resets > _MOST_RESETS:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "calls are begun to be given up")

    def _opened(self, flags: int, number: int, block: bytes) -> None:
        request = self._read_block(block)
        open_stream = self._streams.get(number)
        if open_stream:  # trailers of a client
            if not flags & frames.END_STREAM or open_stream.complete:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "headers in the middle of a stream")
            self._half_closed(open_stream)
            return
        if not number & 1 or number <= self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a stream's number is used or none")
        if self._closing:
            return  # the peer was told that nothing after the last one is looked at
        self._last = number
        if len(self._streams) >= STREAMS:
            self._out.control(frames.reset(number, Code.REFUSED_STREAM))
            return
        self._begin_call(request, number, ended=bool(flags & frames.END_STREAM))

    def _read_block(self, block: bytes) -> Request:
        """A client says the same again and again, each field by its number in the table."""
        known = self._known.get(block)
        if known is not None:
            return known
        try:
            found = read_request(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError as error:
            raise ConnectionFault(
                Code.ENHANCE_YOUR_CALM, f"headers of more than {MOST_HEADER_BYTES} bytes"
            ) from error
        except HPACKError as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, "headers are damaged") from error
        if all(_FIRST_NUMBER <= byte < _LONG_NUMBER for byte in block):
            if len(self._known) < _MOST_KNOWN:
                self._known[block] = found
        else:
            self._known.clear()  # what a number stands for may be another thing now
        return found

    def _begin_call(self, request: Request, number: int, *, ended: bool) -> None:
        self._out.opened(number)
        if request.http_status:
            # Not for gRPC at all: an answer that any client of HTTP/2 understands.
            self._out.control(
                frames.frame(
                    Kind.HEADERS, frames.END_HEADERS | frames.END_STREAM, number,
                    frames.http_error(request.http_status),
                )
            )  # fmt: skip
            self._out.forget(number)
            return
        host = self._host
        handler = host.handler(request.path)
        now = host.clock()
        call = Call(
            self, number, request.path, handler, buffers=host.buffers, limit=host.limit,
            metadata=request.metadata, clock=host.clock,
            deadline=None if request.timeout_s is None else now + request.timeout_s,
        )  # fmt: skip
        call.encoding = request.encoding
        stream = Stream(call, Assembler(host.buffers, host.limit))
        stream.complete = ended
        if handler is None:
            self._refuse(stream, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        if not host.admit(call):
            self._refuse(stream, grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_MANY)
            return
        self._streams[number] = stream
        if ended:
            self._half_closed(stream)
        elif handler.request_streaming:
            self._start(stream)

    def _give_up(self, stream: Stream) -> bool:
        """Cancel a call; one that a thread works on is counted until it has come back."""
        cancelled = stream.call.cancel()
        if not stream.call.is_claimed:
            self._host.left(stream.call)
        return cancelled

    def _drop_finished(self) -> None:
        """Forget what other threads have answered."""
        while self._finished:
            stream = self._streams.pop(self._finished.popleft(), None)
            if stream and not stream.complete:
                stream.assembler.drop()
                if self._reading is stream:
                    self._reading = None
                self._out.control(frames.reset(stream.call.stream, Code.NO_ERROR))

    # -- any thread --------------------------------------------------------------------------------

    def say(self, stream: int, message: bytes) -> bool:
        """See `Line`."""
        return self._out.put(stream, message)

    def end(self, stream: int, message: bytes | None, code: grpc.StatusCode, details: str) -> None:
        """See `Line`."""
        if message is not None:
            self._out.put(stream, message, frames.OK_TRAILERS)
        else:
            self._out.finish(stream, frames.trailers(code.value[0], details))
        self._resets = 0
        self._finished.append(stream)
        if self._closing:
            self._host.wants_write(self)

    def refill(self, stream: int, count: int) -> None:
        """See `Line`."""
        self._out.refill(stream, count + PREFIX_BYTES)
