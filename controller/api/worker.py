"""BuildService: what workers ask. Trusts a worker with its own jobs and nothing else."""

from collections.abc import Iterator

import grpc

from controller.api.base import ApiBase
from controller.api.convert_builds import host_of, job_message
from controller.api.upload import split_upload
from controller.services.jobs import (
    IDLE_RETRY_S,
    beat_job,
    claim_job,
    complete_job,
    put_output,
    read_input,
)
from lighterman.v1 import build_pb2, build_pb2_grpc, common_pb2


class BuildServicer(ApiBase, build_pb2_grpc.BuildServiceServicer):
    """The servicer."""

    def Claim(
        self, request: build_pb2.ClaimRequest, context: grpc.ServicerContext
    ) -> build_pb2.ClaimResponse:
        """A job, or when to ask again."""
        job = claim_job(self.deps, self.ctx(context), host_of(request.capabilities))
        if job is None:
            return build_pb2.ClaimResponse(retry_after_s=IDLE_RETRY_S)
        return build_pb2.ClaimResponse(job=job_message(job))

    def Heartbeat(
        self, request: build_pb2.HeartbeatRequest, context: grpc.ServicerContext
    ) -> build_pb2.HeartbeatResponse:
        """A sign of life."""
        beat = beat_job(
            self.deps,
            self.ctx(context),
            job_id=request.job_id,
            lease=request.lease,
            progress_pct=request.progress_pct,
            step=request.step,
        )
        return build_pb2.HeartbeatResponse(cancel=beat.cancel, reason=beat.reason)

    def FetchBlob(
        self, request: common_pb2.FetchBlobRequest, context: grpc.ServicerContext
    ) -> Iterator[common_pb2.BlobChunk]:
        """An input of a job of the caller."""
        total, chunks = read_input(self.deps, self.ctx(context), request.digest, request.offset)
        offset = request.offset
        first = True
        for data in chunks:
            yield common_pb2.BlobChunk(data=data, offset=offset, total_bytes=total if first else 0)
            offset += len(data)
            first = False
        if first:  # nothing left behind the offset: say at least how long it is
            yield common_pb2.BlobChunk(offset=offset, total_bytes=total)

    def PutBlob(
        self, request: Iterator[build_pb2.PutBlobRequest], context: grpc.ServicerContext
    ) -> build_pb2.PutBlobResponse:
        """A result of a job of the caller."""
        first, chunks = split_upload(request)
        header = first.header
        stored = put_output(
            self.deps,
            self.ctx(context),
            job_id=header.job_id,
            lease=header.lease,
            digest=header.digest,
            length=header.length,
            chunks=chunks,
        )
        return build_pb2.PutBlobResponse(digest=stored.digest)

    def Complete(
        self, request: build_pb2.CompleteRequest, context: grpc.ServicerContext
    ) -> build_pb2.CompleteResponse:
        """The end of a job."""
        complete_job(
            self.deps,
            self.ctx(context),
            job_id=request.job_id,
            lease=request.lease,
            ok=request.ok,
            result_json=request.result_json,
            error=request.error,
            last_lines=list(request.last_lines),
        )
        return build_pb2.CompleteResponse()
