"""ModelInfer as the reading thread begins it: at once where quick, else in its model's lane.

A lane's thread goes on to the next request of its model without another one being woken. Refuses to
infer itself: the desk does; and to know frames: a `Call` brings the request and takes the answer.
"""

from collections.abc import Callable

import grpc

from agent.errors import AgentError
from agent.serve import convert
from agent.serve.desk import Desk
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
            answer = self._now(received, call.begun_at)
            if answer is None:
                self._lanes.offer(
                    model, self._desk.served.width(model), _Turn(), lambda: self._server.run(call)
                )
                return
        except AgentError as error:
            self._desk.failed(model, error, call.begun_at)
            call.release()
            call.reply(None, code_of(error), fitting(str(error)))
        else:
            del received
            call.release()
            call.reply(answer, grpc.StatusCode.OK)
        self._server.left(call)
        self._after()

    def _now(self, received: convert.Received, since_s: float) -> bytes | None:
        result = self._desk.infer_now(convert.to_asked(received, since_s))
        if result is None:
            return None
        return convert.to_response(received, result).SerializeToString()
