"""The protocol's extensions over gRPC: streams, statistics, repository index, shared memory.

Refuses to load models, and to keep more threads waiting for clients than serving can do without.
"""

import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc

from agent.errors import AgentError, BusyError
from agent.serve import convert
from agent.serve.desk import Desk
from agent.serve.errors import code_of
from lighterman.details import fitting
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc

# An open stream keeps a thread of the server, whether anything comes or not.
MOST_STREAMS = 16


class Extensions(pb_grpc.GRPCInferenceServiceServicer):
    """What a servicer of the protocol has beside the six methods that every server has."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._streams = threading.BoundedSemaphore(MOST_STREAMS)

    def ModelStreamInfer(
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.ModelStreamInferResponse]:
        """See `stream`, which the server calls instead: it needs no copy of the pictures."""
        read = (convert.receive(one.SerializeToString()) for one in request_iterator)
        return self.stream(read, context)

    def stream(
        self, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[pb.ModelStreamInferResponse]:
        """Answer one after the other; one that fails or is none is told in its place."""
        if not self._streams.acquire(blocking=False):
            _abort(context, BusyError(f"{MOST_STREAMS} streams are open, that is the most"))
        try:
            for received in requests:
                yield self._answer(received)
        finally:
            self._streams.release()

    def _answer(self, received: Any) -> pb.ModelStreamInferResponse:
        if not isinstance(received, convert.Received):
            self._desk.ledger.count("", "invalid")
            return pb.ModelStreamInferResponse(
                error_message="the request is no message that ModelStreamInfer takes"
            )
        request = received.request
        since_s = self._desk.clock.monotonic()
        try:
            result = self._desk.infer(convert.to_asked(received, since_s), 0.0)
            return pb.ModelStreamInferResponse(infer_response=convert.to_response(received, result))
        except AgentError as error:
            self._desk.failed(request.model_name, error, since_s)
            return pb.ModelStreamInferResponse(
                error_message=fitting(str(error)),
                infer_response=pb.ModelInferResponse(model_name=request.model_name, id=request.id),
            )

    def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: grpc.ServicerContext
    ) -> pb.ModelStatisticsResponse:
        """Sums since the start, of the versions that serve."""
        response = pb.ModelStatisticsResponse()
        try:
            found = self._desk.statistics(request.name, request.version)
        except AgentError as error:
            _abort(context, error)
        for one in found:
            entry = response.model_stats.add(
                name=one.model,
                version=one.version,
                last_inference=int(one.last_at * 1000),
                inference_count=one.inferences,
                execution_count=one.executions,
            )
            for name, (count, ns) in one.durations().items():
                duration = getattr(entry.inference_stats, name)
                duration.count, duration.ns = count, ns
        return response

    def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        """Every model that has something loaded."""
        response = pb.RepositoryIndexResponse()
        for entry in self._desk.index():
            if entry.ready or not request.ready:
                response.models.add(
                    name=entry.model,
                    version=entry.version,
                    state="READY" if entry.ready else "UNAVAILABLE",
                    reason=entry.reason,
                )
        return response

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        """Always refused."""
        self._refuse_change(request.model_name, context)

    def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        """Always refused."""
        self._refuse_change(request.model_name, context)

    def _refuse_change(self, model: str, context: grpc.ServicerContext) -> NoReturn:
        try:
            self._desk.change_repository(model)
        except AgentError as error:
            _abort(context, error)

    def SystemSharedMemoryStatus(
        self, request: pb.SystemSharedMemoryStatusRequest, context: grpc.ServicerContext
    ) -> pb.SystemSharedMemoryStatusResponse:
        """One region, or all."""
        response = pb.SystemSharedMemoryStatusResponse()
        try:
            found = self._desk.regions.status(request.name)
        except AgentError as error:
            _abort(context, error)
        for one in found:
            entry = response.regions[one.name]
            entry.name, entry.key = one.name, one.key
            entry.offset, entry.byte_size = one.offset, one.size
        return response

    def SystemSharedMemoryRegister(
        self, request: pb.SystemSharedMemoryRegisterRequest, context: grpc.ServicerContext
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Take a region, or say why not."""
        try:
            self._desk.regions.register(
                request.name, request.key, request.offset, request.byte_size
            )
        except AgentError as error:
            _abort(context, error)
        return pb.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, context: grpc.ServicerContext
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forget one region, or all."""
        try:
            self._desk.regions.unregister(request.name)
        except AgentError as error:
            _abort(context, error)
        return pb.SystemSharedMemoryUnregisterResponse()


def _abort(context: grpc.ServicerContext, error: AgentError) -> NoReturn:
    context.abort(code_of(error), fitting(str(error)))
