"""Envelopes of devices to values. A payload that is not what its topic says is None."""

import json
import math

from google.protobuf.message import DecodeError

from controller.domain.histogram import Histogram
from controller.domain.rollout import AssignmentState
from controller.domain.words import one_line
from controller.errors import InvalidError
from controller.services.outbox import OutboxKind, OutboxRow
from controller.services.protocol import check_protocol
from controller.services.reports import Ack, DeviceEnvelope, EventBody, ReportBody
from controller.services.telemetry import ModelStatus, RungSample, Telemetry
from lighterman.v1 import device_pb2, topics

BODY_OF = {
    topics.UP_PRESENCE: "presence",
    topics.UP_REPORT: "report",
    topics.UP_TELEMETRY: "telemetry",
    topics.UP_EVENT: "event",
}
LIST_MAX = 200
TEXT_MAX = 200
SCALE_MAX = 8  # agents measure at 3; each step doubles the buckets that one row may hold
NUMBER_MAX = 2**31 - 1


def parse_envelope(suffix: str, payload: bytes) -> device_pb2.Envelope | None:
    """The envelope if its body is the one that the topic demands, else None.

    Raises ProtocolError for one of another version: its fields may mean something else.
    """
    try:
        envelope = device_pb2.Envelope.FromString(payload)
    except DecodeError:
        return None
    body = envelope.WhichOneof("body")
    if envelope.protocol or body:  # else it says nothing at all, in no version
        check_protocol(envelope.protocol)
    if body != BODY_OF[suffix] or not envelope.boot_id:
        return None
    return envelope


def spooled(envelope: device_pb2.Envelope) -> DeviceEnvelope | None:
    """A report or event with its number, else None."""
    if envelope.seq < 1:
        return None
    if envelope.WhichOneof("body") == "event":
        said = envelope.event
        body = EventBody(
            said.kind,
            one_line(said.model),
            one_line(said.version),
            one_line(said.reason),
            {one_line(name): one_line(text) for name, text in said.details.items()},
        )
        return DeviceEnvelope(envelope.boot_id, envelope.seq, body, envelope.acknowledged)
    report = envelope.report
    evidence = report.evidence
    return DeviceEnvelope(
        envelope.boot_id,
        envelope.seq,
        ReportBody(
            model=one_line(report.model),
            version=one_line(report.version),
            rollout=one_line(report.rollout),
            generation=_number(report.generation),
            state=_state(report.state),
            reason=one_line(report.reason),
            serving_version=one_line(report.serving_version),
            applied=report.applied,
            evidence={
                "inferences": evidence.inferences,
                "errors": evidence.errors,
                "p95_s": evidence.p95_s,
                "last_service_s": list(evidence.last_service_s)[:100],
                "starved": evidence.starved,
                "rolled_back_in_s": evidence.rolled_back_in_s,
            }
            if report.HasField("evidence")
            else None,
        ),
        envelope.acknowledged,
    )


def _short(text: str) -> str:
    return one_line(text[:TEXT_MAX])


def _number(number: int) -> int:
    if number > NUMBER_MAX:
        raise InvalidError(f"generation {number} was never given out")
    return number


def telemetry_of(envelope: device_pb2.Envelope) -> Telemetry:
    """One telemetry message; InvalidError where figures do not add up."""
    said = envelope.telemetry
    return Telemetry(
        samples=[_sample(one) for one in list(said.samples)[:LIST_MAX]],
        models=[
            ModelStatus(
                _short(one.model),
                _short(one.version),
                _short(one.rung),
                _short(one.phase),
                _short(one.rung_reason),
            )
            for one in list(said.models)[:LIST_MAX]
        ],
        temperature_c=_finite(said.temperature_c) if said.HasField("temperature_c") else None,
        memory_used_pct=_finite(said.memory_used_pct) if said.HasField("memory_used_pct") else None,
        cpu_used_pct=_finite(said.cpu_used_pct) if said.HasField("cpu_used_pct") else None,
        applied_generation=_number(said.applied_generation),
    )


def _sample(one: device_pb2.RungSample) -> RungSample:
    service = one.service
    if len(service.index) != len(service.bucket) or len(service.index) > 2000:
        raise InvalidError("a histogram whose buckets do not fit their indices")
    histogram = Histogram(
        scale=service.scale,
        count=service.count,
        sum_s=service.sum_s,
        zero_count=service.zero_count,
        buckets=dict(zip(service.index, service.bucket, strict=True)),
    )
    histogram.check()
    if service.scale > SCALE_MAX:
        raise InvalidError(f"a histogram of scale {service.scale}, the finest is {SCALE_MAX}")
    return RungSample(
        model=_short(one.model),
        version=_short(one.version),
        rung=_short(one.rung),
        build_digest=_short(one.build_digest),
        service=histogram,
        errors=min(one.errors, NUMBER_MAX),
        non_finite=min(one.non_finite, NUMBER_MAX),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _state(state: int) -> AssignmentState | None:
    try:
        name = device_pb2.AssignmentState.Name(state)  # type: ignore[arg-type]
        return AssignmentState(name.removeprefix("ASSIGNMENT_STATE_"))
    except ValueError:
        return None


def ack_message(device_id: str, ack: Ack) -> tuple[str, bytes]:
    """Topic and payload of an acknowledgement."""
    message = device_pb2.Ack(boot_id=ack.boot_id, seq=ack.seq)
    return topics.device(device_id, topics.DOWN_ACK), message.SerializeToString()


def told_message(row: OutboxRow) -> tuple[str, bytes]:
    """Topic and payload of an outbox row: services name devices and rollouts, not topics."""
    match row.kind:
        case OutboxKind.DOORBELL:
            bell = json.loads(row.payload)
            orders = int(bell.get("orders", 0))
            return bell_message(row.topic, bell["generation"], bell["manifest_digest"], orders)
        case OutboxKind.FEED:
            _, project, rollout_id = row.topic.split("/")
            return topics.feed_rollout(project, rollout_id), row.payload
        case _:
            return row.topic, row.payload


def bell_message(
    device_id: str, generation: int, manifest_digest: str, orders: int = 0
) -> tuple[str, bytes]:
    """Topic and payload of a doorbell; 0 orders are no news of any."""
    bell = device_pb2.Doorbell(
        generation=generation, manifest_digest=manifest_digest, orders=orders
    )
    return topics.device(device_id, topics.DOWN_DESIRED), bell.SerializeToString()
