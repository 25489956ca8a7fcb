"""The reading half of one stream, and what a connection needs of its server."""

from collections.abc import Callable
from typing import Any, Protocol

from agent.serve.http2.buffers import Buffers
from agent.serve.http2.call import Call
from agent.serve.http2.messages import Assembler

# A message may take so long, and longer by what it holds.
LEAST_S = 10.0
_LEAST_BYTES_PER_S = 1024 * 1024


class Host(Protocol):
    """What a connection needs of its server."""

    buffers: Buffers
    limit: int
    scratch: memoryview
    clock: Callable[[], float]

    def handler(self, path: str) -> Any | None:
        """The handler of a method; None where there is none."""
        ...

    def admit(self, call: Call) -> bool:
        """Count a call in; False beyond the most."""
        ...

    def start_call(self, call: Call) -> None:
        """Have it run."""
        ...

    def left(self, call: Call) -> None:
        """Count it out."""
        ...

    def wants_write(self, connection: Any) -> None:
        """Its socket takes no more now. From any thread."""
        ...


class Stream:
    """The reading half of one stream."""

    __slots__ = ("assembler", "began_at", "call", "complete", "started")

    def __init__(self, call: Call, assembler: Assembler) -> None:
        self.call = call
        self.assembler = assembler
        self.started = self.complete = False
        self.began_at = 0.0  # when the message began that is being read

    def is_late(self, now: float) -> bool:
        """Whether a message comes more slowly than anybody has to bear."""
        if self.complete or self.assembler.is_between:
            return False
        return now - self.began_at > LEAST_S + self.assembler.size / _LEAST_BYTES_PER_S
