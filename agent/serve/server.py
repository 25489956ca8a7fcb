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
import threading
from collections import Counter
from collections.abc import Callable
from typing import NoReturn

import grpc

from agent.domain.ports import Clock, Served
from agent.errors import AgentError, UnavailableError, UnknownModelError
from agent.serve import convert
from agent.serve.errors import code_of, outcome_of
from agent.serve.handlers import readable_handlers
from agent.serve.pool import TimedPool
from lighterman.details import fitting
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc

SERVER_NAME = "lighterman-agent"
# A float32 image of 1,024 x 1,024 is 12 MB; batches of it still fit.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
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
        self._stopping = threading.Event()
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
        self._servicer = Servicer(served, self._pool, version, self._stopping)
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
        return self._servicer.outcomes()

    def ask(self) -> None:
        """Queue an empty task among the requests: `after` is called when its turn has come."""
        # A pool that has just been shut down takes nothing, and needs no watching either.
        with contextlib.suppress(RuntimeError):
            self._pool.submit(lambda: None)

    def stop(self, grace_s: float = 10.0) -> None:
        """Turn new requests away, answer those in flight for at most `grace_s` seconds."""
        self._stopping.set()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False)


class Servicer(pb_grpc.GRPCInferenceServiceServicer):
    """The six methods of the protocol."""

    def __init__(
        self, served: Served, pool: TimedPool, version: str, stopping: threading.Event
    ) -> None:
        self._served = served
        self._pool = pool
        self._version = version
        self._stopping = stopping
        self._lock = threading.Lock()
        self._outcomes: Counter[tuple[str, str]] = Counter()

    def outcomes(self) -> dict[tuple[str, str], int]:
        """See `InferenceServer.requests`."""
        with self._lock:
            return dict(self._outcomes)

    def unreadable(self, method: str) -> None:
        """A request was none: for an inference that counts as any other that is wrong."""
        if method == "ModelInfer":
            self._count("", "invalid")

    def _count(self, model: str, outcome: str) -> None:
        with self._lock:
            self._outcomes[model, outcome] += 1

    def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.ServicerContext
    ) -> pb.ServerLiveResponse:
        """Whoever gets this answer knows."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Ready when there is a model and every one of them has a rung that can infer."""
        models = self._served.models()
        ready = bool(models) and all(self._is_ready(model, "") for model in models)
        return pb.ServerReadyResponse(ready=ready)

    def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        """An unknown model or version is not ready; that is no error."""
        return pb.ModelReadyResponse(ready=self._is_ready(request.name, request.version))

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Name and version of this agent; no extensions of the protocol."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version)

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Signature, version, platform and number of labels."""
        try:
            self._check_version(request.name, request.version)
            return convert.to_metadata(self._served.card(request.name))
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
        try:
            if self._stopping.is_set():
                raise UnavailableError("this agent is shutting down")
            if request.model_version:
                self._check_version(request.model_name, request.model_version)
            result = self._served.infer(
                request.model_name,
                convert.to_tensors(received),
                convert.wanted_outputs(request),
                self._pool.waited_s,
            )
            response = convert.to_response(received, result)
        except AgentError as error:
            # What is not served here may be any text: it must not become a series.
            known = request.model_name in self._served.models()
            self._count(request.model_name if known else "", outcome_of(error))
            _abort(context, error)
        self._count(request.model_name, "ok")
        return response

    def _check_version(self, model: str, version: str) -> None:
        card = self._served.card(model)
        if version and version != card.version:
            raise UnknownModelError(
                f"model {model!r} is served in version {card.version}, not {version}",
                "leave the version empty to get whichever serves",
            )

    def _is_ready(self, model: str, version: str) -> bool:
        try:
            self._check_version(model, version)
            return not self._stopping.is_set() and not self._served.card(model).not_ready
        except UnknownModelError:
            return False


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
