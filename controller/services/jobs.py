"""The queue that workers claim from: leases, results, retries. Runs no job itself.

A lease that ran out makes the job anybody's again; what comes with an older lease is refused.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from controller.domain.build import Evidence
from controller.domain.device import Capabilities
from controller.domain.spec import read_json
from controller.errors import DeniedError, InvalidError, RefusedError
from controller.services.artifacts import StoredArtifact, read_artifact, store_artifact
from controller.services.context import Ctx, Deps
from controller.services.gates import judge_build
from controller.store import events
from controller.store.artifacts import artifact_length
from controller.store.builds import (
    BuildRow,
    builds_of_job,
    set_compiled,
    set_failed,
    set_job_state,
)
from controller.store.jobs import (
    JobRow,
    end_job,
    find_job,
    lease_job,
    oldest_queued,
    renew_lease,
    running_jobs,
)
from controller.store.session import Connection

MAX_ATTEMPTS = 3
CANCELLED = "cancelled by "  # how the reason of a build begins that a person ended
IDLE_RETRY_S = 1.0
MAX_LINES = 40
MAX_LINE_CHARS = 500
# What a build may be. A runtime of others brings its own, in the same form.
MEDIA_TYPE = re.compile(r"application/(onnx|vnd\.[a-z0-9][a-z0-9.+-]{0,99})")


@dataclass(frozen=True, slots=True)
class JobInput:
    """An artifact that the job reads."""

    role: str
    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job in the hands of a worker; ``lease`` must come with every later call."""

    job_id: str
    lease: str
    lease_s: float
    spec: Mapping[str, Any]
    inputs: tuple[JobInput, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    cancel: bool
    reason: str = ""


def claim_job(deps: Deps, ctx: Ctx, host: Capabilities) -> ClaimedJob | None:
    """The job that has waited longest, leased to the caller; None when there is none.

    ``host`` is the worker's machine: what the latency of its builds will speak for.
    """
    with deps.store.write() as conn:
        _expire(conn, ctx)
        job = oldest_queued(conn)
        if job is None:
            return None
        lease = ctx.ids.new("l")
        lease_job(
            conn,
            job.job_id,
            worker=ctx.actor,
            lease=lease,
            spec={**job.spec, "host": host.to_json()},
            lease_until=_lease_until(deps, ctx),
            attempt=job.attempt + 1,
            now=ctx.now,
        )
        set_job_state(conn, job.job_id, "RUNNING", ctx.now)
    inputs = tuple(JobInput(**one) for one in job.spec["inputs"])
    return ClaimedJob(job.job_id, lease, deps.limits.job_lease_s, job.spec["job"], inputs)


def beat_job(
    deps: Deps, ctx: Ctx, *, job_id: str, lease: str, progress_pct: float, step: str
) -> Beat:
    """A sign of life: renews the lease, stores progress. Says when the job is lost.

    InvalidError for a progress that is no number.
    """
    if not math.isfinite(progress_pct):
        raise InvalidError(f"the progress is {progress_pct}", "it is a share of 0 to 100 %")
    with deps.store.write() as conn:
        job = find_job(conn, job_id)
        void = _void(ctx, job, lease)
        if void or job is None:
            return Beat(True, void)
        renew_lease(
            conn,
            job_id,
            lease_until=_lease_until(deps, ctx),
            progress_pct=min(max(progress_pct, 0.0), 100.0),
            step=step[:MAX_LINE_CHARS],
            now=ctx.now,
        )
    return Beat(False)


def read_input(deps: Deps, ctx: Ctx, digest: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
    """Length and bytes of an input of a job the caller holds; else DeniedError."""
    with deps.store.read() as conn:
        held = [
            job
            for job in running_jobs(conn, ctx.actor)
            if any(one["digest"] == digest for one in job.spec["inputs"])
        ]
    if not held:
        raise DeniedError(f"{digest} is no input of a job that {ctx.actor} holds")
    return read_artifact(deps, replace(ctx, project=held[0].project), digest, offset)


def put_output(
    deps: Deps,
    ctx: Ctx,
    *,
    job_id: str,
    lease: str,
    digest: str,
    length: int,
    chunks: Iterable[bytes],
) -> StoredArtifact:
    """Store a result of a job that the caller holds. Raises RefusedError for a void lease."""
    with deps.store.read() as conn:
        job = _held(conn, ctx, job_id, lease)
    return store_artifact(
        deps,
        replace(ctx, project=job.project),
        digest=digest,
        length=length,
        name=f"result of {job_id}",
        chunks=chunks,
    )


def complete_job(
    deps: Deps,
    ctx: Ctx,
    *,
    job_id: str,
    lease: str,
    ok: bool,
    result_json: str = "",
    error: str = "",
    last_lines: Sequence[str] = (),
) -> None:
    """Take a job's result: builds are stored and gated for everyone who waits for them.

    Raises RefusedError for a void lease, InvalidError for a result that cannot be understood; the
    job stays with the worker then, which reports a failure or lets the lease run out.
    """
    results = _parse_result(result_json) if ok or result_json else {}
    lines = tuple(line[:MAX_LINE_CHARS] for line in last_lines[-MAX_LINES:])
    with deps.store.write() as conn:
        job = _held(conn, ctx, job_id, lease)
        reason = error.strip() or "the job ended without a result"
        for build in builds_of_job(conn, job_id):
            if build.state == "COMPILED":
                continue
            result = results.get(build.build_id)
            if result is None:
                set_failed(conn, build.build_id, reason, ctx.now)
            else:
                _store_result(conn, ctx, job, build, result)
        end_job(conn, job_id, "DONE" if ok else "FAILED", ctx.now, error=error, last_lines=lines)
        lacking = frozenset(build for build, result in results.items() if result.lacking)
        _judge_all(conn, ctx, job, lacking)
    deps.wake()


def expire_leases(deps: Deps, ctx: Ctx) -> int:
    """Queue again, or after three attempts fail, what silent workers hold. Returns how many."""
    with deps.store.write() as conn:
        return _expire(conn, ctx)


def _expire(conn: Connection, ctx: Ctx) -> int:
    lost = [
        job
        for job in running_jobs(conn)
        if job.lease_until is not None and job.lease_until < ctx.now
    ]
    for job in lost:
        said = f"worker {job.worker} fell silent while {job.step or 'working'}"
        events.append(
            conn,
            job.project,
            ctx.now,
            "build_job_lost",
            ctx.actor,
            model=job.spec["job"]["model"],
            version=job.spec["job"]["version"],
            reason=said,
            details={"job": job.job_id, "attempt": job.attempt},
        )
        if job.attempt >= MAX_ATTEMPTS:
            fail_job(conn, ctx, job, "FAILED", f"{said}; given up after {job.attempt} attempts")
        else:
            end_job(conn, job.job_id, "QUEUED", ctx.now, error=said, last_lines=job.last_lines)
            set_job_state(conn, job.job_id, "QUEUED", ctx.now)
    return len(lost)


def fail_job(conn: Connection, ctx: Ctx, job: JobRow, state: str, reason: str) -> None:
    """End a job with what it has not compiled; its worker hears of it with the next heartbeat."""
    for build in builds_of_job(conn, job.job_id):
        if build.state in ("QUEUED", "RUNNING"):
            set_failed(conn, build.build_id, reason, ctx.now)
    end_job(conn, job.job_id, state, ctx.now, error=reason, last_lines=job.last_lines)
    _judge_all(conn, ctx, job)


def _judge_all(
    conn: Connection, ctx: Ctx, job: JobRow, lacking: frozenset[str] = frozenset()
) -> None:
    for build in builds_of_job(conn, job.job_id):
        judge_build(conn, ctx, job.project, build, lacking=build.build_id in lacking)


def _lease_until(deps: Deps, ctx: Ctx) -> Any:
    return ctx.now + timedelta(seconds=deps.limits.job_lease_s)


def _void(ctx: Ctx, job: JobRow | None, lease: str) -> str:
    """Why the caller does not hold the job; empty when it does."""
    if job is None:
        return "the job does not exist"
    if job.state != "RUNNING":
        return f"the job is {job.state.lower()}" + (f": {job.error}" if job.error else "")
    if job.worker != ctx.actor or job.lease != lease:
        return f"the lease ran out, the job is with {job.worker} now"
    return ""


def _held(conn: Connection, ctx: Ctx, job_id: str, lease: str) -> JobRow:
    job = find_job(conn, job_id)
    void = _void(ctx, job, lease)
    if void or job is None:
        raise RefusedError(f"job {job_id} is not held by {ctx.actor}", void)
    return job


@dataclass(frozen=True, slots=True)
class _Result:
    """One build of a result; ``error`` is empty when it worked.

    ``lacking``: this worker has not what the recipe needs; the model itself was not tried.
    """

    error: str
    digest: str
    media_type: str
    evidence: dict[str, Any]
    lacking: bool = False


def _parse_result(text: str) -> dict[str, _Result]:
    # A figure that is no number is one build's trouble: its evidence is not understood.
    result = read_json(text, "the job's result", odd=lambda _: None)
    if not isinstance(result, dict) or result.get("schema") != 1:
        raise InvalidError("the job's result is not of schema 1")
    builds = result.get("builds")
    if not isinstance(builds, list):
        raise InvalidError("the job's result has no builds")
    return {str(one["build_id"]): _parse_build(one) for one in _mappings(builds)}


def _mappings(items: list[Any]) -> Iterator[Mapping[str, Any]]:
    for item in items:
        if not isinstance(item, Mapping) or "build_id" not in item:
            raise InvalidError("the job's result lists something that is no build")
        yield item


def _parse_build(one: Mapping[str, Any]) -> _Result:
    if one.get("ok") is not True:
        said = str(one.get("error") or "the compile failed without a word")
        return _Result(said, "", "", {}, lacking=one.get("lacking") is True)
    media_type = str(one.get("media_type") or "")
    if not MEDIA_TYPE.fullmatch(media_type):
        return _Result(f"the result has the unknown media type {media_type!r}", "", "", {})
    evidence = one.get("evidence")
    if not isinstance(evidence, Mapping):
        return _Result("the result carries no evidence", "", "", {})
    stored = {**evidence, "peak_rss_bytes": one.get("peak_rss_bytes")}
    return _Result("", str(one.get("digest") or ""), media_type, stored)


def _store_result(
    conn: Connection, ctx: Ctx, job: JobRow, build: BuildRow, result: _Result
) -> None:
    fail = partial(set_failed, conn, build.build_id, now=ctx.now)
    if result.error:
        fail(result.error)
        return
    length = artifact_length(conn, job.project, result.digest)
    if length is None:
        fail(f"the worker did not upload {result.digest or 'the result'}")
        return
    # Which machine measured is said by the worker, not by the job: that one ran foreign code.
    evidence = {
        **result.evidence,
        "size_bytes": length,
        "host": job.spec["host"],
        "dataset_digest": build.dataset_digest or "",
    }
    try:
        Evidence.from_json(evidence)
    except InvalidError as error:
        fail(f"the evidence is not understood: {error.message}")
        return
    set_compiled(
        conn,
        build.build_id,
        digest=result.digest,
        length=length,
        media_type=result.media_type,
        evidence=evidence,
        now=ctx.now,
    )
