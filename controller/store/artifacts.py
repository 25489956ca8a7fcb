"""Which artifacts a project knows. The bytes are in the blobs, this is only their record."""

from datetime import datetime

from sqlalchemy import Connection, insert, select

from controller.store.tables import artifact as table


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


def artifact_length(conn: Connection, project: str, digest: str) -> int | None:
    """Length in bytes, or None when the project does not know the artifact."""
    found = conn.execute(
        select(table.c.length).where(table.c.project == project, table.c.digest == digest)
    ).scalar()
    return None if found is None else int(found)
