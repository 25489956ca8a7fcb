"""The queue of build jobs with their leases. Decides nothing: services say when a lease ran out."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from controller.store.session import fresh_id
from controller.store.tables import build_job as table


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job: a variant and the recipes to compile it by."""

    job_id: str
    project: str
    spec: dict[str, Any]
    state: str
    attempt: int
    worker: str | None
    lease: str | None
    lease_until: datetime | None
    progress_pct: float
    step: str
    error: str
    last_lines: tuple[str, ...]


def add_job(
    conn: Connection, project: str, job_id: str, spec: dict[str, Any], now: datetime
) -> None:
    """Queue a job."""
    conn.execute(
        insert(table).values(
            job_id=job_id,
            project=project,
            spec=spec,
            state="QUEUED",
            created_at=now,
            updated_at=now,
        )
    )


def new_job_id(conn: Connection, new: Callable[[], str]) -> str:
    """An id that no job has."""
    return fresh_id(conn, table.c.job_id, new)


def find_job(conn: Connection, job_id: str) -> JobRow | None:
    """One job, or None."""
    row = conn.execute(select(table).where(table.c.job_id == job_id)).first()
    return None if row is None else _job(row)


def oldest_queued(conn: Connection) -> JobRow | None:
    """The job that has waited longest, of any project."""
    query = select(table).where(table.c.state == "QUEUED").order_by(table.c.created_at)
    row = conn.execute(query.order_by(table.c.job_id).limit(1)).first()
    return None if row is None else _job(row)


def running_jobs(conn: Connection, worker: str | None = None) -> list[JobRow]:
    """Jobs that a worker holds, or that one holds."""
    query = select(table).where(table.c.state == "RUNNING")
    if worker is not None:
        query = query.where(table.c.worker == worker)
    return [_job(row) for row in conn.execute(query)]


def lease_job(
    conn: Connection,
    job_id: str,
    *,
    worker: str,
    lease: str,
    spec: dict[str, Any],
    lease_until: datetime,
    attempt: int,
    now: datetime,
) -> None:
    """Hand the job to a worker; an older lease is void by this."""
    _update(
        conn,
        job_id,
        state="RUNNING",
        worker=worker,
        lease=lease,
        spec=spec,
        lease_until=lease_until,
        attempt=attempt,
        progress_pct=0.0,
        step="starting",
        updated_at=now,
    )


def renew_lease(
    conn: Connection,
    job_id: str,
    *,
    lease_until: datetime,
    progress_pct: float,
    step: str,
    now: datetime,
) -> None:
    """Store a sign of life."""
    _update(
        conn,
        job_id,
        lease_until=lease_until,
        progress_pct=progress_pct,
        step=step,
        updated_at=now,
    )


def end_job(
    conn: Connection,
    job_id: str,
    state: str,
    now: datetime,
    *,
    error: str = "",
    last_lines: tuple[str, ...] = (),
) -> None:
    """Take the job from its worker: DONE, FAILED, CANCELLED, or QUEUED again."""
    values: dict[str, Any] = {
        "state": state,
        "lease": None,
        "lease_until": None,
        "error": error,
        "last_lines": list(last_lines),
        "updated_at": now,
    }
    if state == "DONE":
        values |= {"progress_pct": 100.0, "step": ""}
    _update(conn, job_id, **values)


def _update(conn: Connection, job_id: str, **values: Any) -> None:
    conn.execute(update(table).where(table.c.job_id == job_id).values(values))


def _job(row: Row[Any]) -> JobRow:
    return JobRow(
        job_id=row.job_id,
        project=row.project,
        spec=row.spec,
        state=row.state,
        attempt=row.attempt,
        worker=row.worker,
        lease=row.lease,
        lease_until=row.lease_until,
        progress_pct=row.progress_pct,
        step=row.step,
        error=row.error,
        last_lines=tuple(row.last_lines or ()),
    )
