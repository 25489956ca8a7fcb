"""gRPC's length-prefixed messages, put together from whatever pieces come.

The body of a message is read straight into its buffer where the connection can do so (`room`).
Refuses messages over the limit before their bytes come, and what it cannot unpack.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from agent.serve.http2.buffers import Buffers, FullError

PREFIX_BYTES = 5
# As much as is believed of a length before its bytes come.
_FIRST_BYTES = 1024 * 1024
_STEP_BYTES = 1024 * 1024
ENCODINGS = ("identity", "deflate", "gzip")
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS | 16}


class MessageFault(Exception):  # noqa: N818 - ends a call, never a program
    """What was sent is no message that is taken: the call ends with `code`."""

    def __init__(self, code: grpc.StatusCode, why: str) -> None:
        super().__init__(why)
        self.code = code


def _full() -> MessageFault:
    return MessageFault(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "too many bytes of requests wait here already; try again later",
    )


@dataclass(slots=True)
class Message:
    """The first `size` bytes of a buffer that goes back to its pool."""

    buffer: bytearray
    size: int
    compressed: bool

    def view(self) -> memoryview:
        """What was sent."""
        return memoryview(self.buffer)[: self.size]

    def unpacked(self, encoding: str, limit: int, buffers: Buffers) -> bytearray:
        """What was packed, counted as out of `buffers` by its length. MessageFault."""
        bits = _WINDOW_BITS.get(encoding)
        if bits is None:
            raise MessageFault(
                grpc.StatusCode.UNIMPLEMENTED,
                f"messages packed as {encoding!r} are not taken; use one of {', '.join(ENCODINGS)}",
            )
        unpacker = zlib.decompressobj(bits)
        found = bytearray()
        data: memoryview | bytes = self.view()
        try:
            while data and not unpacker.eof:
                piece = unpacker.decompress(data, _STEP_BYTES)
                data = unpacker.unconsumed_tail
                if not piece:
                    break
                buffers.reserve(len(piece))
                found += piece
                if len(found) > limit:
                    raise too_large(len(found), limit)
            if not unpacker.eof:
                raise MessageFault(grpc.StatusCode.INTERNAL, "a packed message is cut off")
        except zlib.error as error:
            buffers.free(len(found))
            raise MessageFault(
                grpc.StatusCode.INTERNAL, f"a message is not packed as {encoding}: {error}"
            ) from error
        except FullError:
            buffers.free(len(found))
            raise _full() from None
        except BaseException:
            buffers.free(len(found))
            raise
        return found


def too_large(size: int, limit: int) -> MessageFault:
    """The refusal of a message."""
    return MessageFault(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"received message larger than max ({size} vs. {limit})",
    )


class Assembler:
    """The messages of one call, in order."""

    __slots__ = ("_body", "_buffers", "_compressed", "_filled", "_limit", "_prefix", "_size")

    def __init__(self, buffers: Buffers, limit: int) -> None:
        self._buffers = buffers
        self._limit = limit
        self._prefix = bytearray()
        self._body: bytearray | None = None
        self._size = self._filled = 0
        self._compressed = False

    @property
    def is_between(self) -> bool:
        """Whether no message has begun and not ended."""
        return self._body is None and not self._prefix

    @property
    def size(self) -> int:
        """Bytes of the message that is being read, as far as it has said."""
        return self._size if self._body is not None else 0

    def room(self) -> memoryview | None:
        """Where the next bytes of the body belong, when a body is being read. MessageFault."""
        if self._body is None:
            return None
        if self._filled == len(self._body) < self._size:
            self._grow(self._body)
        return memoryview(self._body)[self._filled : self._size]

    def filled(self, count: int) -> Message | None:
        """So many bytes were read into `room`; gives the message that they end."""
        self._filled += count
        if self._body is None or self._filled < self._size:
            return None
        found = Message(self._body, self._size, self._compressed)
        self._body = None
        self._prefix.clear()
        return found

    def take(self, piece: memoryview) -> Iterator[Message]:
        """More bytes of any kind. MessageFault for what is not taken."""
        while piece:
            if self._body is None:
                need = PREFIX_BYTES - len(self._prefix)
                self._prefix += piece[:need]
                piece = piece[need:]
                if len(self._prefix) < PREFIX_BYTES:
                    return
                self._begin()
            room = self.room()
            assert room is not None
            count = min(len(room), len(piece))
            room[:count] = piece[:count]
            room.release()
            piece = piece[count:]
            message = self.filled(count)
            if message:
                yield message

    def drop(self) -> None:
        """Give back what an unfinished message holds."""
        if self._body is not None:
            self._buffers.give(self._body)
            self._body = None

    def _begin(self) -> None:
        self._size = int.from_bytes(self._prefix[1:], "big")
        self._filled = 0
        self._compressed = bool(self._prefix[0])
        if self._size > self._limit:
            raise too_large(self._size, self._limit)
        try:
            self._body = self._buffers.take(min(self._size, _FIRST_BYTES))
        except FullError:
            raise _full() from None

    def _grow(self, body: bytearray) -> None:
        """Twice as much as has come: who announces megabytes has to send them."""
        more = min(self._size, 2 * len(body)) - len(body)
        try:
            self._buffers.reserve(more)
        except FullError:
            raise _full() from None
        body.extend(bytes(more))
