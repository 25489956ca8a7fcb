"""Enrolment tokens as stored: the secret only as a hash."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from controller.store.tables import token


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token; `labels` are given to devices that enrol with it."""

    token_id: str
    project: str
    uses: int
    used: int
    hardware_id: str | None
    pending: bool
    labels: dict[str, str]
    expires_at: datetime
    revoked: bool
    created_at: datetime
    created_by: str


def insert_token(
    conn: Connection,
    token_id: str,
    project: str,
    secret_hash: str,
    *,
    uses: int,
    hardware_id: str | None,
    pending: bool,
    labels: Mapping[str, str],
    expires_at: datetime,
    now: datetime,
    actor: str,
) -> None:
    """Add a token."""
    conn.execute(
        insert(token).values(
            token_id=token_id,
            project=project,
            secret_hash=secret_hash,
            uses=uses,
            hardware_id=hardware_id,
            pending=pending,
            labels=dict(labels),
            expires_at=expires_at,
            created_at=now,
            created_by=actor,
        )
    )


def find_by_hash(conn: Connection, secret_hash: str) -> TokenRow | None:
    """The token with this secret, or None."""
    row = conn.execute(select(token).where(token.c.secret_hash == secret_hash)).first()
    return _row(row) if row is not None else None


def get_token(conn: Connection, project: str, token_id: str) -> TokenRow | None:
    """The token, or None."""
    row = conn.execute(
        select(token).where(token.c.project == project, token.c.token_id == token_id)
    ).first()
    return _row(row) if row is not None else None


def list_tokens(conn: Connection, project: str) -> list[TokenRow]:
    """Tokens of the project, newest first."""
    query = select(token).where(token.c.project == project).order_by(token.c.created_at.desc())
    return [_row(row) for row in conn.execute(query)]


def use_token(conn: Connection, token_id: str) -> None:
    """Count one use. The table refuses more uses than allowed."""
    conn.execute(update(token).where(token.c.token_id == token_id).values(used=token.c.used + 1))


def revoke_token(conn: Connection, token_id: str) -> None:
    """No enrolment with it from now on."""
    conn.execute(update(token).where(token.c.token_id == token_id).values(revoked=True))


def _row(row: Row[Any]) -> TokenRow:
    return TokenRow(
        token_id=row.token_id,
        project=row.project,
        uses=row.uses,
        used=row.used,
        hardware_id=row.hardware_id,
        pending=bool(row.pending),
        labels=dict(row.labels or {}),
        expires_at=row.expires_at,
        revoked=bool(row.revoked),
        created_at=row.created_at,
        created_by=row.created_by,
    )
