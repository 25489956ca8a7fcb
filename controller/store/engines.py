"""What builders compiled for devices of their kind, and which devices are builders."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from controller.store.tables import device_role, engine


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One compiled file; ``statement`` are exactly the signed bytes."""

    key_digest: str
    key: dict[str, str]
    build_digest: str
    digest: str
    length: int
    device_id: str
    statement: bytes
    signatures: list[dict[str, str]]
    published_at: datetime


def put_engine(conn: Connection, project: str, row: EngineRow) -> None:
    """Store it over an older one of the same key."""
    conn.execute(
        delete(engine).where(engine.c.project == project, engine.c.key_digest == row.key_digest)
    )
    conn.execute(
        insert(engine).values(
            project=project,
            key_digest=row.key_digest,
            key=row.key,
            build_digest=row.build_digest,
            digest=row.digest,
            length=row.length,
            device_id=row.device_id,
            statement=row.statement,
            signatures=row.signatures,
            published_at=row.published_at,
        )
    )


def find_engine(conn: Connection, project: str, key_digest: str) -> EngineRow | None:
    """The engine of exactly this key, or None."""
    query = select(engine).where(engine.c.project == project, engine.c.key_digest == key_digest)
    row = conn.execute(query).first()
    return None if row is None else _engine(row)


def list_engines(conn: Connection, project: str) -> list[EngineRow]:
    """All, oldest first."""
    query = (
        select(engine)
        .where(engine.c.project == project)
        .order_by(engine.c.published_at, engine.c.key_digest)
    )
    return [_engine(row) for row in conn.execute(query)]


def builds_of_engine(conn: Connection, project: str, digest: str) -> set[str]:
    """Digests of the builds that this file was compiled of; empty: it is no engine."""
    query = select(engine.c.build_digest).where(
        engine.c.project == project, engine.c.digest == digest
    )
    return {str(row.build_digest) for row in conn.execute(query)}


def drop_engines(conn: Connection, device_id: str) -> int:
    """Take back all that a device gave; says how many."""
    return conn.execute(delete(engine).where(engine.c.device_id == device_id)).rowcount


def roles_of(conn: Connection, device_ids: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The granted roles by device, where there are any."""
    wanted, found = list(device_ids), dict[str, tuple[str, ...]]()
    for start in range(0, len(wanted), 500):
        query = (
            select(device_role.c.device_id, device_role.c.role)
            .where(device_role.c.device_id.in_(wanted[start : start + 500]))
            .order_by(device_role.c.device_id, device_role.c.role)
        )
        for row in conn.execute(query):
            found[row.device_id] = (*found.get(row.device_id, ()), row.role)
    return found


def set_role(
    conn: Connection, device_id: str, role: str, granted: bool, actor: str, now: datetime
) -> bool:
    """Grant or take a role; False where it is so already."""
    has = role in roles_of(conn, [device_id]).get(device_id, ())
    if has == granted:
        return False
    if granted:
        conn.execute(
            insert(device_role).values(
                device_id=device_id, role=role, granted_at=now, granted_by=actor
            )
        )
    else:
        conn.execute(
            delete(device_role).where(
                device_role.c.device_id == device_id, device_role.c.role == role
            )
        )
    return True


def _engine(row: Row[Any]) -> EngineRow:
    return EngineRow(
        key_digest=row.key_digest,
        key=dict(row.key),
        build_digest=row.build_digest,
        digest=row.digest,
        length=row.length,
        device_id=row.device_id,
        statement=bytes(row.statement),
        signatures=[dict(one) for one in row.signatures],
        published_at=row.published_at,
    )
