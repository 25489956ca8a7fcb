"""The local inference API: Open Inference Protocol v2 over gRPC, any Triton client works.

Refuses to know runtimes, to queue (the host does, by model) and to listen beyond loopback unless
told so.

    InferenceServer(
        served: agent.domain.ports.Served,     # the ModelHost
        clock: agent.domain.ports.Clock,
        version: str,                          # of the agent, for the server's metadata
        listen: str = "127.0.0.1:8001",        # port 0: a free one
        after: Callable[[], None],             # called by a serving thread that ended a task
        shares_memory: bool = False,           # whether clients may register shared memory
        socket_path: Path | None = None,       # and a Unix socket
        socket_mode: int = 0o660,
    )
    .ask()                                     # let a serving thread call `after` when it is free
    .start() -> str                            # the address it listens on; UnavailableError: taken
    .stop(grace_s=10.0)                        # no new requests, those in flight are answered
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc

from agent.domain.ports import Clock, Served
from agent.errors import AgentError, UnavailableError, UnknownModelError
from agent.serve import convert
from agent.serve.desk import MAX_MESSAGE_BYTES, SERVER_NAME, Desk
from agent.serve.errors import code_of
from agent.serve.extensions import Extensions
from agent.serve.grpc_infer import GrpcInfer
from agent.serve.handlers import Behaviour, Parse, readable_handlers
from agent.serve.http2.server import GrpcServer
from agent.serve.pool import ServingPool
from agent.serve.sockets import UnixListener, tcp_listeners
from lighterman.details import fitting
from lighterman.oip import inference_pb2 as pb

_BACKLOG = 512
_INFER = "/inference.GRPCInferenceService/ModelInfer"
# Threads mostly wait for their model's turn; more of them only make the host see the queue.
_WORKERS = 32
# Beyond that a client is turned away at once instead of waiting for minutes.
_MAX_REQUESTS = 256


class InferenceServer:
    """One gRPC server for all models of this agent."""

    def __init__(
        self,
        served: Served,
        clock: Clock,
        version: str,
        listen: str = "127.0.0.1:8001",
        after: Callable[[], None] = lambda: None,
        *,
        shares_memory: bool = False,
        socket_path: Path | None = None,
        socket_mode: int = 0o660,
    ) -> None:
        self._listen = listen
        self._unix = (
            UnixListener(socket_path, socket_mode, "serve.grpc_socket") if socket_path else None
        )
        # The other roads have the same desk, so that all of them count together.
        self.desk = Desk(served, clock, version, shares_memory=shares_memory)
        self._pool = ServingPool(_WORKERS, after)
        self._server = GrpcServer(
            self._pool, clock=clock.monotonic, most_calls=_MAX_REQUESTS, limit=MAX_MESSAGE_BYTES
        )
        self._servicer = Servicer(self.desk)
        servicer = self._servicer
        # Read without the copy of every picture that the generated handler would make.
        infer: dict[str, tuple[Behaviour, Parse]] = {
            "ModelInfer": (servicer.infer, convert.receive),
            "ModelStreamInfer": (servicer.stream, convert.receive),
        }
        self._server.add_generic_rpc_handlers(
            (readable_handlers(servicer, servicer.unreadable, infer),)
        )
        self._infer = GrpcInfer(self.desk, self._server, after)
        self._server.place(_INFER, self._infer.begin)

    def start(self) -> str:
        """Listen; gives HOST:PORT. UnavailableError when the address cannot be had."""
        sockets = tcp_listeners(self._listen, _BACKLOG, "serve.grpc")
        try:
            if self._unix is not None:
                sockets.append(self._unix.listen(_BACKLOG))
        except UnavailableError:
            for sock in sockets:
                sock.close()
            raise
        for sock in sockets:
            self._server.listen(sock)
        self._server.start()
        host = self._listen.rpartition(":")[0]
        return f"{host}:{sockets[0].getsockname()[1]}"

    def requests(self) -> dict[tuple[str, str], int]:
        """Requests since the start, by model and outcome."""
        return self.desk.ledger.outcomes()

    def ask(self) -> None:
        """Queue an empty task among the requests: `after` is called when its turn has come."""
        self._server.ask(lambda: None)

    def stop(self, grace_s: float = 10.0) -> None:
        """Turn new requests away, answer those in flight for at most `grace_s` seconds."""
        self.desk.stop()
        self._server.stop(grace_s)
        if self._unix is not None:
            self._unix.remove()
        self._infer.stop()
        self._pool.shutdown(wait=False)


class Servicer(Extensions):
    """The six methods of the protocol, and its extensions."""

    def unreadable(self, method: str) -> None:
        """A request was none: for an inference that counts as any other that is wrong."""
        if method == "ModelInfer":
            self._desk.ledger.count("", "invalid")

    def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.ServicerContext
    ) -> pb.ServerLiveResponse:
        """Whoever gets this answer knows."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Ready when there is a model and every one of them has a rung that can infer."""
        return pb.ServerReadyResponse(ready=self._desk.is_ready())

    def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        """An unknown model or version is not ready; that is no error."""
        try:
            return pb.ModelReadyResponse(
                ready=not self._desk.not_ready(request.name, request.version)
            )
        except UnknownModelError:
            return pb.ModelReadyResponse(ready=False)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Name and version of this agent, and which extensions of the protocol it has."""
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=self._desk.version, extensions=self._desk.extensions
        )

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Signature, version, platform and number of labels."""
        try:
            return convert.to_metadata(self._desk.card(request.name, request.version))
        except AgentError as error:
            _abort(context, error)

    def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        """See `infer`, which the server calls instead: it needs no copy of the pictures."""
        return self.infer(convert.receive(request.SerializeToString()), context)

    def infer(self, received: convert.Received, context: Any) -> pb.ModelInferResponse:
        """Infer once on the rung that serves now."""
        request = received.request
        since_s = context.begun_at
        waited_s = self._desk.clock.monotonic() - since_s
        try:
            asked = convert.to_asked(received, since_s)
            return convert.to_response(received, self._desk.infer(asked, waited_s))
        except AgentError as error:
            self._desk.failed(request.model_name, error, since_s)
            _abort(context, error)


def _abort(context: grpc.ServicerContext, error: AgentError) -> NoReturn:
    context.abort(code_of(error), fitting(str(error)))
