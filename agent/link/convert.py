"""Wire messages to domain values and back. The only place of the agent that builds envelopes.

Refuses an enum's zero and bodies that do not belong to a topic: what cannot be told apart is an
error, not a default.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError

from agent.domain.assignment import Phase
from agent.domain.capability import Capabilities
from agent.domain.desired import PROTOCOL
from agent.domain.histogram import SCALE
from agent.domain.ladder import Pressure
from agent.domain.ports import RungWindow, SpoolEntry
from agent.link.errors import TrustError
from agent.link.orders import Signed, SignedEngine, SignedOrders
from agent.link.trust import Signature, SignedState
from lighterman.v1 import common_pb2, device_pb2, topics

MAX_DOWN_BYTES = 64 * 1024

_CLOCK = {
    True: device_pb2.CLOCK_QUALITY_SYNCED,
    False: device_pb2.CLOCK_QUALITY_UNSURE,
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a report knows of the trial. Seconds; `last_service_s` oldest first."""

    inferences: int = 0
    errors: int = 0
    p95_s: float | None = None
    last_service_s: tuple[float, ...] = ()
    starved: bool = False
    rolled_back_in_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AssignmentReport:
    """State of one model with respect to one rollout."""

    model: str
    version: str
    rollout: str
    generation: int
    phase: Phase
    reason: str
    serving_version: str
    applied: bool = False
    evidence: Evidence = Evidence()


