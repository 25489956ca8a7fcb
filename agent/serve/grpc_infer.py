"""ModelInfer as the reading thread begins it: at once where quick, else in its model's lane.

A lane's thread goes on to the next request of its model without another one being woken. Refuses to
infer itself: the desk does; and to know frames: a `Call` brings the request and takes the answer.
"""

from collections.abc import Callable
from functools import partial

import grpc

from agent.errors import AgentError, InferenceError
from agent.serve import convert
from agent.serve.desk import Asked, Desk
from agent.serve.errors import code_of
from agent.serve.http2.call import Call
from agent.serve.http2.server import GrpcServer
from agent.serve.lanes import Lanes, Ticket
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
        self._lanes: Lanes[None] = Lanes(desk.clock, lambda _ticket, _answer: after())
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
        turn.call.add_callback(cancelled)
        self._lanes.offer(model, width, turn, partial(self._in_turn, turn))

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
            failure = InferenceError(f"this agent failed: {type(error).__name__}: {error}")
            self._fail(call, model, failure)
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
