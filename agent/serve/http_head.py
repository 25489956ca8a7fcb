"""The head of an HTTP/1.1 request, parsed by httptools (llhttp) alone: nothing is guessed twice.

Refuses heads whose lengths are not plain: chunked bodies, two of the lengths that matter, numbers
that are none. Pure functions of bytes.
"""

from dataclasses import dataclass

import httptools

from agent.serve.desk import MAX_MESSAGE_BYTES
from agent.serve.errors import WireError

END = b"\r\n\r\n"
MAX_HEAD_BYTES = 16 * 1024
_MOST_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Head:
    """What matters of a head. `json_bytes` is the Inference-Header-Content-Length, None without."""

    method: str
    target: str
    length: int
    json_bytes: int | None
    encoding: str
    keep_alive: bool
    awaits_continue: bool


class _Fields:
    """What the parser calls."""

    __slots__ = ("complete", "fields", "url")

    def __init__(self) -> None:
        self.url = b""
        self.fields: dict[bytes, bytes] = {}
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        if key in self.fields and key in (_LENGTH, _JSON, _CHUNKS, _ENCODING):
            raise ValueError(f"{name.decode('latin-1')} is given twice")
        self.fields[key] = self.fields[key] + b"," + value if key in self.fields else value

    def on_headers_complete(self) -> None:
        self.complete = True


_LENGTH, _JSON = b"content-length", b"inference-header-content-length"
_CHUNKS, _ENCODING = b"transfer-encoding", b"content-encoding"


def parse_head(data: bytes) -> Head:
    """Read a head with its empty line at the end. WireError with the status that fits."""
    found = _Fields()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # what it would like instead is not offered: it is answered as what it is
    except httptools.HttpParserError as error:
        cause = error.__context__ if isinstance(error.__context__, ValueError) else error
        raise WireError(400, f"this is no HTTP request: {cause}") from None
    if not found.complete:
        raise WireError(400, "this is no HTTP request: its head is incomplete")
    fields = found.fields
    if _CHUNKS in fields:
        raise WireError(411, "a body needs a Content-Length", "chunked bodies are not taken")
    length = _number(fields, _LENGTH) or 0
    if length > MAX_MESSAGE_BYTES:
        raise WireError(413, f"a body may have {MAX_MESSAGE_BYTES} bytes, this one has {length}")
    expect = fields.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise WireError(417, "only 100-continue can be expected")
    return Head(
        method=parser.get_method().decode("latin-1"),
        target=found.url.decode("latin-1"),
        length=length,
        json_bytes=_number(fields, _JSON),
        encoding=fields.get(_ENCODING, b"").decode("latin-1").lower(),
        keep_alive=_keeps_alive(parser.get_http_version(), fields.get(b"connection", b"")),
        awaits_continue=bool(expect),
    )


def _keeps_alive(version: str, connection: bytes) -> bool:
    # The parser knows it, but forgets it with the end of a request that has no body.
    words = {word.strip().lower() for word in connection.split(b",")}
    if version == "1.0":
        return b"keep-alive" in words
    return b"close" not in words


def _number(fields: dict[bytes, bytes], key: bytes) -> int | None:
    text = fields.get(key)
    if text is None:
        return None
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        name = key.decode("latin-1")
        raise WireError(400, f"{name} is no number of bytes: {text[:40].decode('latin-1')!r}")
    return int(text)
