"""One connection of the HTTP road: reads a request, has it answered, sends, reads the next.

Bodies are read in place, into one buffer of the length that was told. Every wait for the client has
a deadline. Refuses to know models, and to read ahead of an answer more than one buffer.
"""

import asyncio
from typing import Protocol, cast

from agent.domain.tensor import Buffer
from agent.errors import AgentError, UnavailableError
from agent.serve.errors import WireError
from agent.serve.http_answer import Answer, refuse
from agent.serve.http_head import END, MAX_HEAD_BYTES, Head, parse_head
from agent.serve.lanes import Ticket

IDLE_S = 120.0
HEAD_S = 10.0
BODY_S, LEAST_BYTES_S = 10.0, 1024 * 1024
SEND_S, LINGER_S = 30.0, 2.0
# What may come while a request is being answered, before the client is made to wait.
_AHEAD_BYTES = 128 * 1024
# Pieces that are smaller are cheaper sent as one.
_JOINED_BYTES = 64 * 1024
_FOREVER = float("inf")


class Front(Protocol):
    """What a connection needs of its server; all of it in the thread of the connections."""

    scratch: memoryview

    def now(self) -> float:
        """Seconds, monotonic."""
        ...

    def begin(self, head: Head, body: Buffer, ticket: Ticket) -> Answer | None:
        """Answer a request, or deliver to the ticket later."""
        ...

    def reserve(self, size: int) -> None:
        """Room for a body. UnavailableError when there is none now."""
        ...

    def release(self, size: int) -> None:
        """Give it back."""
        ...

    def opened(self, connection: "Connection") -> bool:
        """A new one; False when there are too many."""
        ...

    def rests(self, connection: "Connection", *, resting: bool) -> None:
        """It waits for its client, or does not any more."""
        ...

    def closed(self, connection: "Connection") -> None:
        """It is gone."""
        ...


