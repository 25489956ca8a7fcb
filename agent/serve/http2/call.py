"""One call: what a handler sees of it (the context), and how it is run and answered.

Handlers are gRPC's own (`grpc.RpcMethodHandler`), so that they serve over either stack. Refuses to
know frames and windows: a `Line` carries what is said.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import grpc

from agent.serve.http2.buffers import Buffers
from agent.serve.http2.messages import Message, MessageFault, too_large


class Line(Protocol):
    """What a call needs of its connection."""

    peer: str

    def say(self, stream: int, message: bytes) -> bool:
        """Send a message; waits while the peer takes none. False when the call is over."""
        ...

    def end(self, stream: int, message: bytes | None, code: grpc.StatusCode, details: str) -> None:
        """Send a last message and the status."""
        ...

    def refill(self, stream: int, count: int) -> None:
        """The peer may send so many bytes more on this stream."""
        ...


class AbortedError(Exception):
    """A handler ended its call."""


class Call:
    """Also the context a handler gets: the part of `grpc.ServicerContext` that is used here."""

    def __init__(
        self,
        line: Line,
        stream: int,
        path: str,
        handler: Any,
        *,
        buffers: Buffers,
        limit: int,
        metadata: tuple[tuple[str, Any], ...],
        deadline: float | None,
        clock: Callable[[], float],
    ) -> None:
        """`deadline` is a time of `clock`, in seconds; `limit` is of bytes of one message."""
        self.stream = stream
        self.path = path
        self.handler = handler
        self.encoding = "identity"
        self._line = line
        self._buffers = buffers
        self._limit = limit
        self._metadata = metadata
        self._deadline = deadline
        self._clock = clock
        self._come = threading.Condition()
        self._messages: deque[Message] = deque()
        self._complete = False
        self._over = False
        self._status: tuple[grpc.StatusCode, str] = (grpc.StatusCode.OK, "")
        self._callbacks: list[Callable[[], None]] = []
        self._held: Message | None = None  # what `prepare` has read the request from
        self._unpacked = 0  # bytes that are counted as out besides
        self._claimed = False
        self._request: Any = None
        self.begun_at = clock()  # when it was complete, or began to come

    # -- what the connection tells -----------------------------------------------------------------

    def received(self, message: Message) -> None:
        """A message came."""
        with self._come:
            if not self._over:
                self._messages.append(message)
                self._come.notify()
                return
        self._buffers.give(message.buffer)

    def half_closed(self) -> None:
        """No more will come."""
        with self._come:
            self._complete = True
            self._come.notify()

    def cancel(self) -> bool:
        """The peer has lost interest, or its connection; also gRPC's name for ending it here."""
        with self._come:
            if self._over:
                return False
            self._over = True
            callbacks, self._callbacks = self._callbacks, []
            left = list(self._messages)
            self._messages.clear()
            self._come.notify_all()
            claimed = self._claimed
        for message in left:
            self._buffers.give(message.buffer)
        if not claimed:
            self.release()
        for callback in callbacks:
            callback()
        return True

    @property
    def is_claimed(self) -> bool:
        """Whether a thread works on it, which gives back what the call holds."""
        return self._claimed

    # -- the context -------------------------------------------------------------------------------

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with this status."""
        self._status = (code, details)
        raise AbortedError

    def is_active(self) -> bool:
        """Whether somebody still waits for an answer."""
        return not self._over

    def time_remaining(self) -> float | None:
        """Seconds until the peer gives up; None where it never does."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Called when the call ends. False when it has."""
        with self._come:
            if self._over:
                return False
            self._callbacks.append(callback)
        return True

    def peer(self) -> str:
        """Who asks."""
        return self._line.peer

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        """Headers that are not gRPC's own."""
        return self._metadata

    # -- running -----------------------------------------------------------------------------------

    def prepare(self) -> Any:
        """Read the request of a unary call before it is run. None: there is none, `run` says so.

        For who decides by it where it is run, in the thread that cancels: a packed one is not read
        there. `run`, or `is_wanted`, `release` and `reply`, have to come afterwards.
        """
        self.begun_at = self._clock()
        with self._come:
            if not self._messages or self._messages[0].compressed:
                return None
            message = self._messages[0]
        try:
            self._request = self._read(message.view())
        except MessageFault:
            return None  # once more in `run`, which tells
        with self._come:
            self._held = self._messages.popleft()
        return self._request

    def release(self) -> None:
        """The request that was prepared is needed no more."""
        held, self._held, self._request = self._held, None, None
        if held is not None:
            self._buffers.give(held.buffer)
        unpacked, self._unpacked = self._unpacked, 0
        self._buffers.free(unpacked)

    def reply(self, message: bytes | None, code: grpc.StatusCode, details: str = "") -> None:
        """Answer without a handler; the request was released or never prepared."""
        self._end(message, code, details)

    def is_wanted(self) -> bool:
        """Whether an answer still is: then it is the caller's. One whose time is over is ended."""
        with self._come:
            if self._over:
                return False
            self._claimed = True
        if self._deadline is not None and self._clock() >= self._deadline:
            self.release()
            self._end(None, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            return False
        return True

    def run(self) -> None:
        """Ask the handler and answer, in the thread of a pool; raises nothing."""
        if not self.is_wanted():
            return
        message: bytes | None = None
        try:
            message = self._respond()
            code, details = self._status
        except AbortedError:
            code, details = self._status
        except MessageFault as error:
            code, details = error.code, str(error)
        except Exception as error:  # noqa: BLE001 - a handler's fault must not end the thread of others
            code, details = grpc.StatusCode.UNKNOWN, f"Exception calling application: {error}"
        self.release()
        self._end(message if code is grpc.StatusCode.OK else None, code, details)

    def _end(self, message: bytes | None, code: grpc.StatusCode, details: str) -> None:
        if message is not None and len(message) > self._limit:
            fault = too_large(len(message), self._limit)
            message, code = None, fault.code
            details = str(fault).replace("received", "an answer is a")
        if not self._over:
            self._line.end(self.stream, message, code, details)
        self.cancel()

    def _respond(self) -> bytes | None:
        handler = self.handler
        if not handler.request_streaming:
            return self._respond_unary(handler)
        answers = handler.stream_stream or handler.stream_unary
        found = answers(self._requests(), self)
        if not handler.response_streaming:
            return self._packed(found)
        self._stream(handler, found)
        return None

    def _respond_unary(self, handler: Any) -> bytes | None:
        if self._held is not None:
            return self._packed(handler.unary_unary(self._request, self))
        message = self._next()
        if message is None:
            self.abort(grpc.StatusCode.INTERNAL, "the request ended before its message")
        try:
            found = self._ask(handler, message)
        finally:
            self._buffers.give(message.buffer)
        if not handler.response_streaming:
            answer: bytes = found
            return answer
        self._stream(handler, found)
        return None

    def _ask(self, handler: Any, message: Message) -> Any:
        """In a frame of its own, so that no name here holds a view of the buffer afterwards."""
        request = self._read(self._data(message))
        if handler.response_streaming:
            return handler.unary_stream(request, self)
        return self._packed(handler.unary_unary(request, self))

    def _stream(self, handler: Any, answers: Iterator[Any]) -> None:
        for answer in answers:
            if not self._line.say(self.stream, self._packed(answer)):
                with suppress(AttributeError):
                    answers.close()  # type: ignore[attr-defined]
                raise AbortedError

    def _requests(self) -> Iterator[Any]:
        while (message := self._next()) is not None:
            try:
                # A stream's handler may keep what it was given longer than until the next one.
                data = bytes(self._data(message))
            finally:
                self._buffers.give(message.buffer)
            self._line.refill(self.stream, message.size)
            yield self._read(data)
            self.release()

    def _data(self, message: Message) -> memoryview | bytearray:
        if not message.compressed:
            return message.view()
        found = message.unpacked(self.encoding, self._limit, self._buffers)
        self._unpacked += len(found)
        return found

    def _packed(self, answer: Any) -> bytes:
        pack = self.handler.response_serializer
        found: bytes = answer if pack is None else pack(answer)
        return found

    def _read(self, data: memoryview | bytearray | bytes) -> Any:
        read = self.handler.request_deserializer
        if read is None:
            return data
        try:
            return read(data)
        except Exception as error:  # whatever a reader of foreign bytes raises
            raise MessageFault(
                grpc.StatusCode.INTERNAL, "Exception deserializing request!"
            ) from error

    def _next(self) -> Message | None:
        with self._come:
            while not self._messages and not self._complete and not self._over:
                self._come.wait(self.time_remaining())
                if self.time_remaining() == 0.0:
                    self.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            return self._messages.popleft() if self._messages else None