@dataclass(frozen=True, slots=True)
class Happening:
    """A thing that happened and must not be lost."""

    kind: str
    at: datetime
    reason: str
    model: str = ""
    version: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How one model stands, for the health feed."""

    model: str
    version: str
    rung: str
    phase: Phase
    rung_reason: str


@dataclass(frozen=True, slots=True)
class TelemetryWindow:
    """What was measured in the last `window_s`."""

    window_s: float
    rungs: tuple[RungWindow, ...]
    pressure: Pressure
    models: tuple[ModelStatus, ...]
    rss_bytes: int
    applied_generation: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """When something was said, and whether the clock can be believed."""

    at: datetime
    synced: bool


@dataclass(frozen=True, slots=True)
class AckPoint:
    """Everything up to and including `seq` of this boot is stored by the controller."""

    boot_id: str
    seq: int


# -- upwards ---------------------------------------------------------------------------------------


def capabilities_to_wire(found: Capabilities) -> common_pb2.Capabilities:
    """The facts a profile is matched by."""
    return common_pb2.Capabilities(
        arch=found.arch,
        os=found.os,
        cpu_model=found.cpu_model,
        device_model=found.device_model,
        accelerators=found.accelerators,
        runtimes=dict(found.runtimes),
        memory_bytes=found.memory_bytes,
        disk_bytes=found.disk_bytes,
        agent_version=found.agent_version,
        python=found.python,
        host_simulated=found.host_simulated,
    )


def report_payload(report: AssignmentReport, stamp: Stamp) -> bytes:
    """A report as the spool keeps it: an envelope that lacks boot id and number."""
    evidence = report.evidence
    envelope = _unnumbered(stamp)
    envelope.report.CopyFrom(
        device_pb2.Report(
            model=report.model,
            version=report.version,
            rollout=report.rollout,
            generation=report.generation,
            state=phase_to_wire(report.phase),
            reason=report.reason,
            serving_version=report.serving_version,
            applied=report.applied,
            evidence=device_pb2.ProbationEvidence(
                inferences=evidence.inferences,
                errors=evidence.errors,
                p95_s=evidence.p95_s or 0.0,
                last_service_s=evidence.last_service_s,
                starved=evidence.starved,
                rolled_back_in_s=evidence.rolled_back_in_s,
            ),
        )
    )
    return envelope.SerializeToString()


def event_payload(happening: Happening, stamp: Stamp) -> bytes:
    """An event as the spool keeps it: an envelope that lacks boot id and number."""
    envelope = _unnumbered(stamp)
    envelope.event.CopyFrom(
        device_pb2.DeviceEvent(
            kind=happening.kind,
            model=happening.model,
            version=happening.version,
            reason=happening.reason,
            details=dict(happening.details),
            at=_timestamp(happening.at),
        )
    )
    return envelope.SerializeToString()


def numbered(entry: SpoolEntry, acknowledged: int = 0) -> device_pb2.Envelope:
    """The envelope of a spool entry, with boot id and number.

    `acknowledged` tells a controller that forgot reports how far it had acknowledged them.

    An entry that the device lost, or that cannot be read, is told as the event `report_lost`: its
    number must come, or the controller would wait for it for ever.
    """
    try:
        envelope = device_pb2.Envelope.FromString(entry.payload)
    except DecodeError:
        envelope = device_pb2.Envelope()
    if envelope.WhichOneof("body") != entry.kind:
        envelope = device_pb2.Envelope(
            protocol=PROTOCOL,
            clock_quality=device_pb2.CLOCK_QUALITY_UNSURE,
            event=device_pb2.DeviceEvent(
                kind="report_lost", reason="the spool on the device was damaged here"
            ),
        )
    envelope.boot_id = entry.boot_id
    envelope.seq = entry.seq
    envelope.acknowledged = acknowledged
    return envelope


def suffix_of(envelope: device_pb2.Envelope) -> str:
    """The topic a numbered envelope goes to."""
    return topics.UP_REPORT if envelope.WhichOneof("body") == "report" else topics.UP_EVENT


def presence_payload(boot_id: str, online: bool, stamp: Stamp) -> bytes:
    """The retained word on whether the device is there."""
    envelope = _unnumbered(stamp)
    envelope.boot_id = boot_id
    envelope.presence.online = online
    return envelope.SerializeToString()


def telemetry_payload(boot_id: str, window: TelemetryWindow, stamp: Stamp) -> bytes:
    """One window of measurements; unknown readings stay unset."""
    felt = window.pressure
    telemetry = device_pb2.Telemetry(
        window_s=window.window_s,
        samples=[_rung_sample(r) for r in window.rungs],
        temperature_c=felt.temperature_c,
        memory_used_pct=felt.memory_pct,
        cpu_used_pct=felt.cpu_pct,
        link_rtt_s=felt.link_rtt_s,
        agent_rss_bytes=window.rss_bytes,
        models=[
            device_pb2.ModelStatus(
                model=m.model,
                version=m.version,
                rung=m.rung,
                phase=m.phase.value,
                rung_reason=m.rung_reason,
            )
            for m in window.models
        ],
        applied_generation=window.applied_generation,
    )
    envelope = _unnumbered(stamp)
    envelope.boot_id = boot_id
    envelope.telemetry.CopyFrom(telemetry)
    return envelope.SerializeToString()


def phase_to_wire(phase: Phase) -> "device_pb2.AssignmentState.ValueType":
    """The wire's name of a phase; ValueError for IDLE, which is the device's own."""
    if phase is Phase.IDLE:
        raise ValueError("IDLE is not reported")
    return device_pb2.AssignmentState.Value(f"ASSIGNMENT_STATE_{phase.value}")


def _unnumbered(stamp: Stamp) -> device_pb2.Envelope:
    return device_pb2.Envelope(
        protocol=PROTOCOL,
        sent_at=_timestamp(stamp.at),
        clock_quality=_CLOCK[stamp.synced],
    )


def _rung_sample(window: RungWindow) -> device_pb2.RungSample:
    index, bucket = window.service.sparse()
    return device_pb2.RungSample(
        model=window.model,
        version=window.version,
        rung=window.rung,
        build_digest=window.digest,
        service=common_pb2.Histogram(
            scale=SCALE,
            count=window.service.count,
            sum_s=window.service.sum_s,
            index=index,
            bucket=bucket,
        ),
        errors=window.errors,
        non_finite=window.non_finite,
        queue_age_max_s=window.queue_age_max_s,
    )


def _timestamp(at: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(at.astimezone(UTC).replace(tzinfo=None))
    return stamp


# -- downwards -------------------------------------------------------------------------------------


def state_from_wire(answer: device_pb2.DesiredState) -> SignedState | None:
    """The signed bytes, or None where the controller says that nothing changed."""
    if answer.unchanged:
        return None
    if not answer.manifest:
        raise TrustError("the controller sent a desired state without a manifest")
    return SignedState(
        generation=answer.generation,
        manifest=answer.manifest,
        signatures=signatures_from(answer.signatures),
    )


def ack_from_wire(ack: device_pb2.Ack) -> AckPoint:
    """What the controller has stored."""
    return AckPoint(ack.boot_id, ack.seq)


def parse_doorbell(payload: bytes) -> int | None:
    """The generation a doorbell names; None for what is not one. It is a hint, never content."""
    if len(payload) > MAX_DOWN_BYTES:
        return None
    try:
        return int(device_pb2.Doorbell.FromString(payload).generation) or None
    except DecodeError:
        return None


def parse_orders_bell(payload: bytes) -> int:
    """The number of the orders that a doorbell names; 0 for none."""
    if len(payload) > MAX_DOWN_BYTES:
        return 0
    try:
        return int(device_pb2.Doorbell.FromString(payload).orders)
    except DecodeError:
        return 0


def orders_from_wire(answer: device_pb2.Orders) -> SignedOrders:
    """Orders that nobody has looked into yet."""
    return SignedOrders(answer.number, Signed(answer.manifest, signatures_from(answer.signatures)))


def engine_from_wire(answer: device_pb2.Engine) -> SignedEngine | None:
    """What another device compiled, unverified; None where there is nothing."""
    if not answer.found:
        return None
    return SignedEngine(
        Signed(answer.statement, signatures_from(answer.signatures)),
        Signed(answer.delegation, signatures_from(answer.delegation_signatures)),
    )


def signatures_from(signatures: Iterable[device_pb2.Signed]) -> tuple[Signature, ...]:
    """Signatures."""
    return tuple(Signature(one.key_id, one.signature) for one in signatures)


def parse_ack(payload: bytes) -> AckPoint | None:
    """An acknowledgement over MQTT; None for what is not one."""
    if len(payload) > MAX_DOWN_BYTES:
        return None
    try:
        ack = device_pb2.Ack.FromString(payload)
    except DecodeError:
        return None
    return ack_from_wire(ack) if ack.boot_id else None


def time_from_wire(stamp: timestamp_pb2.Timestamp) -> datetime:
    """An aware time."""
    return stamp.ToDatetime(tzinfo=UTC)


def keys_from_wire(keys: Sequence[object]) -> list[tuple[str, bytes]]:
    """Signing keys as (id, raw key)."""
    return [(str(k.key_id), bytes(k.public_key)) for k in keys]  # type: ignore[attr-defined]
