"""People and programs with a certificate of their own: operators, consumers, workers."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from controller.store.tables import operator


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One holder of a certificate that is no device."""

    name: str
    role: str
    created_at: datetime
    revoked_at: datetime | None


def get_operator(conn: Connection, name: str) -> OperatorRow | None:
    """The operator, or None."""
    row = conn.execute(select(operator).where(operator.c.name == name)).first()
    return OperatorRow(row.name, row.role, row.created_at, row.revoked_at) if row else None


def insert_operator(conn: Connection, name: str, role: str, now: datetime) -> None:
    """Add one."""
    conn.execute(insert(operator).values(name=name, role=role, created_at=now))


def set_revoked(conn: Connection, name: str, at: datetime | None) -> None:
    """Revoke one, or with None let it in again."""
    conn.execute(update(operator).where(operator.c.name == name).values(revoked_at=at))


def list_operators(
    conn: Connection, role: str | None = None, *, revoked_too: bool = False
) -> list[OperatorRow]:
    """Those that are not revoked (or all), by name; with `role` only its holders."""
    query = select(operator).order_by(operator.c.name)
    if not revoked_too:
        query = query.where(operator.c.revoked_at.is_(None))
    if role is not None:
        query = query.where(operator.c.role == role)
    return [
        OperatorRow(row.name, row.role, row.created_at, row.revoked_at)
        for row in conn.execute(query)
    ]
