"""An inference over HTTP: in the thread of the connections where that is quick, else in a lane.

What is large is read and written in a lane, too: others must not wait for it. Refuses to send.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import partial

from agent.domain.batching import Waiting
from agent.domain.ports import InferResult
from agent.domain.tensor import Buffer
from agent.errors import AgentError, InferenceError
from agent.serve.desk import MAX_MESSAGE_BYTES, Asked, Desk
from agent.serve.errors import WireError
from agent.serve.http_answer import JSON, RAW, Answer, refuse
from agent.serve.http_convert import HttpRequest, read_request, write_result
from agent.serve.http_head import Head
from agent.serve.http_routes import Infer
from agent.serve.lanes import Item, Lanes, Ticket, Work

# JSON of this size takes about a millisecond to read or write.
_SMALL_BYTES = 32 * 1024
_ENCODINGS = ("gzip", "deflate")
# gzip and zlib, by their first bytes.
_ANY_WINDOW = 32 + zlib.MAX_WBITS


class HttpInfer:
    """Every inference of the HTTP road."""

    def __init__(self, desk: Desk, finished: Callable[[Ticket, Answer], None]) -> None:
        """`finished` gets what a lane answered, in its thread."""
        self._desk = desk
        self._lanes: Lanes[Answer] = Lanes(desk.clock, finished, self)
        desk.served.add_queue(self._lanes.queue)

    def stop(self) -> None:
        """Nobody is waited for."""
        self._lanes.stop()

    def begin(self, infer: Infer, head: Head, body: Buffer, ticket: Ticket) -> Answer | None:
        """The answer, or None: the ticket gets it later."""
        since_s = self._desk.clock.monotonic()
        try:
            if head.encoding or _json_bytes(head, body) > _SMALL_BYTES:
                whole = partial(self._whole, infer, head, body, since_s)
                return self._later(infer.model, ticket, whole, since_s)
            request = read_request(body, head.json_bytes)
            asked = _asked(infer, request, since_s)
            result = self._desk.infer_now(asked)
            if result is None:
                wait = partial(self._infer, asked, request)
                return self._later(infer.model, ticket, wait, since_s, (asked, request))
            if _is_small(request, result):
                return _answer(infer.model, request, result)
            write = partial(_answer, infer.model, request, result)
            return self._later(infer.model, ticket, write, since_s)
        except AgentError as error:
            return self._failed(infer.model, error, since_s)

    def _later(
        self,
        model: str,
        ticket: Ticket,
        work: Work,
        since_s: float,
        read: tuple[Asked, HttpRequest] | None = None,
    ) -> Answer | None:
        """Always None: in a lane, if there is room; with others, where it was `read` already."""
        item = Item(ticket, partial(self._safely, model, work, since_s))
        if read is not None and (kind := self._desk.kind_of(read[0])) is not None:
            item.kind, item.asked, item.rows = kind, read, read[0].rows
        self._lanes.offer(model, self._desk.served.width(model), item)
        return None

    # -- together: see `agent.serve.lanes.Together` ------------------------------------------------

    def count(self, model: str, queue: Sequence[Waiting]) -> int:
        """How many of the first of a queue are answered at once."""
        return self._desk.together(model, queue)

    def answer(
        self, items: Sequence[Item[Answer]], inferred: Callable[[], None]
    ) -> Sequence[Answer]:
        """Answer requests as one batch; in a lane's thread."""
        asked = [item.asked[0] for item in items]
        results: Sequence[InferResult | AgentError]
        try:
            results = self._desk.infer_together(asked)
        except AgentError as error:
            results = [error] * len(items)
        except BaseException as error:  # noqa: BLE001 - whatever a runtime's own code raises
            results = [_failure(error)] * len(items)
        inferred()
        return [
            self._safely(one.model, partial(_written, one, item.asked[1], result), one.since_s)
            for one, item, result in zip(asked, items, results, strict=True)
        ]

    def _safely(self, model: str, work: Work, since_s: float) -> Answer:
        """The answer in any case: who waits is owed one, and the lane its thread."""
        try:
            return work()
        except AgentError as error:
            failure = error
        except MemoryError:
            failure = InferenceError(
                "this agent has no memory for this request", "send less at once, or ask again later"
            )
        except BaseException as error:  # noqa: BLE001 - whatever a runtime's own code raises
            failure = _failure(error)
        # Only now: what the failed work held is free again.
        return self._failed(model, failure, since_s)

    def _whole(self, infer: Infer, head: Head, body: Buffer, since_s: float) -> Answer:
        """All of it in one lane's thread."""
        request = read_request(inflate(body, head.encoding), head.json_bytes)
        return self._infer(_asked(infer, request, since_s), request)

    def _infer(self, asked: Asked, request: HttpRequest) -> Answer:
        waited_s = self._desk.clock.monotonic() - asked.since_s
        result = self._desk.infer(asked, waited_s)
        return _answer(asked.model, request, result)

    def _failed(self, model: str, error: AgentError, since_s: float) -> Answer:
        self._desk.failed(model, error, since_s)
        return refuse(error)


def _written(asked: Asked, request: HttpRequest, result: InferResult | AgentError) -> Answer:
    if isinstance(result, AgentError):
        raise result
    return _answer(asked.model, request, result)


def _failure(error: BaseException) -> InferenceError:
    return InferenceError(f"this agent failed: {type(error).__name__}: {error}")


def inflate(body: Buffer, encoding: str) -> Buffer:
    """A body as it was before it was compressed; never more than a message may have. WireError."""
    if not encoding or encoding == "identity":
        return body
    if encoding not in _ENCODINGS:
        raise WireError(415, f"Content-Encoding {encoding!r} is not taken", "gzip or deflate")
    reader = zlib.decompressobj(_ANY_WINDOW)
    try:
        plain = reader.decompress(body, MAX_MESSAGE_BYTES)
    except zlib.error as error:
        raise WireError(400, f"the body is no {encoding}: {error}") from None
    if reader.unconsumed_tail:
        raise WireError(413, f"the body is larger than {MAX_MESSAGE_BYTES} bytes when unpacked")
    if not reader.eof or reader.unused_data:
        raise WireError(400, f"the body is no whole {encoding}: cut off, or more than one")
    return plain


def _json_bytes(head: Head, body: Buffer) -> int:
    return len(body) if head.json_bytes is None else head.json_bytes


def _asked(infer: Infer, request: HttpRequest, since_s: float) -> Asked:
    return Asked(
        infer.model, infer.version, request.inputs, request.outputs, since_s, request.places
    )


def _is_small(request: HttpRequest, result: InferResult) -> bool:
    """Whether little of it becomes text."""
    texts = (
        tensor.nbytes
        for tensor in result.outputs
        if not request.binary.get(tensor.name, request.binary_rest)
    )
    return sum(texts) <= _SMALL_BYTES


def _answer(model: str, request: HttpRequest, result: InferResult) -> Answer:
    written = write_result(model, request, result)
    fields = f"Lighterman-Version: {result.version}\r\nLighterman-Rung: {result.rung}\r\n"
    if written.json_bytes is not None:
        fields += f"Inference-Header-Content-Length: {written.json_bytes}\r\n"
    content_type = JSON if written.json_bytes is None else RAW
    return Answer(200, written.parts, content_type, fields)
