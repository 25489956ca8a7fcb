"""ModelInfer as the reading thread begins it: at once where quick, else in its model's lane.

A lane's thread goes on to the next request of its model without another one being woken. Refuses to
infer itself: the desk does; and to know frames: a `Call` brings the request and takes the answer.
"""

from collections.abc import Callable

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
    """A call in a lane; its answer was sent by the call itself."""

    def deliver(self, answer: object) -> None:
        """Nothing is left to do."""


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
            self._server.submit(call)  # no request: the handler says what is wrong with it
            return
        model = received.request.model_name
        try:
            asked = convert.to_asked(received, call.begun_at)
            result = self._desk.infer_now(asked)
            if result is None:
                width = self._desk.served.width(model)
                self._lanes.offer(
                    model, width, _Turn(), lambda: self._in_turn(call, received, asked)
                )
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

    def _in_turn(self, call: Call, received: convert.Received, asked: Asked) -> None:
        """In a lane's thread; raises nothing."""
        try:
            if not call.is_wanted():
                return
            waited_s = self._desk.clock.monotonic() - asked.since_s
            result = self._desk.infer(asked, waited_s)
            answer = convert.to_response(received, result).SerializeToString()
        except AgentError as error:
            self._fail(call, asked.model, error)
        except Exception as error:  # noqa: BLE001 - a thread that ends would leave others waiting
            failure = InferenceError(f"this agent failed: {type(error).__name__}: {error}")
            self._fail(call, asked.model, failure)
        else:
            call.release()
            call.reply(answer, grpc.StatusCode.OK)
        finally:
            self._server.left(call)

    def _fail(self, call: Call, model: str, error: AgentError) -> None:
        self._desk.failed(model, error, call.begun_at)
        call.release()
        call.reply(None, code_of(error), fitting(str(error)))
