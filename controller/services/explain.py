"""Answers "why is it so" about a device: facts from what is stored.

Guesses nothing: what was not reported or stored is not said.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.domain.device import DeviceState
from controller.domain.rollout import LIVE, OPEN, AssignmentState
from controller.domain.words import count_of, moment, ms, times_ms
from controller.errors import NotFoundError
from controller.services.context import Ctx, Deps
from controller.services.running import (
    ON_PROBATION,
    Running,
    entry_of,
    probation_text,
    what_runs,
)
from controller.services.suggestions import suggest_names
from controller.store import assignments, devices, events
from controller.store.assignments import AssignmentRow
from controller.store.builds import SeenRow, list_seen
from controller.store.desired import get_desired
from controller.store.devices import DeviceRow
from controller.store.events import EventRow
from controller.store.session import Connection

Json = dict[str, Any]
_A = AssignmentState
LAST_SHOWN = 6
_TIMES = re.compile(r"\([\d.]+(?: [\d.]+)*(?: ms)?\)")  # as a device names them in its reason


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of an explanation and the events behind it."""

    topic: str
    text: str
    event_ids: tuple[str, ...] = ()


def explain_device(deps: Deps, ctx: Ctx, device_id: str) -> tuple[Fact, ...]:
    """Why the device runs what it runs: per model, then its last events."""
    with deps.store.read() as conn:
        row = devices.get_device(conn, device_id)
        if row is None or row.project != ctx.project:
            known = [one.device_id for one in devices.list_devices(conn, ctx.project)]
            raise NotFoundError(
                f"no device {device_id}",
                *suggest_names(device_id, known, "no device is enrolled yet"),
            )
        desired = get_desired(conn, device_id)
        entries: dict[str, Json] = {} if desired is None else dict(desired.models)
        running = what_runs(conn, ctx.project, row)
        facts = _quarantine(conn, ctx, row)
        tried = {row.model for row in assignments.list_assignments(conn, device_id=device_id)}
        for model in sorted({*entries, *running, *tried}):
            facts += _model(conn, ctx, row, model, entries.get(model), running.get(model))
        if desired is not None and row.applied_generation < desired.generation:
            facts.append(_generation(conn, row, desired.generation))
        if not entries and not running:
            facts.insert(0, Fact("runs", _nothing_runs(facts)))
        said = events.list_events(conn, ctx.project, device_id=device_id, limit=LAST_SHOWN)
        return (*facts, *last_events(said))


def _nothing_runs(told: list[Fact]) -> str:
    came = any(one.topic in ("left", "refused", "version") for one in told)
    return "nothing" if came else "nothing: no rollout has reached it yet"


def _quarantine(conn: Connection, ctx: Ctx, row: DeviceRow) -> list[Fact]:
    """Why nothing that it says is taken."""
    if row.state != DeviceState.QUARANTINED:
        return []
    said = events.list_events(
        conn, ctx.project, device_id=row.device_id, kinds=("device_quarantined",), limit=1
    )
    why = f"since {moment(said[-1].at)}, {said[-1].reason}; " if said else ""
    text = f"{why}it serves on what it has; fleetctl device accept {row.device_id} lets it back in"
    return [Fact("quarantine", text, tuple(str(one.number) for one in said))]


