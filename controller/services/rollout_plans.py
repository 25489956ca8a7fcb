"""What a rollout would do, before it starts: devices, waves, bytes.

Forecasts nothing, writes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.domain.ladder import Ladder
from controller.domain.rollout import RolloutSpec, parse_rollout_spec
from controller.domain.selection import matches, order_key, parse_selector
from controller.domain.wave import Wave, parse_waves
from controller.domain.words import count_of
from controller.errors import NotFoundError, RefusedError
from controller.services.context import Ctx, Deps
from controller.services.desired import (
    Composer,
    Member,
    load_members,
    load_policies,
    make_composer,
)
from controller.services.suggestions import suggest_names
from controller.store import assignments
from controller.store.assignments import AssignmentRow
from controller.store.desired import desired_models
from controller.store.session import Connection

Json = dict[str, Any]
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Unready:
    """A selected device that nothing can be offered to, and why."""

    device_id: str
    profile: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanView:
    """What a rollout would do. `devices` will get the version; `unready` will not."""

    devices: int
    profiles: Mapping[str, int]
    waves: tuple[Wave, ...]
    unready: tuple[Unready, ...]
    bytes: int
    notes: tuple[str, ...]
    from_versions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ready:
    """A device that can get the version: what it gets, and what it runs now."""

    member: Member
    ladder: Ladder
    bytes: int
    current: Json | None

    @property
    def device_id(self) -> str:
        """Its id."""
        return self.member.subject.device_id


@dataclass(frozen=True, slots=True)
class Draft:
    """A rollout worked out but not started."""

    spec: RolloutSpec
    policies: dict[str, Json]
    ready: tuple[Ready, ...]
    unready: tuple[Unready, ...]
    waves: tuple[Wave, ...]
    open: tuple[AssignmentRow, ...]  # of other rollouts, to be superseded
    notes: tuple[str, ...]

    def view(self) -> PlanView:
        """As people see it."""
        return PlanView(
            devices=len(self.ready),
            profiles=dict(Counter(one.member.subject.profile for one in self.ready)),
            waves=self.waves,
            unready=self.unready,
            bytes=sum(one.bytes for one in self.ready),
            notes=self.notes,
            from_versions=dict(
                Counter(one.current["version"] if one.current else "" for one in self.ready)
            ),
        )


def plan_rollout(deps: Deps, ctx: Ctx, spec: Mapping[str, object]) -> PlanView:
    """What starting it now would do. Raises what starting would raise."""
    with deps.store.read() as conn:
        return draft_rollout(conn, ctx, parse_rollout_spec(spec)).view()


def draft_rollout(conn: Connection, ctx: Ctx, spec: RolloutSpec) -> Draft:
    """Work out a rollout. NotFoundError without version or device, RefusedError without a build."""
    policies = load_policies(conn, ctx.project, spec.policy)
    composer = make_composer(
        conn, ctx.project, spec.model, spec.version, policies, pinned=bool(spec.policy)
    )
    members = _selected(conn, ctx, spec)
    ids = [member.subject.device_id for member in members]
    running = desired_models(conn, ids)
    ready, unready = _sorted_out(composer, members, running)
    if not ready:
        raise RefusedError(
            f"{_nobody(len(members))} can get {spec.model}:{spec.version}",
            *(f"{one.device_id}: {one.reason}" for one in unready[:SHOWN]),
            f"fleetctl build run {spec.model}:{spec.version}, then look at fleetctl build list",
        )
    waves = parse_waves(spec.waves, len(ready), spec.override_first_wave_reason)
    open_rows = assignments.open_of_model(conn, spec.model, [one.device_id for one in ready])
    return Draft(
        spec=spec,
        policies=_snapshot(composer, ready, policies),
        ready=ready,
        unready=unready,
        waves=waves.waves,
        open=tuple(open_rows),
        notes=(*waves.notes, *_left_out(ready), *_superseding(open_rows)),
    )


def in_order(draft: Draft, rollout_id: str) -> list[Ready]:
    """The devices in the stable order of this rollout."""
    return sorted(draft.ready, key=lambda one: order_key(rollout_id, one.device_id))


def _selected(conn: Connection, ctx: Ctx, spec: RolloutSpec) -> list[Member]:
    members = load_members(conn, ctx.project)
    selector = parse_selector(spec.selector)
    chosen = [member for member in members if matches(selector, member.subject)]
    if chosen:
        return chosen
    if not members:
        raise NotFoundError("no active device", "fleetctl admin token create, then enrol one")
    profiles = Counter(member.subject.profile or "none" for member in members)
    text = ", ".join(f"{name} ({count})" for name, count in sorted(profiles.items()))
    wanted = [term.value for term in selector.terms if term.name == "profile"]
    raise NotFoundError(
        f"no device matches  {spec.selector}",
        f"{count_of(len(members), 'active device')}: {text}",
        *(suggest_names(wanted[0], sorted(profiles)) if wanted else ()),
    )


def _sorted_out(
    composer: Composer, members: list[Member], running: Mapping[str, Json]
) -> tuple[tuple[Ready, ...], tuple[Unready, ...]]:
    ready: list[Ready] = []
    unready: list[Unready] = []
    for member in members:
        subject = member.subject
        ladder = composer.ladder(member)
        if not ladder.rungs:
            unready.append(Unready(subject.device_id, subject.profile, ladder.reason))
            continue
        current = running.get(subject.device_id, {}).get(composer.version.model)
        ready.append(Ready(member, ladder, _bytes(ladder, current), current))
    return tuple(ready), tuple(unready)


def _bytes(ladder: Ladder, current: Json | None) -> int:
    """What has to travel: files that the device's present ladder of the model does not name."""
    there = {
        rung["target"]["digest"] for rung in (current or {}).get("ladder", ()) if rung["target"]
    }
    files = {r.build.digest: r.build.length for r in ladder.rungs if r.build is not None}
    return sum(length for digest, length in files.items() if digest not in there)


def _snapshot(
    composer: Composer, ready: tuple[Ready, ...], policies: dict[str, Json]
) -> dict[str, Json]:
    """The policies that these devices get, kept with the rollout: later changes are not for it."""
    used = {composer.policy(one.member.subject).name for one in ready}
    return {name: spec for name, spec in policies.items() if name in used}


def _left_out(ready: tuple[Ready, ...]) -> list[str]:
    counts = Counter(note for one in ready for note in one.ladder.notes)
    return [
        f"{note} ({count_of(count, 'device')} go without)" for note, count in sorted(counts.items())
    ]


def _superseding(open_rows: list[AssignmentRow]) -> list[str]:
    counts = Counter((row.rollout_id, row.version) for row in open_rows)
    return [
        f"supersedes {rollout_id} (version {version}) on {count_of(count, 'device')}"
        for (rollout_id, version), count in sorted(counts.items())
    ]


def _nobody(count: int) -> str:
    return "not the one device selected" if count == 1 else f"none of the {count:,} devices"
