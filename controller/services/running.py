"""What a device runs now: of its telemetry, its reports and its events the one that spoke last.

Telemetry comes every few seconds, a report at once: after a rollback the report is the newer truth.
Reads only; what nobody said is empty, never guessed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from controller.domain.rollout import AssignmentState
from controller.domain.words import count_of, moment
from controller.store.assignments import AssignmentRow
from controller.store.devices import DeviceRow
from controller.store.events import EventRow, list_events
from controller.store.samples import is_of_build, list_samples
from controller.store.session import Connection

Json = Mapping[str, Any]
EVENTS_SEEN = 200
_STAYS = ("boot", "cannot_return", "recovered")
ON_PROBATION = frozenset({AssignmentState.ACTIVATED, AssignmentState.PROBATION})


@dataclass(frozen=True, slots=True)
class Running:
    """One model on a device. `version` empty: nothing answers. `since`: when it was said to run.

    `rung` and `since` are empty where the newest word named none.
    """

    model: str
    version: str
    rung: str = ""
    rung_reason: str = ""
    since: datetime | None = None
    event_ids: tuple[str, ...] = ()
    stays: str = ""  # why it is to be left and cannot be
    stays_ids: tuple[str, ...] = ()

    @property
    def more(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """What else is to be said: topic, text, events."""
        told: list[tuple[str, str, tuple[str, ...]]] = []
        if self.rung_reason:
            told.append(("rung", f"{self.rung}: {self.rung_reason}", ()))
        if self.stays:
            told.append(("stays", self.stays, self.stays_ids))
        return told


def what_runs(conn: Connection, project: str, row: DeviceRow) -> dict[str, Running]:
    """What answers requests on the device, by model."""
    status = row.status or {}
    found = {
        str(one["model"]): Running(
            str(one["model"]),
            str(one["version"]),
            str(one.get("rung") or ""),
            str(one.get("rung_reason") or ""),
        )
        for one in status.get("models", ())
    }
    heard_at = datetime.fromisoformat(status["at"]) if status.get("at") else None
    said = list_events(conn, project, device_id=row.device_id, since=heard_at, limit=EVENTS_SEEN)
    for event in said:
        if event.model and event.actor == row.device_id:
            after = _after(found.get(event.model), event)
            if after is not None:
                found[event.model] = after
    return _with_stays(conn, project, row, found)


def _with_stays(
    conn: Connection, project: str, row: DeviceRow, found: dict[str, Running]
) -> dict[str, Running]:
    """With what the device last said of a version that it would leave; a start forgets it."""
    said = list_events(conn, project, device_id=row.device_id, kinds=_STAYS, limit=EVENTS_SEEN)
    stays: dict[str, EventRow] = {}
    for event in said:
        if event.kind == "boot":
            stays.clear()
        elif event.kind == "recovered":
            stays.pop(str(event.model), None)
        else:
            stays[str(event.model)] = event
    for model, event in stays.items():
        runs = found.get(model)
        if runs is not None and runs.version == event.version:
            text = f"{model}:{event.version} since {moment(event.at)}: {event.reason}"
            found[model] = replace(runs, stays=text, stays_ids=(str(event.number),))
    return found


def _after(before: Running | None, event: EventRow) -> Running | None:
    """What an event makes of what was known; None where it says nothing of what runs."""
    details = event.details
    number = (str(event.number),)
    match event.kind:
        case "rung_changed":
            version = event.version or (before.version if before else "")
            since = before.since if before and before.version == version else None
            rung = details.get("to", "")
            return Running(str(event.model), version, rung, event.reason, since, number)
        case "rolled_back" if details.get("to"):
            version = details["to"]
        case _ if "serving_version" in details:
            version = details["serving_version"]
        case _:
            return None
    if before is not None and before.version == version:
        return replace(before, event_ids=(*before.event_ids, *number))
    return Running(str(event.model), version, since=event.at, event_ids=number)


def entry_of(version: str, entry: Json | None, rows: Iterable[AssignmentRow]) -> Json | None:
    """The manifest entry by which a device has this version: the desired one, or one before it."""
    if entry is not None and entry["version"] == version:
        return entry
    known = [row for row in rows if (row.previous_entry or {}).get("version") == version]
    newest = max(known, key=lambda row: row.offered_at or row.updated_at, default=None)
    return None if newest is None else newest.previous_entry


def probation_text(conn: Connection, row: AssignmentRow, entry: Json | None, now: datetime) -> str:
    """``on probation: 12 of 50 inferences, 8 s of at least 30 s``, as far as it is known."""
    since = row.activated_at or row.updated_at
    elapsed_s = max(0.0, (now - since).total_seconds())
    count = max(int(row.evidence.get("inferences") or 0), _inferences(conn, row, since))
    rules = dict((entry or {}).get("policy", {}).get("probation", {}))
    if not rules:
        return f"on probation: {count_of(count, 'inference')} in {elapsed_s:.0f} s"
    parts = [f"{count:,} of {count_of(int(rules['min_inferences']), 'inference')}"]
    if elapsed_s < float(rules["min_s"]):
        parts.append(f"{elapsed_s:.0f} s of at least {float(rules['min_s']):g} s")
    else:
        parts.append(f"{elapsed_s:.0f} s, at most {float(rules['max_s']):g} s")
    return "on probation: " + ", ".join(parts)


def _inferences(conn: Connection, row: AssignmentRow, since: datetime) -> int:
    """Answers of the new version since it was activated, as telemetry counted them."""
    seen = list_samples(
        conn,
        device_ids=[row.device_id],
        model=row.model,
        version=row.version,
        since=row.offered_at or since,
    )
    return sum(one.histogram.count + one.errors for one in seen if is_of_build(one))