def _model(
    conn: Connection,
    ctx: Ctx,
    row: DeviceRow,
    model: str,
    entry: Json | None,
    running: Running | None,
) -> list[Fact]:
    facts: list[Fact] = []
    version = running.version if running else ""
    mine = assignments.list_assignments(conn, device_id=row.device_id, model=model)
    if running and version:
        given = entry_of(version, entry, mine)
        facts.append(Fact("runs", _runs(running, given), running.event_ids))
        facts += [Fact(*one) for one in running.more]
    elif running or entry:
        said = "nothing answers" if running else "nothing was reported yet"
        facts.append(Fact("runs", f"{model}: {said}"))
    if entry and entry["version"] != version:
        facts.append(Fact("desired", f"{model}:{entry['version']}, rollout {entry['rollout']}"))
    shown = version or (str(entry["version"]) if entry else "")
    newest = _newest(mine, shown)
    if newest is not None:
        facts.append(_version(conn, ctx, newest, entry_of(shown, entry, mine)))
        if _is_of_before(newest, row):
            gone = "later than that; no version of before is on its disk"
            facts.append(Fact("enrolled", f"anew at {moment(row.enrolled_at)}, {gone}"))
    facts += [_left(one) for one in mine if one.version != shown and _was_left_last(one, mine)]
    if shown and row.profile:
        facts += _builds(
            list_seen(conn, ctx.project, model, shown, row.profile),
            row.profile,
            entry_of(shown, entry, mine),
        )
    anew = newest is not None and _is_of_before(newest, row)
    if newest is not None and newest.state in LIVE and _keeps_previous(newest, mine) and not anew:
        facts.append(Fact("can return", f"{model}:{newest.previous_version}"))
    return facts


def _is_of_before(row: AssignmentRow, device: DeviceRow) -> bool:
    """Whether the device was enrolled anew since: on its new disk nothing of that is left."""
    return row.activated_at is not None and row.activated_at < device.enrolled_at


def _keeps_previous(row: AssignmentRow, rows: list[AssignmentRow]) -> bool:
    """Whether the version before is still there: a newer one that was activated took its place."""
    at = row.offered_at or row.updated_at
    later = any(
        one.activated_at is not None and one.offered_at is not None and one.offered_at > at
        for one in rows
    )
    return row.previous_version not in (None, row.version) and not later


def _runs(running: Running, entry: Mapping[str, Any] | None) -> str:
    """Version, rung with the recipe of that version's own target, and since when."""
    recipes = {one["rung"]: one.get("recipe") for one in (entry or {}).get("ladder", ())}
    text = f"{running.model}:{running.version} {running.rung}".rstrip()
    if recipes.get(running.rung):
        text += f" ({recipes[running.rung]})"
    return text if running.since is None else f"{text} since {moment(running.since)}"


def _generation(conn: Connection, row: DeviceRow, desired: int) -> Fact:
    """What becomes of the newest order: on its way, being tried, or on its way back."""
    text = f"applied {row.applied_generation}, desired {desired}: "
    going = [
        one
        for one in assignments.list_assignments(conn, device_id=row.device_id, states=OPEN)
        if one.exposed
    ]
    newest = max(going, key=lambda one: one.generation or 0, default=None)
    if newest is None:
        text += "on its way"
    elif newest.state in ON_PROBATION:
        text += f"{newest.model}:{newest.version} is there, on probation"
    else:
        text += f"{newest.model}:{newest.version} is on its way ({newest.state.lower()})"
    return Fact("generation", text + ("" if row.online else ", the device is offline"))


def _was_left_last(row: AssignmentRow, rows: list[AssignmentRow]) -> bool:
    """Whether this was the newest order of its model and the device left or refused it."""
    came = [one for one in rows if one.offered_at or one.state is _A.REFUSED]
    newest = max(came, key=lambda one: one.offered_at or one.updated_at, default=None)
    gone = (_A.ROLLING_BACK, _A.ROLLED_BACK, _A.FAILED, _A.REFUSED)
    return row is newest and row.state in gone


def _left(row: AssignmentRow) -> Fact:
    """The version that was tried or refused last and is not what runs."""
    text = f"{row.model}:{row.version}: rollout {row.rollout_id}, {state_text(row)}"
    text += f" {moment(row.updated_at)}" + (f", {row.reason}" if row.reason else "")
    return Fact("refused" if row.state is _A.REFUSED else "left", text + times_text(row))


def state_text(row: AssignmentRow) -> str:
    return row.state.lower().replace("_", " ")


def times_text(row: AssignmentRow) -> str:
    """The slow service times, where they are the cause and the device's reason lacks them."""
    times = row.evidence.get("last_service_s") or ()
    if not times or _TIMES.search(row.reason) or "bad inference" in row.reason:
        return ""
    return f" ({times_ms(float(one) for one in times)} ms)"


