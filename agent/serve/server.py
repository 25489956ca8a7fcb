"""The local inference API: Open Inference Protocol v2 over gRPC, any Triton client works.

Refuses to know runtimes, to queue (the host does, by model) and to listen beyond loopback unless
told so.

    InferenceServer(
        served: agent.domain.ports.Served,     # the ModelHost
        clock: agent.domain.ports.Clock,
        version: str,                          # of the agent, for the server's metadata
        listen: str = "127.0.0.1:8001",        # port 0: a free one
        after: Callable[[], None],             # called by a serving thread that ended a task
    )
    .ask()                                     # let a serving thread call `after` when it is free
    .start() -> str                            # the address it listens on; UnavailableError: taken
    .stop(grace_s=10.0)                        # no new requests, those in flight are answered
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import NoReturn

import grpc

from agent.domain.ports import Clock, Served
from agent.errors import AgentError, UnavailableError, UnknownModelError
from agent.serve import convert
from agent.serve.desk import MAX_MESSAGE_BYTES, SERVER_NAME, Asked, Desk
from agent.serve.errors import code_of
from agent.serve.handlers import readable_handlers
from agent.serve.pool import TimedPool
from lighterman.details import fitting
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc

_FRAME_BYTES = 1024 * 1024
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
    ) -> None:
        self._listen = listen
        # The other roads have the same desk, so that all of them count together.
        self.desk = Desk(served, clock, version)
        self._pool = TimedPool(_WORKERS, clock, after)
        self._server = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=_MAX_REQUESTS,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Two agents on one port would each answer half of the requests.
                ("grpc.so_reuseport", 0),
                # A picture comes in few large frames instead of many of 16 KiB.
                ("grpc.http2.max_frame_size", _FRAME_BYTES),
            ],
        )
        self._servicer = Servicer(self.desk, self._pool)
        servicer = self._servicer
        # Read without the copy of every picture that the generated handler would make.
        infer = {"ModelInfer": (servicer.infer, convert.receive)}
        self._server.add_generic_rpc_handlers(
            (readable_handlers(servicer, servicer.unreadable, infer),)
        )

    def start(self) -> str:
        """Listen; gives HOST:PORT. UnavailableError when the address cannot be had."""
        host, _, number = self._listen.rpartition(":")
        try:
            _try_address(host.strip("[]"), int(number))  # gRPC itself would only say that it failed
            port = self._server.add_insecure_port(self._listen)
        except (OSError, RuntimeError) as error:
            why = getattr(error, "strerror", "") or str(error)
            raise UnavailableError(
                f"cannot listen on {self._listen}: {why.lower()}",
                "another process may have it; choose another with serve.grpc"
                " (LIGHTERMAN_SERVE_GRPC)",
            ) from error
        self._server.start()
        return f"{host}:{port}"

    def requests(self) -> dict[tuple[str, str], int]:
        """Requests since the start, by model and outcome."""
        return self.desk.ledger.outcomes()

    def ask(self) -> None:
        """Queue an empty task among the requests: `after` is called when its turn has come."""
        # A pool that has just been shut down takes nothing, and needs no watching either.
        with contextlib.suppress(RuntimeError):
            self._pool.submit(lambda: None)

    def stop(self, grace_s: float = 10.0) -> None:
        """Turn new requests away, answer those in flight for at most `grace_s` seconds."""
        self.desk.stop()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False)


class Servicer(pb_grpc.GRPCInferenceServiceServicer):
    """The six methods of the protocol."""

    def __init__(self, desk: Desk, pool: TimedPool) -> None:
        self._desk = desk
        self._pool = pool

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

    def infer(
        self, received: convert.Received, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        """Infer once on the rung that serves now."""
        request = received.request
        waited_s = self._pool.waited_s
        since_s = self._desk.clock.monotonic() - waited_s
        try:
            asked = Asked(
                request.model_name,
                request.model_version,
                convert.to_tensors(received),
                convert.wanted_outputs(request),
                since_s,
            )
            return convert.to_response(received, self._desk.infer(asked, waited_s))
        except AgentError as error:
            self._desk.failed(request.model_name, error, since_s)
            _abort(context, error)


def _try_address(host: str, port: int) -> None:
    """Listen there for a moment; OSError says why it cannot be. One address of a name is enough."""
    free, failed = False, OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
                probe.bind(address)
                probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            failed = error
        else:
            free = True
    if not free:
        raise failed


def _abort(context: grpc.ServicerContext, error: AgentError) -> NoReturn:
    context.abort(code_of(error), fitting(str(error)))
