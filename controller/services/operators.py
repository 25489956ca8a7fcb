"""Issues certificates to people and programs: operators, consumers, workers. Never to devices."""

from dataclasses import dataclass
from datetime import datetime

from controller.errors import ConflictError, InvalidError
from controller.services.certificates import store_issued
from controller.services.context import Ctx, Deps
from controller.store import certificates, events, operators, outbox
from controller.store.outbox import OutboxKind
from controller.trust.names import Role, Subject, check_name

LIFE_S = 365 * 86400.0
ROLES = (Role.OPERATOR, Role.CONSUMER, Role.WORKER)


@dataclass(frozen=True, slots=True)
class IssuedIdentity:
    """A key made here and its certificate: shown to the caller, the key stored nowhere."""

    name: str
    role: str
    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes
    not_after: datetime


def issue_identity(deps: Deps, ctx: Ctx, name: str, role: str) -> IssuedIdentity:
    """A new certificate for `name`; one more for the same name and role is fine.

    Raises InvalidError for a bad name or role, ConflictError when the name has another role.
    """
    if role not in tuple(str(each) for each in ROLES):
        raise InvalidError(f"role {role!r} cannot be issued", "roles: operator, consumer, worker")
    subject = Subject(Role(role), check_name(name, "name"))
    with deps.store.write() as conn:
        holder = operators.get_operator(conn, name)
        if holder is not None and (holder.role != role or holder.revoked_at is not None):
            raise ConflictError(f"{name} is a {holder.role} already", "choose another name")
        identity = deps.authority.new_identity(subject, ctx.now, LIFE_S)
        if holder is None:
            operators.insert_operator(conn, name, role, ctx.now)
        certificates.drop_expired(conn, name, ctx.now)
        store_issued(conn, ctx, identity.issued)
        if subject.role is Role.CONSUMER:
            outbox.append(conn, ctx.now, OutboxKind.ACL)
        events.append(
            conn,
            ctx.project,
            ctx.now,
            "certificate_issued",
            ctx.actor,
            details={"name": name, "role": role, "serial": identity.issued.serial},
        )
    return IssuedIdentity(
        name=name,
        role=role,
        certificate_pem=identity.issued.pem,
        key_pem=identity.key_pem,
        ca_pem=deps.authority.certificate_pem,
        not_after=identity.issued.not_after,
    )