def _newest(rows: list[AssignmentRow], version: str) -> AssignmentRow | None:
    offered = [row for row in rows if row.version == version and row.exposed]
    return max(offered, key=lambda row: row.offered_at or row.updated_at, default=None)


def _version(
    conn: Connection, ctx: Ctx, row: AssignmentRow, entry: Mapping[str, Any] | None
) -> Fact:
    parts = [f"{row.version}: rollout {row.rollout_id}, wave {row.wave}"]
    if row.state in ON_PROBATION:
        parts.append(probation_text(conn, row, entry, ctx.now))
    else:
        parts.append(f"{state_text(row)} {moment(row.finished_at or row.updated_at)}")
        inferences = int(row.evidence.get("inferences") or 0)
        if inferences:
            parts[-1] += f" after {count_of(inferences, 'inference')}"
    p95_s = row.evidence.get("p95_s")
    if p95_s:
        parts.append(f"p95 {ms(float(p95_s) * 1000, 2)} ms")
    if row.reason:
        parts.append(row.reason)
    return Fact("version", ", ".join(parts))


def _builds(seen: list[SeenRow], profile: str, entry: Mapping[str, Any] | None) -> list[Fact]:
    """Which builds this device could have, and why it has these."""
    facts: list[Fact] = []
    given = {
        rung["target"]["custom"]["build"]
        for rung in (entry or {}).get("ladder", ())
        if rung.get("target")
    }
    for variant in dict.fromkeys(one.gate.key.variant for one in seen):
        mine = [one for one in seen if one.gate.key.variant == variant]
        passed = [one for one in mine if one.gate.verdict in ("PASSED", "OVERRIDDEN")]
        refused = [one for one in mine if one.gate.verdict in ("REFUSED", "FAILED")]
        chosen = [one for one in passed if one.build is not None and one.build.build_id in given]
        lines = [f"{_allowed(one)}{_best_of(passed, profile)}" for one in chosen[:1]]
        lines += [_allowed(one) for one in passed if one not in chosen[:1]]
        lines += [f"{one.gate.key.recipe} refused ({one.gate.reason})" for one in refused]
        heads = (f"{variant}: ", *(["  "] * len(lines)))
        facts += [Fact("build", head + line) for head, line in zip(heads, lines, strict=False)]
    return facts


def _allowed(one: SeenRow) -> str:
    """A build that may be released: its speed, and on whose word where the gate refused it."""
    said = f"{one.gate.key.recipe}{_speed(one)}"
    if one.gate.verdict == "OVERRIDDEN":
        said += f", overridden by {one.gate.override_by}: {one.gate.override_reason}"
    return said


def _best_of(usable: list[SeenRow], profile: str) -> str:
    if len(usable) < 2:
        return ""
    forced = sum(one.gate.verdict == "OVERRIDDEN" for one in usable)
    more = f" and {forced} overridden" if forced else ""
    return f", best of {len(usable) - forced} that passed{more} for {profile}"


def _speed(one: SeenRow) -> str:
    p50 = ((one.build.evidence if one.build else None) or {}).get("p50_ms")
    return f" {ms(float(p50), 2)} ms" if p50 else ""


def last_events(said: list[EventRow], names: bool = False) -> list[Fact]:
    """The newest events in one fact; with `names` each says whose it is."""
    newest = said[-LAST_SHOWN:][::-1]
    if not newest:
        return []
    text = " · ".join(
        f"{moment(one.at)} {_whose(one) if names else ''}{_what(one)}"
        + (f" ({one.reason})" if one.reason else "")
        for one in newest
    )
    return [Fact("last", text, tuple(str(one.number) for one in newest))]


def _whose(event: EventRow) -> str:
    return f"{event.device_id} " if event.device_id else ""


def _what(event: EventRow) -> str:
    """The kind in words; of a change of phase also which one began."""
    words = event.kind.replace("_", " ")
    phase = event.details.get("to", "") if event.kind == "rollout_phase" else ""
    return f"{words} {phase}".rstrip()
