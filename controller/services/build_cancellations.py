"""Ends builds before they are done: a person has seen enough of a job that does not end.

The worker hears of it with its next sign of life, within seconds, and kills the job with all that
it started. What was compiled by then stays.
"""

from controller.domain.words import one_line
from controller.errors import NotFoundError
from controller.services.builds import BuildView, read_builds
from controller.services.context import Ctx, Deps
from controller.services.jobs import CANCELLED, fail_job
from controller.store import events
from controller.store.jobs import JobRow, find_job
from controller.store.session import Connection

GOING = ("queued", "running")
_OPEN = ("QUEUED", "RUNNING")


def cancel_builds(
    deps: Deps, ctx: Ctx, *, model: str = "", version: str = "", job_id: str = "", reason: str = ""
) -> list[BuildView]:
    """End the job, or all jobs of a version, that wait or run; returns the builds that this ended.

    Where nothing waits or runs, nothing is done and nothing returned: asked twice is asked once.
    NotFoundError for a job or version that does not exist.
    """
    with deps.store.write() as conn:
        asked: list[JobRow] = []
        if job_id:
            asked = [_job(conn, ctx, job_id)]
            model, version = (str(asked[0].spec["job"][name]) for name in ("model", "version"))
        before = read_builds(conn, ctx, model, version)
        if not job_id:
            ids = sorted({one.job_id for one in before if one.state in GOING and one.job_id})
            asked = [_job(conn, ctx, one) for one in ids]
        jobs = {one.job_id: one for one in asked if one.state in _OPEN}
        said = f"{CANCELLED}{ctx.actor}" + (f": {one_line(reason)}" if reason.strip() else "")
        for job in jobs.values():
            _tell(conn, ctx, job, said)
            fail_job(conn, ctx, job, "CANCELLED", said)
        ended = {
            (one.variant, one.recipe, one.profile)
            for one in before
            if one.job_id in jobs and one.state in GOING
        }
        views = read_builds(conn, ctx, model, version) if ended else []
    if jobs:
        deps.wake()
    return [one for one in views if (one.variant, one.recipe, one.profile) in ended]


def _job(conn: Connection, ctx: Ctx, job_id: str) -> JobRow:
    job = find_job(conn, job_id)
    if job is None or job.project != ctx.project:
        raise NotFoundError(
            f"no build job {job_id}",
            "fleetctl build show NAME:VERSION names the jobs of its builds",
        )
    return job


def _tell(conn: Connection, ctx: Ctx, job: JobRow, said: str) -> None:
    spec = job.spec["job"]
    events.append(
        conn,
        job.project,
        ctx.now,
        "build_cancelled",
        ctx.actor,
        model=spec["model"],
        version=spec["version"],
        reason=said,
        details={
            "job": job.job_id,
            "variant": spec.get("variant", ""),
            "worker": job.worker or "",
            "step": job.step,
        },
    )
