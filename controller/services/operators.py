"""Certificates of people and programs: operators, consumers, workers. Never of devices.

Issued, listed, revoked; a revocation is written with what tells the broker, in one transaction.
"""

from dataclasses import dataclass
from datetime import datetime

from controller.domain.words import count_of, moment
from controller.errors import ConflictError, InvalidError, NotFoundError, RefusedError
from controller.services.certificates import revoke_name, store_issued
from controller.services.context import Ctx, Deps
from controller.services.suggestions import suggest_names
from controller.store import certificates, events, operators, outbox
from controller.store.operators import OperatorRow
from controller.store.outbox import OutboxKind
from controller.store.session import Connection
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


@dataclass(frozen=True, slots=True)
class OperatorView:
    """One holder of certificates: how many are valid, and until when the newest one is."""

    name: str
    role: str
    created_at: datetime
    revoked_at: datetime | None
    certificates: int
    valid_until: datetime | None


def issue_identity(
    deps: Deps, ctx: Ctx, name: str, role: str, *, again: bool = False, revived: bool = False
) -> IssuedIdentity:
    """A new certificate for `name`. `again`: one more beside a valid one.

    `revived`: also for a name that was revoked, which lets it in again.

    Raises InvalidError for a bad name or role, ConflictError when the name has another role, has a
    valid certificate already, or was revoked.
    """
    if role not in tuple(str(each) for each in ROLES):
        raise InvalidError(f"role {role!r} cannot be issued", "roles: operator, consumer, worker")
    subject = Subject(Role(role), check_name(name, "name"))
    with deps.store.write() as conn:
        holder = operators.get_operator(conn, name)
        if holder is not None:
            _check_holder(conn, ctx, holder, role, again=again, revived=revived)
            operators.set_revoked(conn, name, None)
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


def list_people(deps: Deps, ctx: Ctx) -> list[OperatorView]:
    """All that were ever issued a certificate and are no device, by name; revoked ones too."""
    with deps.store.read() as conn:
        rows = operators.list_operators(conn, revoked_too=True)
        return [_view(conn, ctx, row) for row in rows]


def revoke_operator(deps: Deps, ctx: Ctx, name: str, reason: str = "") -> OperatorView:
    """Revoke all certificates of a name; its live sessions are ended. The name stays taken.

    Raises NotFoundError for an unknown name (a device is retired instead), RefusedError when it is
    revoked already.
    """
    with deps.store.write() as conn:
        holder = operators.get_operator(conn, name)
        if holder is None:
            raise _unknown(conn, name)
        if holder.revoked_at is not None:
            raise RefusedError(f"{name} was revoked already, at {moment(holder.revoked_at)}")
        view = _view(conn, ctx, holder)
        said = f"revoked by {ctx.actor}" + (f": {reason}" if reason else "")
        revoke_name(conn, ctx, name, said)
        operators.set_revoked(conn, name, ctx.now)
        events.append(
            conn,
            ctx.project,
            ctx.now,
            "certificate_revoked",
            ctx.actor,
            reason=reason,
            details={"name": name, "role": holder.role, "certificates": view.certificates},
        )
    deps.wake()
    return view


def _check_holder(
    conn: Connection, ctx: Ctx, holder: OperatorRow, role: str, *, again: bool, revived: bool
) -> None:
    name = holder.name
    if holder.role != role:
        raise ConflictError(
            f"{name} has the role {holder.role} already",
            "names are unique across all roles; choose another name",
        )
    if holder.revoked_at is not None:
        if not revived:
            raise ConflictError(
                f"{role} {name} was revoked at {moment(holder.revoked_at)}",
                "choose another name, or let this one in again with --again",
            )
        return
    valid = certificates.list_valid(conn, name, ctx.now)
    if valid and not again:
        raise ConflictError(
            f"{role} {name} has {count_of(len(valid), 'valid certificate')} already",
            f"issued {moment(valid[0].not_before)}, until {moment(valid[0].not_after)}",
            "one more beside it: the same with --again",
            f"if it is lost: lighterman-controller operator revoke {name}, then issue --again",
        )


def _unknown(conn: Connection, name: str) -> NotFoundError:
    role = certificates.role_of(conn, name)
    if role == Role.DEVICE:
        return NotFoundError(f"{name} is a device", f"fleetctl device retire {name} cuts it off")
    known = [row.name for row in operators.list_operators(conn)]
    return NotFoundError(
        f"no operator, consumer or worker {name}",
        *suggest_names(name, known, "none was issued a certificate yet"),
    )


def _view(conn: Connection, ctx: Ctx, row: OperatorRow) -> OperatorView:
    valid = certificates.list_valid(conn, row.name, ctx.now)
    return OperatorView(
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        certificates=len(valid),
        valid_until=valid[0].not_after if valid else None,
    )
