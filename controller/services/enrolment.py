"""Trades a one-time token and a certificate request for a device certificate, once per use.

Trusts nothing in the request's subject. Never gives one use of a token two certificates.
"""

from dataclasses import dataclass, field

from controller.domain.device import Capabilities, DeviceState
from controller.domain.words import moment
from controller.errors import ConflictError, DeniedError, UnauthenticatedError
from controller.services.certificates import store_issued
from controller.services.context import Ctx, Deps
from controller.services.profiles import match
from controller.store import boots, certificates, devices, events, labels, tokens
from controller.store.certificates import CertificateRow
from controller.store.devices import DeviceRow
from controller.store.session import Connection, fresh_id
from controller.store.tables import device as device_table
from controller.store.tokens import TokenRow
from controller.trust.authority import public_key_digest, read_request
from controller.trust.names import Role, Subject, check_name
from controller.trust.signing import PublicKey
from controller.trust.tokens import hash_secret


@dataclass(frozen=True, slots=True)
class EnrolmentRequest:
    """What a device says of itself. `device_id` empty: the controller gives one."""

    secret: str
    csr_pem: bytes
    device_id: str = ""
    hardware_id: str = ""
    protocol: int = 1
    capabilities: Capabilities = field(default_factory=Capabilities)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What the device gets."""

    device_id: str
    project: str
    certificate_pem: bytes
    ca_pem: bytes
    signing_keys: tuple[PublicKey, ...]
    pending: bool


def enrol_device(deps: Deps, ctx: Ctx, request: EnrolmentRequest) -> Enrolment:
    """Enrol; a retry with the same token and the same key gets the same certificate again.

    Raises InvalidError for a bad request, UnauthenticatedError for an unknown token, DeniedError
    for one that is used up, expired, revoked or bound to other hardware, ConflictError when the
    device id is taken.
    """
    key = read_request(request.csr_pem)
    digest = public_key_digest(key)
    with deps.store.write() as conn:
        token = tokens.find_by_hash(conn, hash_secret(request.secret))
        if token is None:
            raise UnauthenticatedError(
                "this enrolment token is not known here",
                "`fleetctl admin token create` makes a new one",
            )
        before = certificates.find_enrolled(conn, token.token_id, digest)
        if before is not None:
            return _again(deps, conn, before)
        _check(token, ctx, request.hardware_id)
        device_id = _device_id(conn, ctx, request, token)
        subject = Subject(Role.DEVICE, device_id)
        issued = deps.authority.issue(subject, key, ctx.now, deps.limits.device_certificate_s)
        store_issued(conn, ctx, issued, token.token_id)
        tokens.use_token(conn, token.token_id)
        state = DeviceState.PENDING if token.pending else DeviceState.ACTIVE
        _put_device(conn, ctx, device_id, token, state, request)
        pending = state is DeviceState.PENDING
        return _enrolment(deps, device_id, token.project, issued.pem, pending)


def _check(token: TokenRow, ctx: Ctx, hardware_id: str) -> None:
    way_out = "`fleetctl admin token create` makes a new one"
    if token.revoked:
        raise DeniedError(f"enrolment token {token.token_id} was revoked", way_out)
    if token.expires_at <= ctx.now:
        ended = moment(token.expires_at)
        raise DeniedError(f"enrolment token {token.token_id} expired at {ended}", way_out)
    if token.used >= token.uses:
        raise DeniedError(
            f"enrolment token {token.token_id} is used up ({token.used} of {token.uses})", way_out
        )
    if token.hardware_id and token.hardware_id != hardware_id:
        raise DeniedError(f"enrolment token {token.token_id} is bound to other hardware", way_out)


def _device_id(conn: Connection, ctx: Ctx, request: EnrolmentRequest, token: TokenRow) -> str:
    if not request.device_id:
        return fresh_id(conn, device_table.c.device_id, lambda: ctx.ids.new("d"))
    device_id = check_name(request.device_id, "device id")
    existing = devices.get_device(conn, device_id)
    if existing is not None and not _may_return(existing, token):
        raise ConflictError(
            f"device {device_id} exists",
            f"choose another id, or retire it first: fleetctl device retire {device_id}",
        )
    return device_id


def _may_return(existing: DeviceRow, token: TokenRow) -> bool:
    """Only a retired device of the same project may enrol under its old id."""
    return existing.state == DeviceState.RETIRED and existing.project == token.project


def _put_device(
    conn: Connection,
    ctx: Ctx,
    device_id: str,
    token: TokenRow,
    state: DeviceState,
    request: EnrolmentRequest,
) -> None:
    if devices.get_device(conn, device_id) is None:
        devices.insert_device(
            conn, device_id, token.project, state, request.hardware_id, request.protocol, ctx.now
        )
    else:
        boots.forget_boots(conn, device_id)
        devices.update_device(
            conn,
            device_id,
            state=state,
            hardware_id=request.hardware_id,
            protocol=request.protocol,
            enrolled_at=ctx.now,
            boot_id=None,
            online=False,
            last_seen_at=None,  # that was the device before
            applied_generation=0,
            status=None,
        )
    devices.put_capabilities(conn, device_id, request.capabilities.to_json(), ctx.now)
    profile = match(conn, token.project, request.capabilities)
    devices.update_device(conn, device_id, profile=profile)
    labels.change_labels(conn, device_id, token.labels)
    events.append(
        conn,
        token.project,
        ctx.now,
        "device_enrolled",
        device_id,
        device_id=device_id,
        reason=f"with token {token.token_id} of {token.created_by}",
        details={"token": token.token_id, "profile": profile or "", "state": state},
    )


def _again(deps: Deps, conn: Connection, row: CertificateRow) -> Enrolment:
    if row.revoked_at is not None:
        raise DeniedError(f"the certificate that this token gave to {row.name} was revoked")
    device = devices.get_device(conn, row.name)
    if device is None or device.state == DeviceState.RETIRED:
        raise DeniedError(f"device {row.name} was retired")
    pending = device.state == DeviceState.PENDING
    return _enrolment(deps, row.name, device.project, row.pem.encode("ascii"), pending)


def _enrolment(deps: Deps, device_id: str, project: str, pem: bytes, pending: bool) -> Enrolment:
    return Enrolment(
        device_id=device_id,
        project=project,
        certificate_pem=pem,
        ca_pem=deps.authority.certificate_pem,
        signing_keys=deps.signer.public_keys(),
        pending=pending,
    )
