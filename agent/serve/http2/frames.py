"""Frames of HTTP/2 (RFC 9113) as bytes, and the few header blocks of a gRPC answer.

Refuses to know connections and calls. Answers use static and literal header fields alone (RFC
7541), so that nothing has to be remembered between them.
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
LEAST_FRAME_BYTES = 16384  # what every peer takes, and takes as the default
LEAST_WINDOW = 65535
MOST_WINDOW = 2**31 - 1

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_GIVEN = 0x20

_SETTING = struct.Struct("!HI")
_NUMBER = struct.Struct("!I")


class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """Settings that matter here."""

    HEADER_TABLE_SIZE = 1
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(IntEnum):
    """Error codes."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):  # noqa: N818 - ends a connection, never a program
    """The peer broke the protocol: the connection ends with `code`."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return b"%b%c%c%b%b" % (
        len(payload).to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"), payload,
    )  # fmt: skip


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    body = b"".join(_SETTING.pack(name, value) for name, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, body)


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Names and values; ConnectionFault where the length is no multiple of six."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "settings of an odd length")
    yield from _SETTING.iter_unpack(payload)


def number(payload: bytes) -> int:
    """The only number of a frame; ConnectionFault where there is another length."""
    if len(payload) != _NUMBER.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame of a wrong length")
    return int(_NUMBER.unpack(payload)[0])


def window_update(stream: int, more: int) -> bytes:
    """Room for so many bytes more."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, _NUMBER.pack(more))


def reset(stream: int, code: Code) -> bytes:
    """The end of a stream before its time."""
    return frame(Kind.RST_STREAM, 0, stream, _NUMBER.pack(code))


def goaway(last: int, code: Code, why: str = "") -> bytes:
    """No stream after `last` is looked at."""
    body = _NUMBER.pack(last) + _NUMBER.pack(code) + why.encode()
    return frame(Kind.GOAWAY, 0, 0, body)


def unpadded(flags: int, payload: bytes) -> bytes:
    """A payload without its padding."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "more padding than there is frame")
    return payload[1 : len(payload) - payload[0]]


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that no table remembers."""
    return b"\x00" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,))
    size -= 127
    found = bytearray((127,))
    while size >= 128:
        found.append(size & 127 | 128)
        size >>= 7
    found.append(size)
    return bytes(found)


# `:status: 200` is number 8 of the static table, `content-type` number 31.
OK_HEADERS = b"\x88\x0f\x10" + _length(b"application/grpc") + b"application/grpc"
OK_TRAILERS = literal(b"grpc-status", b"0")


def http_error(status: int) -> bytes:
    """A header block that says that this was no gRPC at all; `:status` is number 8 by name."""
    text = str(status).encode()
    return b"\x08" + _length(text) + text


def trailers(code: int, message: str, more: Iterable[tuple[str, bytes]] = ()) -> bytes:
    """The header block that ends a call."""
    found = literal(b"grpc-status", str(code).encode())
    if message:
        found += literal(b"grpc-message", percent(message))
    for name, value in more:
        found += literal(name.encode(), value)
    return found


def percent(message: str) -> bytes:
    """As gRPC wants `grpc-message`: printable ASCII, everything else and % as %XX."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in message.encode("utf-8", "replace")
    )
