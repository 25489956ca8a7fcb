"""An answer of the HTTP road and its bytes. Refuses to send: connections do."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from agent.domain.tensor import Buffer
from agent.errors import AgentError, BusyError, UnavailableError
from agent.serve.errors import status_of
from agent.serve.http_convert import dump_json

JSON, RAW = "application/json", "application/octet-stream"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, further header fields as they are sent, and a body in pieces."""

    status: int
    parts: Sequence[Buffer] = ()
    content_type: str = JSON
    fields: str = ""

    def render(self, keep_alive: bool) -> list[Buffer]:
        """Head and body."""
        length = sum(map(_size, self.parts))
        head = (
            f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, '')}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {length}\r\n{self.fields}"
            f"{'' if keep_alive else 'Connection: close' + chr(13) + chr(10)}\r\n"
        )
        return [head.encode("latin-1", "replace"), *self.parts]


def tell(value: Any, status: int = 200, fields: str = "") -> Answer:
    """A JSON value."""
    return Answer(status, (dump_json(value),), fields=fields)


def refuse(error: AgentError, fields: str = "") -> Answer:
    """`{"error": …}` with the status that fits, and when asking again makes sense."""
    if isinstance(error, UnavailableError):
        fields += f"Retry-After: {error.retry_s if isinstance(error, BusyError) else 1}\r\n"
    return tell({"error": str(error)}, status_of(error), fields)


def _size(part: Buffer) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
