"""Certificates that were issued. Never deletes one that still counts, never holds a private key."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from controller.store.tables import certificate


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One certificate as stored."""

    serial: str
    role: str
    name: str
    public_key_digest: str
    token_id: str | None
    pem: str
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None
    revoked_reason: str


def insert_certificate(
    conn: Connection,
    *,
    serial: str,
    role: str,
    name: str,
    public_key_digest: str,
    pem: bytes,
    not_before: datetime,
    not_after: datetime,
    now: datetime,
    token_id: str | None = None,
) -> None:
    """Add a certificate. One token gives one key one certificate: the table refuses a second."""
    conn.execute(
        insert(certificate).values(
            serial=serial,
            role=role,
            name=name,
            public_key_digest=public_key_digest,
            token_id=token_id,
            pem=pem.decode("ascii"),
            not_before=not_before,
            not_after=not_after,
            issued_at=now,
        )
    )


def get_certificate(conn: Connection, serial: str) -> CertificateRow | None:
    """The certificate, or None when this controller never issued it."""
    row = conn.execute(select(certificate).where(certificate.c.serial == serial)).first()
    return _row(row) if row is not None else None


def find_enrolled(conn: Connection, token_id: str, public_key_digest: str) -> CertificateRow | None:
    """What this token gave this key, or None."""
    row = conn.execute(
        select(certificate).where(
            certificate.c.token_id == token_id,
            certificate.c.public_key_digest == public_key_digest,
        )
    ).first()
    return _row(row) if row is not None else None


def list_valid(conn: Connection, name: str, now: datetime) -> list[CertificateRow]:
    """Certificates of a name that are neither expired nor revoked, newest first."""
    query = (
        select(certificate)
        .where(
            certificate.c.name == name,
            certificate.c.revoked_at.is_(None),
            certificate.c.not_after > now,
        )
        .order_by(certificate.c.not_after.desc())
    )
    return [_row(row) for row in conn.execute(query)]


def role_of(conn: Connection, name: str) -> str | None:
    """The role that ever had this common name, or None: names are unique across roles."""
    row = conn.execute(
        select(certificate.c.role).where(certificate.c.name == name).limit(1)
    ).first()
    return str(row.role) if row is not None else None


def revoke(conn: Connection, name: str, now: datetime, reason: str) -> int:
    """Revoke all certificates of a name; says how many."""
    result = conn.execute(
        update(certificate)
        .where(certificate.c.name == name, certificate.c.revoked_at.is_(None))
        .values(revoked_at=now, revoked_reason=reason)
    )
    return int(result.rowcount)


def list_revoked(conn: Connection, now: datetime) -> list[tuple[str, datetime]]:
    """(serial, revoked at) of certificates that would be good otherwise."""
    query = select(certificate.c.serial, certificate.c.revoked_at).where(
        certificate.c.revoked_at.is_not(None), certificate.c.not_after > now
    )
    return [(row.serial, row.revoked_at) for row in conn.execute(query)]


def newest_end(conn: Connection) -> dict[str, datetime]:
    """When the newest unrevoked certificate of each device ends."""
    query = select(certificate.c.name, certificate.c.not_after).where(
        certificate.c.role == "device", certificate.c.revoked_at.is_(None)
    )
    ends: dict[str, datetime] = {}
    for row in conn.execute(query):
        ends[row.name] = max(row.not_after, ends.get(row.name, row.not_after))
    return ends


def drop_expired(conn: Connection, name: str, before: datetime) -> None:
    """Forget a name's certificates that ended before `before`, but keep what holds the name."""
    kept = (
        select(certificate.c.serial)
        .where(certificate.c.name == name)
        .order_by(certificate.c.not_after.desc())
        .limit(1)
    )
    newest = conn.execute(kept).scalar()
    conn.execute(
        delete(certificate).where(
            certificate.c.name == name,
            certificate.c.not_after < before,
            certificate.c.serial != newest,
        )
    )


def _row(row: Row[Any]) -> CertificateRow:
    return CertificateRow(
        serial=row.serial,
        role=row.role,
        name=row.name,
        public_key_digest=row.public_key_digest,
        token_id=row.token_id,
        pem=row.pem,
        not_before=row.not_before,
        not_after=row.not_after,
        revoked_at=row.revoked_at,
        revoked_reason=row.revoked_reason,
    )
