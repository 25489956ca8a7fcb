"""What the headers of a gRPC call say. What is no gRPC gets an HTTP status."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_OWN = (b"te", b"content-type", b"user-agent")
_OWN_PREFIXES = (b":", b"grpc-")


@dataclass(frozen=True, slots=True)
class Request:
    """Path, deadline and what else was sent. `http_status` is not 0 where it is no gRPC call."""

    path: str = ""
    timeout_s: float | None = None
    encoding: str = "identity"
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    http_status: int = 0


def read_request(fields: Iterable[tuple[bytes, bytes]]) -> Request:
    """Read a decoded header list, names in lower case as HTTP/2 wants them."""
    path = method = kind = b""
    timeout_s: float | None = None
    encoding = "identity"
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name == b":path":
            path = value
        elif name == b":method":
            method = value
        elif name == b"content-type":
            kind = value
        elif name == b"grpc-timeout":
            timeout_s = _seconds(value)
        elif name == b"grpc-encoding":
            encoding = value.decode("latin-1")
        elif name not in _OWN and not name.startswith(_OWN_PREFIXES):
            metadata.append(_pair(name, value))
    if method != b"POST":
        return Request(http_status=405)
    if not kind.startswith(b"application/grpc"):
        return Request(http_status=415)
    return Request(path.decode("latin-1"), timeout_s, encoding, tuple(metadata))


def _seconds(value: bytes) -> float | None:
    """Up to eight digits and a unit; anything else sets no deadline."""
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS or not digits.isdigit() or len(digits) > 8:
        return None
    return int(digits) * _UNITS[unit]


def _pair(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    text = name.decode("latin-1")
    if text.endswith("-bin"):
        try:
            return text, base64.b64decode(value + b"=" * (-len(value) % 4))
        except binascii.Error:
            return text, b""
    return text, value.decode("latin-1")
