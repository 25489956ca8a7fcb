"""Takes reports and events of devices in: each exactly once, without gaps, in one transaction.

What many devices say at once is read and written in a few statements for all of them.

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
from controller.errors import DeniedError, LightermanError
from controller.services.context import Ctx, Deps
from controller.services.device_sessions import boot_counter
from controller.services.tuning_reports import KINDS, take_word
from controller.store import assignments, boots, devices, events, outbox, reported
from controller.store.assignments import AssignmentRow
from controller.store.boots import BootRow
from controller.store.devices import Speaker
from controller.store.events import NewEvent
from controller.store.outbox import OutboxKind
from controller.store.session import Connection

_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")
TEXT_MAX = 2000
DETAILS_MAX = 32
SEQ_MAX = 2**53  # what every database and every reader of JSON can hold


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
    acknowledged: int = 0  # the device says that all up to here was acknowledged and is gone


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything of this boot up to and including `seq` is stored."""

    boot_id: str
    seq: int


# Makes topic and payload of an acknowledgement: knowledge of the wire stays with the door.
AckMessage = Callable[[Ack], tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One acknowledgement per boot that spoke."""

    acks: tuple[Ack, ...]


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
        desk = _Desk(conn, ctx, {device_id: envelopes})
        accepted = desk.take(device_id, envelopes)
        desk.write()
        if ack_message is not None:
            outbox.append_many(
                conn, ctx.now, OutboxKind.ACK, [ack_message(ack) for ack in accepted.acks]
            )
    desk.tell_tick(deps)
    return accepted


def accept_spools(
    deps: Deps, ctx: Ctx, spools: Mapping[str, Sequence[DeviceEnvelope]]
) -> dict[str, Accepted | LightermanError]:
    """`accept_reports` for many devices in one transaction; what one may not say holds up no other.

    Acknowledge only after this returned: then it is committed.
    """
    answers: dict[str, Accepted | LightermanError] = {}
    with deps.store.write() as conn:
        desk = _Desk(conn, ctx, spools)
        for device_id, envelopes in spools.items():
            try:
                answers[device_id] = desk.take(device_id, envelopes)
            except LightermanError as error:
                answers[device_id] = error
        desk.write()
    desk.tell_tick(deps)
    return answers


class _Desk:
    """What is known of those who speak, and what their words make of it, until `write`."""

    def __init__(
        self, conn: Connection, ctx: Ctx, spools: Mapping[str, Sequence[DeviceEnvelope]]
    ) -> None:
        said = [one for envelopes in spools.values() for one in envelopes]
        rollouts = {one.body.rollout for one in said if isinstance(one.body, ReportBody)}
        self._conn = conn
        self._ctx = ctx
        self._speakers = devices.list_speakers(conn, spools)
        self._boots = boots.list_boots(conn, spools, {one.boot_id for one in said})
        self._assignments = reported.list_spoken_of(conn, rollouts, spools) if rollouts else {}
        self._moved: dict[tuple[str, str], AssignmentRow] = {}
        self._events: list[NewEvent] = []
        self._reached: dict[tuple[str, str], int] = {}
        self._applied: dict[str, int] = {}
        self._news: set[str] = set()  # rollouts
        self._left: set[str] = set()  # those that a device left, or could not follow
        self._measured: list[tuple[str, EventBody]] = []

    def take(self, device_id: str, envelopes: Sequence[DeviceEnvelope]) -> Accepted:
        """Take in what one device says. DeniedError, InvalidError; then nothing of it counts."""
        speaker = self._speakers.get(device_id)
        if speaker is None or speaker.state not in (DeviceState.ACTIVE, DeviceState.PENDING):
            state = "not enrolled" if speaker is None else speaker.state.lower()
            raise DeniedError(f"device {device_id} is {state}: its reports are not taken")
        for boot_id in {one.boot_id for one in envelopes}:
            boot_counter(boot_id)
        reached: dict[str, int] = {}
        for envelope in envelopes:
            last = reached.get(envelope.boot_id)
            if last is None:
                last = self._boot(device_id, envelope.boot_id).last_seq
            if last < envelope.acknowledged == envelope.seq - 1 and envelope.seq <= SEQ_MAX:
                self._note_forgotten(speaker, envelope, last + 1)
                last = envelope.acknowledged
            if envelope.seq == last + 1:
                self._store(speaker, envelope)
                last = envelope.seq
            reached[envelope.boot_id] = last
        for boot_id, seq in reached.items():
            if seq > self._boots[device_id, boot_id].last_seq:
                self._reached[device_id, boot_id] = seq
        self._applied.setdefault(device_id, 0)
        return Accepted(tuple(Ack(boot_id, seq) for boot_id, seq in reached.items()))

    def write(self) -> None:
        """Store everything."""
        boots.set_last_seqs(self._conn, self._reached)
        events.append_many(self._conn, self._events)
        reported.put_reported(self._conn, self._moved.values())
        for device_id, said in self._measured:
            take_word(self._conn, self._ctx, device_id, said.kind, said.reason, said.details)
        now = self._ctx.now
        devices.note_heard(
            self._conn, [(name, now, applied, None) for name, applied in self._applied.items()]
        )

    def tell_tick(self, deps: Deps) -> None:
        """Have the rollouts looked at of which there is news; call it behind the transaction."""
        if self._left:
            deps.agenda.note(self._left, urgent=True)
        if self._news - self._left:
            deps.agenda.note(self._news - self._left)

    def _boot(self, device_id: str, boot_id: str) -> BootRow:
        known = self._boots.get((device_id, boot_id))
        if known is None:
            counter, now = boot_counter(boot_id), self._ctx.now
            known = boots.add_boot(self._conn, device_id, boot_id, counter, now)
            self._boots[device_id, boot_id] = known
        return known

    def _note_forgotten(self, speaker: Speaker, envelope: DeviceEnvelope, first: int) -> None:
        """A gap that can never be filled is recorded, and the log of the boot goes on behind it."""
        seqs = f"{first} to {envelope.acknowledged}"
        reason = (
            f"reports {seqs} of boot {envelope.boot_id} were acknowledged and are not stored:"
            " the database was restored from an older state"
        )
        self._events.append(
            NewEvent(
                project=speaker.project,
                at=self._ctx.now,
                kind="reports_forgotten",
                actor="controller",
                device_id=speaker.device_id,
                reason=reason,
                details={"boot_id": envelope.boot_id, "reports": seqs},
            )
        )

    def _store(self, speaker: Speaker, envelope: DeviceEnvelope) -> None:
        body = envelope.body
        if isinstance(body, EventBody):
            self._tell(speaker, envelope, _event_kind(body.kind), body.reason, body.details)
            if body.kind in KINDS:
                self._measured.append((speaker.device_id, body))
            return
        if body.applied:
            before = self._applied.get(speaker.device_id, 0)
            self._applied[speaker.device_id] = max(before, body.generation)
        kind, reason, changed = self._apply(speaker, body)
        self._tell(speaker, envelope, kind, reason, _details(body))
        if changed or body.applied:
            self._news.add(body.rollout)

    def _is_followed(self, row: AssignmentRow) -> bool:
        """Whether a committed version is left while a newer order of the model is open.

        A device has one open order of a model: the one that is left is closed then, not opened
        anew, and counts as left all the same.
        """
        if row.state is not AssignmentState.COMMITTED:
            return False
        others = assignments.open_of_model(self._conn, row.model, [row.device_id])
        return any(one.rollout_id != row.rollout_id for one in others)

    def _apply(self, speaker: Speaker, body: ReportBody) -> tuple[str, str, bool]:
        """Kind and reason of the event, and whether the assignment is another one now."""
        if body.state is None:
            return "report_ignored", "no state in the report", False
        key = (body.rollout, speaker.device_id)
        row = self._assignments.get(key)
        if row is None or (row.model, row.version) != (body.model, body.version):
            if body.applied:
                return "generation_applied", body.reason, False
            what = f"{body.model}:{body.version} in rollout {body.rollout or '–'}"
            return "report_ignored", f"no assignment of {what}", False
        state = body.state
        if state is AssignmentState.ROLLING_BACK and self._is_followed(row):
            state = AssignmentState.ROLLED_BACK
        outcome, after = reported.take_report(
            row, state, body.reason[:TEXT_MAX], body.evidence, self._ctx.now
        )
        if after is not row:
            self._assignments[key] = self._moved[key] = after
            if after.state is not row.state and after.state in reported.LEFT:
                self._left.add(body.rollout)
        if outcome.ignored:
            if body.applied:
                return "generation_applied", body.reason or outcome.ignored, False
            return "report_ignored", outcome.ignored, False
        if not outcome.changed and body.applied:
            return "generation_applied", body.reason, True
        return f"assignment_{outcome.state.lower()}", body.reason, True

    def _tell(
        self,
        speaker: Speaker,
        envelope: DeviceEnvelope,
        kind: str,
        reason: str,
        details: Mapping[str, Any],
    ) -> None:
        body = envelope.body
        kept = list(details.items())[:DETAILS_MAX]
        self._events.append(
            NewEvent(
                project=speaker.project,
                at=self._ctx.now,
                kind=kind,
                actor=speaker.device_id,
                device_id=speaker.device_id,
                boot_id=envelope.boot_id,
                seq=envelope.seq,
                model=body.model[:TEXT_MAX] or None,
                version=body.version[:TEXT_MAX] or None,
                rollout_id=(body.rollout if isinstance(body, ReportBody) else "") or None,
                reason=reason[:TEXT_MAX],
                details={name[:80]: str(value)[:TEXT_MAX] for name, value in kept},
            )
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
