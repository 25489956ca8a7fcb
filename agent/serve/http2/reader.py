"""Bytes of a connection into frames; the content of DATA frames goes where it belongs at once.

Refuses to know streams: who inherits says where data goes (`room`, `take`) and what other frames
mean (`control`).
"""

import socket
from abc import ABC, abstractmethod

from agent.serve.http2 import frames
from agent.serve.http2.frames import Code, ConnectionFault, Kind

FRAME_BYTES = 1024 * 1024
MOST_HEADER_BYTES = 16 * 1024
SCRATCH_BYTES = 64 * 1024
_READS_AT_ONCE = 16  # then others have their turn


class FrameReader(ABC):
    """The reading half of a connection, for one thread."""

    def __init__(self, sock: socket.socket, scratch: memoryview) -> None:
        """`scratch`, of `SCRATCH_BYTES`, is used during `read` alone: all of a thread share one."""
        self.sock = sock
        self._scratch = scratch
        self._at = self._end = 0
        self._rest = b""  # what came of a frame that is not whole
        self._left = 0  # bytes to come of the DATA frame that is being read
        self._skip = 0  # and of the padding behind them
        self._prefaced = False
        # The stream whose headers are not complete, the flags they began with, and what came.
        self._block: tuple[int, int, bytearray] | None = None

    # -- for who inherits --------------------------------------------------------------------------

    @abstractmethod
    def room(self) -> memoryview | None:
        """Where the data of this frame can be read to directly, when it can."""

    @abstractmethod
    def filled(self, count: int) -> None:
        """So many bytes were read to `room`."""

    @abstractmethod
    def take(self, piece: memoryview) -> None:
        """Data of this frame, to be copied."""

    @abstractmethod
    def begin_data(self, number: int, size: int, flags: int) -> None:
        """A DATA frame begins, `size` bytes with its padding."""

    @abstractmethod
    def data_ended(self) -> None:
        """It is over."""

    @abstractmethod
    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any other frame; headers come whole, as one frame of theirs."""

    # -- reading -----------------------------------------------------------------------------------

    @property
    def is_amid(self) -> bool:
        """Whether something has begun and not ended."""
        return (
            not self._prefaced or bool(self._rest) or bool(self._left) or bool(self._skip)
            or bool(self._block)
        )  # fmt: skip

    def read(self) -> bool:
        """Read what is there. False at the end of the connection; ConnectionFault, OSError."""
        self._at, self._end = 0, len(self._rest)
        self._scratch[: self._end] = self._rest
        try:
            return self._read()
        finally:
            self._rest = bytes(self._scratch[self._at : self._end])

    def _read(self) -> bool:
        for _ in range(_READS_AT_ONCE):
            room = self.room() if self._left and self._at == self._end else None
            if room is not None:
                room = room[: self._left]
            try:
                count = self.sock.recv_into(self._scratch[self._end :] if room is None else room)
            except (BlockingIOError, InterruptedError):
                return True
            if not count:
                return False
            if room is not None:
                room.release()
                self._left -= count
                self.filled(count)
                if not self._left:
                    self.data_ended()
                continue
            self._end += count
            came_all = self._end < SCRATCH_BYTES
            self._parse()
            if came_all and not self._left:
                return True
        return True

    def _parse(self) -> None:
        while self._at < self._end:
            if self._left:
                self._feed()
            elif self._skip:
                count = min(self._skip, self._end - self._at)
                self._skip -= count
                self._at += count
            elif not (self._next_frame() if self._prefaced else self._check_preface()):
                break
        if self._at == self._end:
            self._at = self._end = 0
        elif self._at > SCRATCH_BYTES // 2 or self._end == SCRATCH_BYTES:
            rest = bytes(self._scratch[self._at : self._end])
            self._scratch[: len(rest)] = rest
            self._at, self._end = 0, len(rest)

    def _feed(self) -> None:
        """The part of a DATA frame that is in the scratch already."""
        count = min(self._left, self._end - self._at)
        piece = self._scratch[self._at : self._at + count]
        self._at += count
        self._left -= count
        self.take(piece)
        if not self._left:
            self.data_ended()

    def _check_preface(self) -> bool:
        have = bytes(self._scratch[self._at : self._end][: len(frames.PREFACE)])
        if not frames.PREFACE.startswith(have):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "this is no HTTP/2")
        if len(have) < len(frames.PREFACE):
            return False
        self._at += len(have)
        self._prefaced = True
        return True

    def _next_frame(self) -> bool:
        """Take the next frame from the scratch; False when more of it must come first."""
        if self._end - self._at < frames.HEAD_BYTES:
            return False
        body = self._at + frames.HEAD_BYTES
        head = bytes(self._scratch[self._at : body])
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        number = int.from_bytes(head[5:], "big") & frames.MOST_WINDOW
        if size > FRAME_BYTES:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame is larger than allowed")
        if self._block and (kind != Kind.CONTINUATION or number != self._block[0]):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "headers were not continued")
        if kind == Kind.DATA:
            return self._begin_data(number, size, flags, body)
        if size > MOST_HEADER_BYTES + frames.LEAST_FRAME_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a frame is larger than it needs to be")
        if self._end - body < size:
            return False
        self._at = body + size
        self._whole(kind, flags, number, bytes(self._scratch[body : self._at]))
        return True

    def _begin_data(self, number: int, size: int, flags: int, body: int) -> bool:
        pad = 0
        if flags & frames.PADDED:
            if self._end == body and size:
                return False  # how much padding there is comes first
            pad = self._scratch[body] + 1 if size else 1
            if pad > size:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "more padding than there is frame")
            body += 1
        self._at = body
        self.begin_data(number, size, flags)
        self._left = size - pad
        self._skip = max(0, pad - 1)
        if not self._left:
            self.data_ended()
        return True

    def _whole(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == Kind.HEADERS:
            payload = frames.unpadded(flags, payload)
            if flags & frames.PRIORITY_GIVEN:
                payload = payload[5:]
            if flags & frames.END_HEADERS:
                self.control(kind, flags, number, payload)
            else:
                self._block = (number, flags, bytearray(payload))
        elif kind == Kind.CONTINUATION:
            self._continue(flags, payload)
        else:
            self.control(kind, flags, number, payload)

    def _continue(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a continuation of nothing")
        number, first, block = self._block
        # An empty piece each time would go on for ever.
        if len(block) + len(payload) > MOST_HEADER_BYTES or not payload:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "headers without an end")
        block += payload
        if flags & frames.END_HEADERS:
            self._block = None
            self.control(Kind.HEADERS, first, number, bytes(block))
