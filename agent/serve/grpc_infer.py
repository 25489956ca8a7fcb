"""ModelInfer as the reading thread begins it: at once where quick, else in its model's lane.

A lane's thread goes on to the next request of its model without another one being woken. Refuses to
infer itself: the desk does; and to know frames: a `Call` brings the request and takes the answer.
"""

from collections.abc import Callable, Sequence
from functools import partial

import grpc

from agent.domain.batching import Waiting
from agent.domain.ports import InferResult
from agent.errors import AgentError, InferenceError
from agent.serve import convert
from agent.serve.desk import Asked, Desk
from agent.serve.errors import code_of
from agent.serve.http2.call import Call
from agent.serve.http2.server import GrpcServer
from agent.serve.lanes import Item, Lanes, Ticket
from lighterman.details import fitting


class _Turn(Ticket):
    """A call in a lane with what it asks; its answer is sent by the call itself."""

    __slots__ = ("asked", "call", "received")

    def __init__(self, call: Call, received: convert.Received, asked: Asked) -> None:
        super().__init__()
        self.call = call
        self.received: convert.Received | None = received
        self.asked: Asked | None = asked


class GrpcInfer:
    """Every unary inference of the gRPC road. `after` is called when one was answered."""

    def __init__(self, desk: Desk, server: GrpcServer, after: Callable[[], None]) -> None:
        self._desk = desk
        self._server = server
        self._after = after
        self._lanes: Lanes[None] = Lanes(desk.clock, lambda _ticket, _answer: after(), self)
        desk.served.add_queue(self._lanes.queue)

    def stop(self) -> None:
        """Nobody is waited for."""
        self._lanes.stop()

    def begin(self, call: Call) -> None:
        """In the reading thread."""
        received = call.prepare()
        if not isinstance(received, convert.Received):
            self._server.submit(call)  # packed, or no request: the handler says what is wrong
            return
        model = received.request.model_name
        try:
            asked = convert.to_asked(received, call.begun_at)
            result = self._desk.infer_now(asked)
            if result is None:
                turn = _Turn(call, received, asked)
                del received, asked
                self._queue(turn, model)
                return
            answer = convert.to_response(received, result).SerializeToString()
        except AgentError as error:
            self._fail(call, model, error)
        else:
            del received, asked
            call.release()
            call.reply(answer, grpc.StatusCode.OK)
        self._server.left(call)
        self._after()

    def _queue(self, turn: _Turn, model: str) -> None:
        def cancelled() -> None:
            turn.gone = True
            turn.received = turn.asked = None

        width = self._desk.served.width(model)
        asked = turn.asked
        assert asked is not None
        item: Item[None] = Item(turn, partial(self._in_turn, turn), self._desk.kind_of(asked), turn)
        if item.kind is not None:
            left_s = turn.call.time_remaining()
            item.rows = asked.rows
            item.deadline_s = None if left_s is None else self._desk.clock.monotonic() + left_s
        del asked
        turn.call.add_callback(cancelled)
        self._lanes.offer(model, width, item)

    # -- together: see `agent.serve.lanes.Together` ------------------------------------------------

    def count(self, model: str, queue: Sequence[Waiting]) -> int:
        """How many of the first of a queue are answered at once."""
        return self._desk.together(model, queue)

    def answer(self, items: Sequence[Item[None]], inferred: Callable[[], None]) -> list[None]:
        """Answer calls as one batch; in a lane's thread."""
        self._all_in_turn([item.asked for item in items], inferred)
        return [None] * len(items)

    def _all_in_turn(self, turns: Sequence[_Turn], inferred: Callable[[], None]) -> None:
        outcomes = self._outcomes(turns, inferred)
        # Only here: a buffer of which a view is left is not used again.
        for call, model, outcome in outcomes:
            if isinstance(outcome, AgentError):
                self._fail(call, model, outcome)
            else:
                call.release()
                call.reply(outcome, grpc.StatusCode.OK)
            self._server.left(call)

    def _outcomes(
        self, turns: Sequence[_Turn], inferred: Callable[[], None]
    ) -> list[tuple[Call, str, bytes | AgentError]]:
        """The answers to calls that are still wanted, in frames that end with their views."""
        wanted = []
        for turn in turns:
            received, asked = turn.received, turn.asked
            turn.received = turn.asked = None
            if turn.call.is_wanted() and received is not None and asked is not None:
                wanted.append((turn.call, received, asked))
            else:
                self._server.left(turn.call)
        results = self._infer_all([asked for _, _, asked in wanted])
        inferred()
        return [
            (call, asked.model, _packed(received, result))
            for (call, received, asked), result in zip(wanted, results, strict=True)
        ]

    def _infer_all(self, asked: Sequence[Asked]) -> Sequence[InferResult | AgentError]:
        try:
            return self._desk.infer_together(asked) if asked else ()
        except AgentError as error:
            return [error] * len(asked)
        except Exception as error:  # noqa: BLE001 - their places and bytes must not be lost
            return [_failure(error)] * len(asked)

    def _in_turn(self, turn: _Turn) -> None:
        """In a lane's thread; raises nothing."""
        call = turn.call
        model = ""
        try:
            received, asked = turn.received, turn.asked
            # A buffer of which a view is left is not used again: nothing here may keep one.
            turn.received = turn.asked = None
            if not call.is_wanted() or received is None or asked is None:
                return
            model = asked.model
            answer = self._infer(received, asked)
        except AgentError as error:
            self._fail(call, model, error)
        except Exception as error:  # noqa: BLE001 - its place and its bytes must not be lost
            self._fail(call, model, _failure(error))
        else:
            del received, asked
            call.release()
            call.reply(answer, grpc.StatusCode.OK)
        finally:
            self._server.left(call)

    def _infer(self, received: convert.Received, asked: Asked) -> bytes:
        waited_s = self._desk.clock.monotonic() - asked.since_s
        result = self._desk.infer(asked, waited_s)
        return convert.to_response(received, result).SerializeToString()

    def _fail(self, call: Call, model: str, error: AgentError) -> None:
        self._desk.failed(model, error, call.begun_at)
        call.release()
        call.reply(None, code_of(error), fitting(str(error)))


def _packed(received: convert.Received, result: InferResult | AgentError) -> bytes | AgentError:
    if isinstance(result, AgentError):
        return result
    try:
        return convert.to_response(received, result).SerializeToString()
    except Exception as error:  # noqa: BLE001 - one answer that cannot be written is one failure
        return _failure(error)


def _failure(error: Exception) -> InferenceError:
    return InferenceError(f"this agent failed: {type(error).__name__}: {error}")