class Connection(asyncio.BufferedProtocol):
    """See the module. `deadline` is when the server ends it, seconds of its clock."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._read = b""
        self._bodiless = False
        self._head: Head | None = None
        self._body: bytearray | None = None
        self._got = 0
        self._reserved = 0
        self._turn: _Turn | None = None
        self._keep_alive = True
        self._waits_for_head = False
        self._held_up = False
        self._paused = False
        self._discards = False
        self.deadline = _FOREVER

    # -- what the transport calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self._front.opened(self):
            self._rest()
            return
        self._refuse(WireError(503, "too many connections are open"), "Retry-After: 1\r\n")

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the body itself, or what all heads share."""
        if self._body is not None:
            return memoryview(self._body)[self._got :]
        return self._front.scratch

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""
        if self._discards:
            return
        if self._body is not None:
            self._got += nbytes
            if self._got == len(self._body):
                self._advance()
            return
        self._read += bytes(self._front.scratch[:nbytes])
        if self._turn is None and not self._held_up:
            self._advance()
        elif len(self._read) > _AHEAD_BYTES and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more. What waits for its turn is not wanted; what runs is told."""
        turn = self._turn
        if turn is None or not turn.started:
            return False
        self._keep_alive = False
        return True

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._held_up = True
        self.deadline = self._front.now() + SEND_S

    def resume_writing(self) -> None:
        """It has caught up."""
        self._held_up = False
        if self._turn is None and not self._discards:
            self._rest()
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more."""
        if self._turn is not None:
            self._turn.gone = True
        self._transport = None
        self._drop_body()
        self._front.closed(self)

    # -- requests ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on as far as what was read allows."""
        while self._is_free():
            try:
                request = self._next()
            except AgentError as error:
                self._refuse(error)
                return
            if request is None:
                break
            self._answer(*request)
        if self._paused and self._transport is not None and len(self._read) <= _AHEAD_BYTES:
            self._paused = False
            self._transport.resume_reading()

    def _is_free(self) -> bool:
        """Whether the next request may be looked at."""
        busy = self._turn is not None or self._held_up or self._discards
        return self._transport is not None and not busy

    def _next(self) -> tuple[Head, Buffer] | None:
        """The next whole request; None while it is not here. WireError, UnavailableError."""
        if self._head is None and not self._next_head():
            return None
        head = self._head
        assert head is not None
        body: Buffer
        if self._body is not None:
            if self._got < head.length:
                return None
            body, self._body = self._body, None
        elif len(self._read) >= head.length:
            body, self._read = self._read[: head.length], self._read[head.length :]
        else:
            self._await_body(head)
            return None
        self._head = None
        return head, body

    def _next_head(self) -> bool:
        end = self._read.find(END, 0, MAX_HEAD_BYTES + len(END))
        if end < 0:
            if len(self._read) > MAX_HEAD_BYTES:
                raise WireError(431, f"the head has more than {MAX_HEAD_BYTES} bytes")
            if self._read and not self._waits_for_head:
                self._waits_for_head = True
                self.deadline = self._front.now() + HEAD_S
            return False
        self._waits_for_head = False
        self._front.rests(self, resting=False)
        self._head = parse_head(self._read[: end + len(END)])
        self._read = self._read[end + len(END) :]
        return True

    def _await_body(self, head: Head) -> None:
        self._front.reserve(head.length)
        self._reserved = head.length
        try:
            self._body = bytearray(head.length)
        except MemoryError:
            raise UnavailableError("there is no memory for this request now") from None
        self._got = len(self._read)
        self._body[: self._got] = self._read
        self._read = b""
        self.deadline = self._front.now() + BODY_S + head.length / LEAST_BYTES_S
        if head.awaits_continue and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _answer(self, head: Head, body: Buffer) -> None:
        self._keep_alive = head.keep_alive
        self._bodiless = head.method == "HEAD"
        self.deadline = _FOREVER
        turn = self._turn = _Turn(self)
        answer = self._front.begin(head, body, turn)
        if answer is not None:
            self._turn = None
            self._send(answer)

    def finish(self, answer: Answer) -> None:
        """The answer came later: send it and go on."""
        self._turn = None
        self._send(answer)
        self._advance()

    # -- sending -----------------------------------------------------------------------------------

    def _send(self, answer: Answer) -> None:
        self._drop_body()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        parts = answer.render(self._keep_alive)
        if self._bodiless:
            del parts[1:]  # its length is told all the same; a body would be read as the next head
        if sum(map(len, parts)) <= _JOINED_BYTES:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)
        if not self._keep_alive:
            self._discards = True
            transport.close()
            # What cannot be sent in this time is not sent at all.
            self.deadline = self._front.now() + SEND_S
        elif not self._held_up:
            self._rest()

    def _refuse(self, error: AgentError, fields: str = "") -> None:
        """Answer what cannot be read, and end: nobody knows where the next request begins.

        What the client still sends is thrown away for a while: closed at once, the kernel would
        throw away the answer instead.
        """
        self._keep_alive = False
        self._drop_body()
        self._read, self._head = b"", None
        self._discards = True
        self._front.rests(self, resting=False)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(b"".join(refuse(error, fields).render(keep_alive=False)))
            transport.write_eof()
            self.deadline = self._front.now() + LINGER_S

    def expire(self) -> None:
        """The deadline is over: who is in mid-request is told, everybody else is left."""
        transport = self._transport
        if transport is None:
            return
        if self._body is not None or self._waits_for_head:
            self._waits_for_head = False
            self._refuse(WireError(408, "the request did not come in time"))
        else:
            transport.abort()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def end(self) -> None:
        """The agent ends: at once where nothing is under way, else after the answer."""
        self._keep_alive = False
        if self._turn is None and self._transport is not None:
            self._transport.close()

    def _rest(self) -> None:
        self.deadline = self._front.now() + IDLE_S
        self._waits_for_head = False
        self._front.rests(self, resting=True)

    def _drop_body(self) -> None:
        self._body = None
        if self._reserved:
            self._front.release(self._reserved)
            self._reserved = 0


class _Turn(Ticket):
    """One request of a connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def deliver(self, answer: Answer) -> None:
        """See Ticket."""
        if self.gone:
            return
        try:
            self._connection.finish(answer)
        except Exception:  # noqa: BLE001 - others wait behind this answer for theirs
            self._connection.abort()
