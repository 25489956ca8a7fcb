"""Certificates: issued names stay unique across roles, revoked ones are known to every door.

Never hands out a private key of a device: those are made on the device.
"""

from dataclasses import dataclass
from functools import lru_cache

from controller.domain.words import moment
from controller.errors import ConflictError, DeniedError, UnauthenticatedError
from controller.services.context import Ctx, Deps
from controller.store import certificates, operators, outbox
from controller.store.outbox import OutboxKind
from controller.store.session import Connection
from controller.trust.authority import Issued, read_certificate
from controller.trust.names import Role, Subject

CRL_LIFE_S = 10 * 365 * 86400.0  # written anew at every change; an expired one would shut all out
TAKEOVER_LIFE_S = 60.0


@dataclass(frozen=True, slots=True)
class BrokerLists:
    """What the broker must know of people and of revoked certificates (PEM)."""

    consumers: tuple[str, ...]
    revocations_pem: bytes


def store_issued(conn: Connection, ctx: Ctx, issued: Issued, token_id: str | None = None) -> None:
    """Keep what was issued. ConflictError when the name belongs to another role."""
    subject = issued.subject
    holder = certificates.role_of(conn, subject.name)
    if holder is not None and holder != subject.role:
        raise ConflictError(
            f"the name {subject.name} belongs to a certificate of the role {holder}",
            "names are unique across all roles, because the broker sees nothing else; "
            "choose another",
        )
    certificates.insert_certificate(
        conn,
        serial=issued.serial,
        role=subject.role,
        name=subject.name,
        public_key_digest=issued.public_key_digest,
        pem=issued.pem,
        not_before=issued.not_before,
        not_after=issued.not_after,
        now=ctx.now,
        token_id=token_id,
    )


def revoke_name(conn: Connection, ctx: Ctx, name: str, reason: str) -> None:
    """Revoke a name's certificates and have its live broker session ended."""
    certificates.revoke(conn, name, ctx.now, reason)
    outbox.append(conn, ctx.now, OutboxKind.KICK, payload=name.encode("utf-8"))


def check_certificate(deps: Deps, ctx: Ctx, role: str, name: str, certificate_pem: bytes) -> None:
    """Let a caller in whose certificate we issued and did not revoke.

    Raises UnauthenticatedError when it is unknown or expired, DeniedError when it was revoked.
    """
    serial = _serial(certificate_pem)
    with deps.store.read() as conn:
        row = certificates.get_certificate(conn, serial)
    if row is None or row.role != role or row.name != name:
        raise UnauthenticatedError(
            f"the certificate of {name} was not issued by this controller's database",
            "enrol the device again, or issue a new context",
        )
    if row.revoked_at is not None:
        raise DeniedError(
            f"the certificate of {name} was revoked at {moment(row.revoked_at)}",
            f"reason: {row.revoked_reason or 'none given'}",
        )
    if row.not_after <= ctx.now:
        raise UnauthenticatedError(f"the certificate of {name} ended {moment(row.not_after)}")


@lru_cache(maxsize=4096)
def _serial(certificate_pem: bytes) -> str:
    """The serial number in a certificate; parsing it costs more than looking it up."""
    return read_certificate(certificate_pem).serial


def broker_lists(deps: Deps, ctx: Ctx) -> BrokerLists:
    """Consumers and revocations as they are now."""
    with deps.store.read() as conn:
        names = tuple(row.name for row in operators.list_operators(conn, Role.CONSUMER))
        revoked = certificates.list_revoked(conn, ctx.now)
    return BrokerLists(names, deps.authority.revocation_list(revoked, ctx.now, CRL_LIFE_S))


def takeover_identity(deps: Deps, ctx: Ctx, name: str) -> tuple[bytes, bytes]:
    """Certificate and key (PEM) that live for a minute, to take over a revoked name's session.

    They are stored nowhere and would be refused by every RPC.
    """
    subject = Subject(Role.DEVICE, name)
    identity = deps.authority.new_identity(subject, ctx.now, TAKEOVER_LIFE_S)
    return identity.issued.pem, identity.key_pem
