"""Trades a one-time token for this device's certificate. May be killed anywhere and run again.

The key and its request are durable before they are sent, so the second try sends the same request
and gets the same certificate. Refuses a server of another authority, and an answer that does not
fit the key.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import grpc

from agent.domain.capability import Capabilities
from agent.domain.ports import Identity, IdentityStore
from agent.link.authority import Endpoint, find_authority, parse_endpoint, parse_token, parse_url
from agent.link.backoff import Backoff
from agent.link.channel import link_error, open_enrolment_channel
from agent.link.client import PROTOCOL_MAX, PROTOCOL_MIN
from agent.link.convert import capabilities_to_wire
from agent.link.errors import EnrolError, LinkError, LinkFault
from agent.link.keys import fits_key, new_key_request
from agent.link.trust import check_keys
from lighterman.v1 import enrollment_pb2, enrollment_pb2_grpc

CALL_S = 15.0
TRIES = 4


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What somebody typed, and what the device says of itself. Empty `device_id`: give me one."""

    url: str
    token: str
    device_id: str
    hardware_id: str
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The identity that is stored now; `pending`: an operator has to accept the device first."""

    identity: Identity
    pending: bool


@dataclass(slots=True)
class _Tried:
    """What the try that succeeded brought."""

    done: bool = False
    ca_pem: bytes = b""
    key_pem: bytes = b""
    answer: enrollment_pb2.EnrollResponse = field(default_factory=enrollment_pb2.EnrollResponse)


def enrol(
    wanted: Enrolment, store: IdentityStore, wait: Callable[[float], object], tries: int = TRIES
) -> Enrolled:
    """Enrol this device and store its identity. EnrolError, StoreError.

    `wait` is called with seconds between tries.
    """
    endpoint = parse_url(wanted.url)
    token = parse_token(wanted.token)
    known = store.current()
    if known is not None:
        raise EnrolError(
            f"this device is enrolled already, as {known.device_id} at {known.grpc_endpoint}",
            "another identity needs another --state-dir",
            fault=LinkFault.REFUSED,
        )
    purpose = hashlib.sha256(token.secret.encode()).hexdigest()[:16]
    backoff = Backoff(base_s=1.0, cap_s=8.0)
    tried = _Tried()
    while not tried.done:
        try:
            tried.ca_pem = find_authority(endpoint, token.ca_fingerprint).encode()
            tried.key_pem, csr_pem = _request(store, purpose, wanted.device_id)
            tried.answer = _ask(
                endpoint, tried.ca_pem, request_message(wanted, token.secret, csr_pem)
            )
            tried.done = True
        except LinkError as error:
            if not error.retryable or backoff.tries + 1 >= tries:
                raise EnrolError(_told(error, backoff), error.hint, fault=error.fault) from error
            wait(backoff.failed(error.retry_after_s))
    identity = replace(
        read_identity(tried.answer, tried.key_pem, tried.ca_pem), enroll_endpoint=str(endpoint)
    )
    store.keep_next(identity)
    store.promote()
    store.drop_request(purpose)
    return Enrolled(identity, tried.answer.pending)


def _told(error: LinkError, backoff: Backoff) -> str:
    if not error.retryable:
        return error.message
    return f"{error.message}, tried {backoff.tries + 1} times"


def _request(store: IdentityStore, purpose: str, device_id: str) -> tuple[bytes, bytes]:
    kept = store.request(purpose)
    if kept is not None:
        return kept
    made = new_key_request(device_id or "device")
    store.keep_request(purpose, made.key_pem, made.csr_pem)
    return made.key_pem, made.csr_pem


def request_message(wanted: Enrolment, secret: str, csr_pem: bytes) -> enrollment_pb2.EnrollRequest:
    """What a device sends to enrol."""
    return enrollment_pb2.EnrollRequest(
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        token_secret=secret,
        device_id=wanted.device_id,
        csr_pem=csr_pem,
        hardware_id=wanted.hardware_id,
        capabilities=capabilities_to_wire(wanted.capabilities),
    )


def _ask(
    endpoint: Endpoint, ca_pem: bytes, message: enrollment_pb2.EnrollRequest
) -> enrollment_pb2.EnrollResponse:
    with open_enrolment_channel(endpoint, ca_pem) as channel:
        try:
            return enrollment_pb2_grpc.EnrollmentServiceStub(channel).Enroll(
                message, timeout=CALL_S
            )
        except grpc.RpcError as error:
            raise link_error(error, endpoint) from None


def read_identity(answer: enrollment_pb2.EnrollResponse, key_pem: bytes, ca_pem: bytes) -> Identity:
    """The identity in the controller's answer. EnrolError where it does not fit the key."""
    if not PROTOCOL_MIN <= answer.protocol <= PROTOCOL_MAX:
        raise EnrolError(
            f"the controller chose protocol {answer.protocol},"
            f" this agent speaks {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            "update the agent, or the controller",
            fault=LinkFault.REFUSED,
        )
    try:
        parse_endpoint(answer.grpc_endpoint)
        parse_endpoint(answer.mqtt_endpoint)
        fitting = fits_key(answer.certificate_pem, key_pem)
    except ValueError as error:
        raise _nonsense(str(error)) from error
    if not fitting or not answer.device_id or not answer.project:
        raise _nonsense("the certificate does not belong to the key of this device")
    keys = check_keys([(k.key_id, k.public_key) for k in answer.signing_keys])
    return Identity(
        device_id=answer.device_id,
        project=answer.project,
        certificate_pem=answer.certificate_pem,
        key_pem=key_pem,
        ca_pem=ca_pem,
        signing_keys=keys,
        grpc_endpoint=answer.grpc_endpoint,
        mqtt_endpoint=answer.mqtt_endpoint,
    )


def _nonsense(what: str) -> EnrolError:
    return EnrolError(
        f"the controller's answer cannot be used: {what}",
        "nothing was stored; look into the controller's log",
        fault=LinkFault.UNTRUSTED,
    )
