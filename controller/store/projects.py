"""Projects: the space of names. One exists from the start; creates no second one by itself."""

from datetime import datetime

from sqlalchemy import Connection, insert, select

from controller.store.tables import project as table


def ensure_project(conn: Connection, project: str, now: datetime) -> None:
    """Make sure the project exists."""
    if conn.execute(select(table.c.project).where(table.c.project == project)).first() is None:
        conn.execute(insert(table).values(project=project, created_at=now))
