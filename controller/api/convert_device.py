"""Wire to values and back: enrolment and what devices ask. Fails closed on foreign input."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from controller.domain.device import Capabilities
from controller.domain.rollout import AssignmentState
from controller.domain.words import one_line
from controller.errors import InvalidError
from controller.services.device_sessions import DesiredView, HelloFacts
from controller.services.engines import EngineView
from controller.services.protocol import check_protocol
from controller.services.reports import DeviceEnvelope, EventBody, ReportBody
from controller.services.tuning_orders import OrdersView
from lighterman.v1 import common_pb2, device_pb2, enrollment_pb2


class Key(Protocol):
    """A public key that devices verify with."""

    @property
    def key_id(self) -> str: ...
    @property
    def public_key(self) -> bytes: ...


class SignatureLike(Protocol):
    """A signature and the key that made it."""

    @property
    def key_id(self) -> str: ...
    @property
    def signature(self) -> bytes: ...


# Numbers that the controller gave out and devices give back: generations.
NUMBER_MOST = 2**31 - 1


def number_from_wire(number: int, what: str) -> int:
    """InvalidError for one that cannot have come from here."""
    if number > NUMBER_MOST:
        raise InvalidError(f"{what} {number} was never given out", f"the most is {NUMBER_MOST:,}")
    return number


def capabilities_from_wire(found: common_pb2.Capabilities) -> Capabilities:
    """The facts a profile is matched by; InvalidError for impossible sizes."""
    if found.memory_bytes < 0 or found.disk_bytes < 0:
        raise InvalidError("capabilities with a negative size")
    return Capabilities(
        arch=one_line(found.arch[:64]),
        os=one_line(found.os[:200]),
        cpu_model=one_line(found.cpu_model[:200]),
        device_model=one_line(found.device_model[:200]),
        accelerators=tuple(one_line(text[:100]) for text in list(found.accelerators)[:32]),
        runtimes={
            one_line(name[:64]): one_line(text[:64])
            for name, text in list(found.runtimes.items())[:32]
        },
        memory_bytes=found.memory_bytes,
        disk_bytes=found.disk_bytes,
        agent_version=one_line(found.agent_version[:64]),
        python=one_line(found.python[:64]),
        host_simulated=found.host_simulated,
    )


def capabilities_to_wire(known: Capabilities) -> common_pb2.Capabilities:
    """As operators see them."""
    return common_pb2.Capabilities(
        arch=known.arch,
        os=known.os,
        cpu_model=known.cpu_model,
        device_model=known.device_model,
        accelerators=known.accelerators,
        runtimes=dict(known.runtimes),
        memory_bytes=known.memory_bytes,
        disk_bytes=known.disk_bytes,
        agent_version=known.agent_version,
        python=known.python,
        host_simulated=known.host_simulated,
    )


# Boots whose reports a device may ask after: it keeps those of a few starts.
BOOTS_MAX = 64


def hello_from_wire(request: device_pb2.HelloRequest) -> HelloFacts:
    """What a device says when it starts to talk."""
    return HelloFacts(
        protocol_min=request.protocol_min,
        protocol_max=request.protocol_max,
        boot_id=request.boot_id,
        capabilities=capabilities_from_wire(request.capabilities),
        applied_generation=number_from_wire(request.applied_generation, "generation"),
        acknowledged=tuple(one.boot_id for one in request.acknowledged[:BOOTS_MAX]),
    )


def keys_to_wire(keys: Iterable[Key]) -> list[enrollment_pb2.SigningKey]:
    """Signing keys."""
    return [enrollment_pb2.SigningKey(key_id=key.key_id, public_key=key.public_key) for key in keys]


def desired_to_wire(view: DesiredView, known_generation: int) -> device_pb2.DesiredState:
    """The signed state, or `unchanged` where the device has it or there is none."""
    if view.generation in (0, known_generation):
        return device_pb2.DesiredState(
            generation=view.generation, unchanged=True, orders=view.orders
        )
    return device_pb2.DesiredState(
        generation=view.generation,
        manifest=view.manifest,
        signatures=signed_to_wire(view.signatures),
        orders=view.orders,
    )


def signed_to_wire(signatures: Iterable[SignatureLike]) -> list[device_pb2.Signed]:
    """Signatures."""
    return [device_pb2.Signed(key_id=one.key_id, signature=one.signature) for one in signatures]


def orders_to_wire(view: OrdersView) -> device_pb2.Orders:
    """Signed orders."""
    return device_pb2.Orders(
        number=view.number, manifest=view.manifest, signatures=signed_to_wire(view.signatures)
    )


def engine_to_wire(view: EngineView) -> device_pb2.Engine:
    """A signed engine, and who may sign such."""
    return device_pb2.Engine(
        found=True,
        statement=view.statement,
        signatures=signed_to_wire(view.signatures),
        delegation=view.delegation,
        delegation_signatures=signed_to_wire(view.delegation_signatures),
    )


def envelope_from_wire(envelope: device_pb2.Envelope) -> DeviceEnvelope:
    """A report or an event; InvalidError for anything else, or without a number.

    Raises ProtocolError for one of another version.
    """
    check_protocol(envelope.protocol)
    if envelope.seq < 1:
        raise InvalidError("an entry of the spool without a number")
    match envelope.WhichOneof("body"):
        case "report":
            report = _report(envelope.report)
            return DeviceEnvelope(envelope.boot_id, envelope.seq, report, envelope.acknowledged)
        case "event":
            said = envelope.event
            body = EventBody(
                said.kind,
                one_line(said.model),
                one_line(said.version),
                one_line(said.reason),
                {one_line(name): one_line(text) for name, text in said.details.items()},
            )
            return DeviceEnvelope(envelope.boot_id, envelope.seq, body, envelope.acknowledged)
        case other:
            raise InvalidError(f"{other or 'nothing'} is neither report nor event")


def _report(said: device_pb2.Report) -> ReportBody:
    evidence = said.evidence
    return ReportBody(
        model=one_line(said.model),
        version=one_line(said.version),
        rollout=one_line(said.rollout),
        generation=number_from_wire(said.generation, "generation"),
        state=state_from_wire(said.state),
        reason=one_line(said.reason),
        serving_version=one_line(said.serving_version),
        applied=said.applied,
        evidence={
            "inferences": evidence.inferences,
            "errors": evidence.errors,
            "p95_s": evidence.p95_s,
            "last_service_s": list(evidence.last_service_s)[:100],
            "starved": evidence.starved,
            "rolled_back_in_s": evidence.rolled_back_in_s,
        }
        if said.HasField("evidence")
        else None,
    )


def state_from_wire(state: int) -> AssignmentState | None:
    """None for unspecified or unknown: such a report is kept as ignored."""
    try:
        name = device_pb2.AssignmentState.Name(state)  # type: ignore[arg-type]
        return AssignmentState(name.removeprefix("ASSIGNMENT_STATE_"))
    except ValueError:
        return None


def time_from_wire(stamp: Timestamp, what: str) -> datetime:
    """An aware time; InvalidError for one that no calendar has."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidError(f"{what} is no time: {error}") from None


def time_to_wire(at: datetime | None) -> Timestamp | None:
    """An aware time, or None."""
    if at is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
