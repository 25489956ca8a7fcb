"""What a rollout would do, before it starts: devices, waves, bytes.

Forecasts nothing, writes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from controller.domain.group import texts_of
from controller.domain.ladder import Ladder
from controller.domain.rollout import RolloutSpec, parse_rollout_spec
from controller.domain.selection import Op, Selector, matches, order_key
from controller.domain.selector import parse_filter
from controller.domain.wave import Wave, parse_waves
from controller.domain.words import count_of
from controller.errors import RefusedError
from controller.services.context import Ctx, Deps
from controller.services.desired import (
    Composer,
    Member,
    load_members,
    load_policies,
    make_composer,
)
from controller.services.models import require_version
from controller.services.rollout_checks import (
    MissingRung,
    RungCauses,
    VersionChange,
    change_notes,
    find_changes,
    find_missing,
    missing_notes,
    needed_overrides,
)
from controller.services.rollout_tries import (
    again,
    left_by_itself,
    left_text,
    named,
    tried_before,
)
from controller.services.selections import nobody_matches, slips
from controller.services.subjects import check_models, load_groups, read_selector
from controller.store import assignments
from controller.store.assignments import AssignmentRow
from controller.store.desired import desired_models
from controller.store.session import Connection

Json = dict[str, Any]
SHOWN = 3
QUARANTINED = "in quarantine (two holders of one identity); `fleetctl device accept` lets it in"


@dataclass(frozen=True, slots=True)
class Unready:
    """A selected device that nothing can be offered to, and why."""

    device_id: str
    profile: str
    reason: str
    quarantined: bool = False


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
    signature_changes: tuple[VersionChange, ...] = ()
    missing_rungs: tuple[MissingRung, ...] = ()
    needs_overrides: tuple[str, ...] = ()


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
    changes: tuple[VersionChange, ...]  # of the signature, against what runs
    missing: tuple[MissingRung, ...]

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
            signature_changes=self.changes,
            missing_rungs=self.missing,
            needs_overrides=needed_overrides(self.spec, self.changes),
        )


def plan_rollout(deps: Deps, ctx: Ctx, spec: Mapping[str, object]) -> PlanView:
    """What starting it now would do. Raises what starting would raise."""
    with deps.store.read() as conn:
        return draft_rollout(conn, ctx, parse_rollout_spec(spec)).view()


def draft_rollout(conn: Connection, ctx: Ctx, spec: RolloutSpec) -> Draft:
    """Work out a rollout. NotFoundError without version or device, RefusedError without a build."""
    policies = load_policies(conn, ctx.project, spec.policy)
    require_version(conn, ctx.project, spec.model, spec.version)
    groups = load_groups(conn, ctx.project)
    composer = make_composer(
        conn,
        ctx.project,
        spec.model,
        spec.version,
        policies,
        pinned=bool(spec.policy),
        groups=groups,
    )
    picked = _selected(conn, ctx, spec, composer)
    ids = [member.subject.device_id for member in picked.members]
    running = desired_models(conn, ids)
    tried = assignments.newest_tries(conn, spec.model, spec.version, ids)
    ready, unready, missing = _sorted_out(
        composer, spec, picked.members, running, {} if again(spec) else tried
    )
    if not ready:
        raise RefusedError(
            f"{_nobody(len(ids))} can get {spec.model}:{spec.version}",
            *(f"{one.device_id}: {one.reason}" for one in unready[:SHOWN]),
            *_way_out(spec, unready, tried, missing),
        )
    waves = parse_waves(spec.waves, len(ready), spec.override_first_wave_reason)
    open_rows = assignments.open_of_model(conn, spec.model, [one.device_id for one in ready])
    changes = _changes(conn, ctx, composer, ready, open_rows)
    snapshot = _snapshot(composer, ready, policies)
    return Draft(
        spec=_with_groups(spec, snapshot, groups),
        policies=snapshot,
        ready=ready,
        unready=unready,
        waves=waves.waves,
        open=tuple(open_rows),
        notes=(
            *(*waves.notes, *picked.notes, *_quarantined(unready)),
            *change_notes(spec, changes),
            *missing_notes(spec, missing),
            *_there_already(spec, ready),
            *_superseding(open_rows),
            *tried_before(spec, ids, tried),
        ),
        changes=changes,
        missing=missing,
    )


def in_order(draft: Draft, rollout_id: str) -> list[Ready]:
    """The devices in the stable order of this rollout; who runs the version already comes last.

    Such a device proves nothing of bringing it: as the canary it would open the next wave.
    """
    return sorted(
        draft.ready,
        key=lambda one: (_has_it(draft.spec, one), order_key(rollout_id, one.device_id)),
    )


def _has_it(spec: RolloutSpec, one: Ready) -> bool:
    return one.current is not None and one.current["version"] == spec.version


@dataclass(frozen=True, slots=True)
class _Picked:
    """The devices that the selector picks, and what is odd about it."""

    members: list[Member]
    notes: tuple[str, ...] = ()


def _selected(conn: Connection, ctx: Ctx, spec: RolloutSpec, composer: Composer) -> _Picked:
    selector = read_selector(conn, ctx.project, spec.selector, spec.model)
    models = selector.models | composer.models
    named = tuple(
        term.value for term in selector.terms if term.name == "device" and term.op is Op.EQUAL
    )
    # One device by its name: the others need not be read, unless to know a label from a model.
    alone = named[:1] if not selector.models else ()
    members = _load(conn, ctx, alone, models) if alone else []
    chosen = [member for member in members if matches(selector, member.subject)]
    if chosen:
        return _Picked(chosen)
    members = _load(conn, ctx, None, models)
    subjects = [member.subject for member in members]
    check_models(conn, ctx.project, selector, subjects)
    chosen = [member for member in members if matches(selector, member.subject)]
    if not chosen:
        raise nobody_matches(selector, subjects, spec.selector)
    return _Picked(chosen, slips(selector, subjects))


def _load(
    conn: Connection, ctx: Ctx, device_ids: tuple[str, ...] | None, models: frozenset[str]
) -> list[Member]:
    """With those in quarantine, that a person picks unknowing: they get nothing, and are named."""
    return load_members(conn, ctx.project, device_ids, models, quarantined_too=True)


def _with_groups(
    spec: RolloutSpec, policies: Mapping[str, Json], groups: Mapping[str, Selector]
) -> RolloutSpec:
    """With what its groups say now, those of its policies too: later changes are not for it."""
    texts = (spec.selector, *(str(one.get("selector") or "") for one in policies.values()))
    return replace(spec, groups=texts_of([parse_filter(text) for text in texts], groups))


def _changes(
    conn: Connection,
    ctx: Ctx,
    composer: Composer,
    ready: tuple[Ready, ...],
    open_rows: list[AssignmentRow],
) -> tuple[VersionChange, ...]:
    """Against what each device runs: where an order is on its way, what it would go back to."""
    before = {row.device_id: row.previous_entry for row in open_rows if row.exposed}
    entries = [before.get(one.device_id, one.current) for one in ready]
    running = Counter(str(entry["version"]) for entry in entries if entry is not None)
    model, version = composer.version.model, composer.version.version
    signatures = {
        name: require_version(conn, ctx.project, model, name).signature for name in running
    }
    return find_changes(version, composer.version.signature, running, signatures)


def _sorted_out(
    composer: Composer,
    spec: RolloutSpec,
    members: list[Member],
    running: Mapping[str, Json],
    tried: Mapping[str, AssignmentRow],
) -> tuple[tuple[Ready, ...], tuple[Unready, ...], tuple[MissingRung, ...]]:
    ready: list[Ready] = []
    unready: list[Unready] = []
    causes = RungCauses(composer)
    lacking: list[tuple[Member, tuple[str, ...]]] = []
    for member in members:
        subject = member.subject
        if subject.quarantined:
            unready.append(Unready(subject.device_id, subject.profile, QUARANTINED, True))
            continue
        before = tried.get(subject.device_id)
        if before is not None and left_by_itself(before):
            unready.append(Unready(subject.device_id, subject.profile, left_text(before)))
            continue
        ladder = composer.ladder(member)
        if not ladder.rungs:
            unready.append(Unready(subject.device_id, subject.profile, ladder.reason))
            continue
        if ladder.missing:
            lacking.append((member, ladder.missing))
            if not spec.override_missing_rung_reason:
                reason = causes.all_reasons(member, ladder.missing)
                unready.append(Unready(subject.device_id, subject.profile, reason))
                continue
        current = running.get(subject.device_id, {}).get(composer.version.model)
        ready.append(Ready(member, ladder, _bytes(ladder, current), current))
    return tuple(ready), tuple(unready), find_missing(causes, lacking)


def _way_out(
    spec: RolloutSpec,
    unready: tuple[Unready, ...],
    tried: Mapping[str, AssignmentRow],
    missing: tuple[MissingRung, ...],
) -> tuple[str, ...]:
    sane = [one for one in unready if not one.quarantined]
    left = [one for one in sane if one.device_id in tried and not again(spec)]
    alien = next((one.device_id for one in sane if not one.profile), "")
    known = sum(bool(one.profile) for one in sane)
    lines = [
        *dict.fromkeys(f"why: {one.command}" for one in missing),
        "to bring it without that rung: --override missing-rung --reason TEXT" if missing else "",
        f"fleetctl build run {spec.model}:{spec.version}, then look at fleetctl build list"
        if len(left) + sum(one.devices for one in missing) < known
        else "",
        f"a profile has to match what fleetctl device show {alien} tells: "
        "fleetctl apply -f PROFILE.yaml, then restart the agent"
        if alien
        else "",
        "to try it there again: --override rolled-back --reason TEXT" if left else "",
    ]
    return tuple(line for line in lines if line)


def _quarantined(unready: tuple[Unready, ...]) -> list[str]:
    ids = [one.device_id for one in unready if one.quarantined]
    verb = "is" if len(ids) == 1 else "are"
    return [f"{named(ids)} {verb} {QUARANTINED}: left out"] if ids else []


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


def _there_already(spec: RolloutSpec, ready: tuple[Ready, ...]) -> list[str]:
    there = sum(_has_it(spec, one) for one in ready)
    verb = "runs" if there == 1 else "run"
    return (
        [f"{count_of(there, 'device')} {verb} {spec.version} already: last in line, no canary"]
        if 0 < there < len(ready)
        else []
    )


def _superseding(open_rows: list[AssignmentRow]) -> list[str]:
    counts = Counter((row.rollout_id, row.version) for row in open_rows)
    return [
        f"supersedes {rollout_id} (version {version}) on {count_of(count, 'device')}"
        for (rollout_id, version), count in sorted(counts.items())
    ]


def _nobody(count: int) -> str:
    return "not the one device selected" if count == 1 else f"none of the {count:,} devices"
