"""Which artifacts a project knows. The bytes are in the blobs, this is only their record."""

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from controller.store.tables import artifact as table
from controller.store.tables import build, dataset, variant


def record_artifact(
    conn: Connection, project: str, digest: str, length: int, now: datetime
) -> bool:
    """Record an artifact of ``length`` bytes; False when it was known."""
    if artifact_length(conn, project, digest) is not None:
        return False
    conn.execute(
        insert(table).values(project=project, digest=digest, length=length, created_at=now)
    )
    return True


def is_used(conn: Connection, digest: str) -> bool:
    """Whether any version, dataset or build of any project names it."""
    named = (
        variant.c.digest,
        dataset.c.digest,
        dataset.c.calibration_digest,
        dataset.c.evaluation_digest,
        build.c.source_digest,
        build.c.dataset_digest,
        build.c.digest,
    )
    return any(
        conn.execute(select(column).where(column == digest).limit(1)).first() is not None
        for column in named
    )


def forget_artifact(conn: Connection, project: str, digest: str) -> bool:
    """Take the record away; True when no other project knows it either."""
    conn.execute(delete(table).where(table.c.project == project, table.c.digest == digest))
    return conn.execute(select(table.c.digest).where(table.c.digest == digest)).first() is None


def artifact_length(conn: Connection, project: str, digest: str) -> int | None:
    """Length in bytes, or None when the project does not know the artifact."""
    found = conn.execute(
        select(table.c.length).where(table.c.project == project, table.c.digest == digest)
    ).scalar()
    return None if found is None else int(found)
