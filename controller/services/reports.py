"""Takes reports and events of devices in: each exactly once, without gaps, in one transaction.

An illegal report is stored as an event and changes nothing; it never raises, or a device with one
bad entry in its spool could never say anything again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.domain.device import DeviceState
from controller.domain.rollout import AssignmentState
from controller.domain.words import times_ms
from controller.errors import DeniedError
from controller.services.context import Ctx, Deps
from controller.services.device_sessions import boot_counter
from controller.store import assignments, boots, devices, events, outbox
from controller.store.boots import BootRow
from controller.store.devices import DeviceRow
from controller.store.outbox import OutboxKind
from controller.store.session import Connection

_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")
TEXT_MAX = 2000
DETAILS_MAX = 32


@dataclass(frozen=True, slots=True)
class ReportBody:
    """State of one model with respect to one rollout. `state` None: the device named none."""

    model: str
    version: str
    rollout: str
    generation: int
    state: AssignmentState | None
    reason: str = ""
    serving_version: str = ""
    applied: bool = False
    evidence: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class EventBody:
    """A thing that happened on the device."""

    kind: str
    model: str = ""
    version: str = ""
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceEnvelope:
    """One entry of a device's spool: boots and numbers make it unique."""

    boot_id: str
    seq: int
    body: ReportBody | EventBody


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything of this boot up to and including `seq` is stored."""

    boot_id: str
    seq: int


# Makes topic and payload of an acknowledgement: knowledge of the wire stays with the door.
AckMessage = Callable[[Ack], tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One acknowledgement per boot that spoke, and whether an assignment changed."""

    acks: tuple[Ack, ...]
    changed: bool


def accept_reports(
    deps: Deps,
    ctx: Ctx,
    device_id: str,
    envelopes: Sequence[DeviceEnvelope],
    ack_message: AckMessage | None = None,
) -> Accepted:
    """Store what is new and contiguous; duplicates and what follows a gap are acknowledged only.

    With `ack_message` the acknowledgement goes out through the outbox. Raises DeniedError for
    devices that may not speak, InvalidError for a boot id without a counter.
    """
    with deps.store.write() as conn:
        row = devices.get_device(conn, device_id)
        if row is None or row.state not in (DeviceState.ACTIVE, DeviceState.PENDING):
            state = "not enrolled" if row is None else row.state.lower()
            raise DeniedError(f"device {device_id} is {state}: its reports are not taken")
        last: dict[str, BootRow] = {}
        reached: dict[str, int] = {}
        changed = False
        for envelope in envelopes:
            boot = last.get(envelope.boot_id) or _boot(conn, ctx, device_id, envelope.boot_id)
            last[envelope.boot_id] = boot
            at = reached.setdefault(envelope.boot_id, boot.last_seq)
            if envelope.seq == at + 1:
                changed |= _store(conn, ctx, row, envelope)
                reached[envelope.boot_id] = envelope.seq
        for boot_id, seq in reached.items():
            if seq > last[boot_id].last_seq:
                boots.set_last_seq(conn, device_id, boot_id, seq)
        devices.update_device(conn, device_id, last_seen_at=ctx.now)
        acks = tuple(Ack(boot_id, seq) for boot_id, seq in reached.items())
        if ack_message is not None:
            for ack in acks:
                topic, payload = ack_message(ack)
                outbox.append(conn, ctx.now, OutboxKind.ACK, topic, payload)
    if changed:
        deps.wake()
    return Accepted(acks, changed)


def _boot(conn: Connection, ctx: Ctx, device_id: str, boot_id: str) -> BootRow:
    known = boots.get_boot(conn, device_id, boot_id)
    if known is not None:
        return known
    return boots.add_boot(conn, device_id, boot_id, boot_counter(boot_id), ctx.now)


def _store(conn: Connection, ctx: Ctx, row: DeviceRow, envelope: DeviceEnvelope) -> bool:
    body = envelope.body
    if isinstance(body, EventBody):
        _append(conn, ctx, row, envelope, _event_kind(body.kind), body.reason, body.details)
        return False
    if body.applied:
        devices.raise_applied(conn, row.device_id, body.generation)
    kind, reason, changed = _apply(conn, ctx, row, body)
    _append(conn, ctx, row, envelope, kind, reason, _details(body))
    return changed or body.applied


def _apply(conn: Connection, ctx: Ctx, row: DeviceRow, body: ReportBody) -> tuple[str, str, bool]:
    """Kind and reason of the event, and whether the assignment is another one now."""
    if body.state is None:
        return "report_ignored", "no state in the report", False
    row_before = assignments.get_assignment(conn, body.rollout, row.device_id)
    ours = row_before is not None and (row_before.model, row_before.version) == (
        body.model,
        body.version,
    )
    if not ours:
        if body.applied:
            return "generation_applied", body.reason, False
        what = f"{body.model}:{body.version} in rollout {body.rollout or '–'}"
        return "report_ignored", f"no assignment of {what}", False
    outcome = assignments.record_report(
        conn,
        row.device_id,
        body.rollout,
        body.state,
        body.reason[:TEXT_MAX],
        body.evidence,
        ctx.now,
    )
    if outcome.ignored:
        if body.applied:
            return "generation_applied", body.reason or outcome.ignored, False
        return "report_ignored", outcome.ignored, False
    if not outcome.changed and body.applied:
        return "generation_applied", body.reason, True
    return f"assignment_{outcome.state.lower()}", body.reason, True


def _append(
    conn: Connection,
    ctx: Ctx,
    row: DeviceRow,
    envelope: DeviceEnvelope,
    kind: str,
    reason: str,
    details: Mapping[str, Any],
) -> None:
    body = envelope.body
    events.append(
        conn,
        row.project,
        ctx.now,
        kind,
        row.device_id,
        device_id=row.device_id,
        boot_id=envelope.boot_id,
        seq=envelope.seq,
        model=body.model[:TEXT_MAX] or None,
        version=body.version[:TEXT_MAX] or None,
        rollout_id=(body.rollout if isinstance(body, ReportBody) else "") or None,
        reason=reason[:TEXT_MAX],
        details={
            name[:80]: str(value)[:TEXT_MAX] for name, value in list(details.items())[:DETAILS_MAX]
        },
    )


def _event_kind(kind: str) -> str:
    """Devices name their events; what is no name is kept under one."""
    return kind if _KIND.fullmatch(kind) else "device_event"


def _details(body: ReportBody) -> dict[str, Any]:
    details: dict[str, Any] = {
        "state": body.state or "",
        "generation": body.generation,
        "serving_version": body.serving_version,
    }
    if body.applied:
        details["applied"] = "true"
    evidence = body.evidence or {}
    for name in ("inferences", "errors", "p95_s", "rolled_back_in_s"):
        if evidence.get(name):
            details[name] = evidence[name]
    if evidence.get("last_service_s"):
        details["last_service_ms"] = times_ms(evidence["last_service_s"])
    return details
