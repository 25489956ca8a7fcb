"""Orders to devices within a rollout: offer, withdraw, call back, and closing what devices left.

Refuses to decide: it carries out what the planner said, in the caller's transaction.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from controller.domain.histogram import merged
from controller.domain.ladder import Ladder
from controller.domain.rollout import (
    CALLED_BACK,
    UNDERWAY,
    AssignmentState,
    RolloutSpec,
    parse_rollout_spec,
)
from controller.services.context import Ctx, Deps
from controller.services.desired import Change, Composer, DesiredBook, Member, load_members
from controller.services.rollout_checks import RungCauses, differs
from controller.services.ways_back import ways_back
from controller.store import assignments, events, ledger
from controller.store.assignments import AssignmentRow
from controller.store.events import NewEvent
from controller.store.reported import list_spoken_of
from controller.store.rollouts import RolloutRow
from controller.store.samples import SampleRow, is_of_build, list_samples
from controller.store.session import Connection

Json = dict[str, Any]
Step = tuple[AssignmentRow, AssignmentState, str, Mapping[str, object]]
_A = AssignmentState

BASELINE = timedelta(minutes=15)
RETIRED = "the device was retired"
NEVER_OFFERED = "the rollout ended before it was offered"


def offer(
    conn: Connection,
    deps: Deps,
    ctx: Ctx,
    rollout: RolloutRow,
    composer: Composer,
    wave: int,
    device_ids: tuple[str, ...],
) -> int:
    """Offer the version to planned devices; says how many got it.

    A device for which no build passes any more is REFUSED with that reason, and so is one for which
    something changed since the start that only a person may overrule: a rung or a signature.
    """
    spec = parse_rollout_spec(rollout.spec)
    causes = RungCauses(composer)
    listed = load_members(conn, rollout.project, device_ids, composer.models)
    members = {member.subject.device_id: member for member in listed}
    seen = _by_device(
        list_samples(conn, device_ids=device_ids, model=rollout.model, since=ctx.now - BASELINE)
    )
    rows = list_spoken_of(conn, [rollout.rollout_id], device_ids)
    book = DesiredBook(conn, device_ids)
    before = _previous_entries(conn, book, device_ids, rollout.model)
    offers: list[Step] = []
    refusals: list[Step] = []
    told: list[NewEvent] = []
    for device_id in device_ids:
        row = rows.get((rollout.rollout_id, device_id))
        if row is None or row.state is not _A.PLANNED:
            continue
        member, previous = members.get(device_id), before[device_id]
        ladder = composer.ladder(member) if member else None
        reason = _refusal(spec, causes, member, ladder, previous)
        if member is None or ladder is None or reason:
            refusals.append((row, _A.REFUSED, reason, {"finished_at": ctx.now}))
            told.append(_event(ctx, row, "assignment_refused", reason))
            continue
        entry = composer.entry(member, ladder, rollout.rollout_id)
        generation = book.change(Change(device_id, rollout.model, entry))
        baseline = _baseline(seen.get(device_id, ()), previous, member, ladder)
        values = _offered(wave, generation, previous, baseline) | {"offered_at": ctx.now}
        offers.append((row, _A.OFFERED, f"offered in wave {wave}", values))
        what = f"wave {wave}, generation {generation}"
        told.append(_event(ctx, row, "assignment_offered", what))
    book.write(deps, ctx)
    for steps in (offers, refusals):
        assignments.move_many(conn, steps, ctx.now)
    events.append_many(conn, told)
    return len(offers)


def _refusal(
    spec: RolloutSpec,
    causes: RungCauses,
    member: Member | None,
    ladder: Ladder | None,
    previous: Json | None,
) -> str:
    """Why a device may not be offered this version; empty where it may."""
    if member is None or ladder is None:
        return "not active any more"
    if not ladder.rungs:
        return ladder.reason
    if ladder.missing and not spec.override_missing_rung_reason:
        return causes.all_reasons(member, ladder.missing)
    return "" if spec.override_signature_reason else differs(previous, causes.composer)


def _offered(wave: int, generation: int, previous: Json | None, baseline: Json | None) -> Json:
    return {
        "wave": wave,
        "exposed": True,
        "generation": generation,
        "previous_entry": previous,
        "previous_version": previous["version"] if previous else None,
        "baseline": baseline,
    }


def withdraw(
    conn: Connection,
    deps: Deps,
    ctx: Ctx,
    rollout: RolloutRow,
    states: Iterable[AssignmentState],
    reason: str,
) -> int:
    """Take back what no device runs yet; says how many."""
    rows = assignments.list_assignments(conn, rollout.rollout_id, states=states)
    restore_previous(conn, deps, ctx, rows)
    ended = {"finished_at": ctx.now}
    assignments.move_many(
        conn,
        [(row, _A.WITHDRAWN, reason if row.exposed else NEVER_OFFERED, ended) for row in rows],
        ctx.now,
    )
    told = [_event(ctx, row, "assignment_withdrawn", reason) for row in rows if row.exposed]
    events.append_many(conn, told)
    return len(rows)


def call_back(
    conn: Connection,
    deps: Deps,
    ctx: Ctx,
    rollout: RolloutRow,
    states: Iterable[AssignmentState],
    reason: str,
) -> int:
    """Order devices in these states (and those already returning) back; says how many are new."""
    wanted = {*states, _A.ROLLING_BACK}
    rows = assignments.list_assignments(conn, rollout.rollout_id, states=wanted)
    generations = restore_previous(conn, deps, ctx, rows)
    ids = [row.device_id for row in rows if row.state is _A.COMMITTED]
    open_now = assignments.open_of_model(conn, rollout.model, ids)
    newer = {row.device_id: row.rollout_id for row in open_now}
    again: list[Step] = []
    new: list[Step] = []
    followed: list[Step] = []  # a newer order is open: theirs is closed, and cannot open anew
    for row in rows:
        generation = generations.get(row.device_id)
        if row.state is _A.COMMITTED and row.device_id in newer:
            why = f"{CALLED_BACK}{reason}; superseded by {newer[row.device_id]}"
            followed.append((row, _A.SUPERSEDED, why, {"finished_at": ctx.now}))
        elif row.state is not _A.ROLLING_BACK:
            values: Json = {"finished_at": None, "generation": generation or row.generation}
            new.append((row, _A.ROLLING_BACK, f"{CALLED_BACK}{reason}", values))
        elif generation is not None:
            again.append((row, _A.ROLLING_BACK, row.reason, {"generation": generation}))
    for steps in (again, new, followed):
        assignments.move_many(conn, steps, ctx.now)
    called = [*new, *followed]
    events.append_many(
        conn, [_event(ctx, row, "assignment_called_back", reason) for row, *_ in called]
    )
    return len(called)


def supersede(
    conn: Connection,
    deps: Deps,
    ctx: Ctx,
    rows: Iterable[AssignmentRow],
    rollout_id: str,
) -> None:
    """Close open assignments in favour of a newer rollout; what is underway is withdrawn."""
    reason = f"superseded by {rollout_id}"
    listed = list(rows)
    restore_previous(conn, deps, ctx, [row for row in listed if row.state in UNDERWAY])
    ended = {"finished_at": ctx.now}
    assignments.move_many(conn, [(row, _A.SUPERSEDED, reason, ended) for row in listed], ctx.now)
    events.append_many(conn, [_event(ctx, row, "assignment_superseded", reason) for row in listed])


def close_left(conn: Connection, deps: Deps, ctx: Ctx) -> frozenset[str]:
    """Look after desired where a device left a version by itself, and close what came back.

    Works over all rollouts, ended ones too: a committed version may be left days later. Returns
    the rollouts of which something was closed.
    """
    ended = {"finished_at": ctx.now}
    retired = ledger.list_retired(conn)
    assignments.move_many(
        conn,
        [
            (row, _A.WITHDRAWN if row.state is _A.PLANNED else _A.SUPERSEDED, RETIRED, ended)
            for row in retired
        ],
        ctx.now,
    )
    unsettled = ledger.list_unsettled(conn)
    restore_previous(conn, deps, ctx, unsettled)
    assignments.settle(conn, unsettled, ctx.now)
    recalled = ledger.list_recalled(conn)
    book = DesiredBook(conn, {row.device_id for row in recalled})
    # The others return by themselves; their own report closes them.
    back = [row for row in recalled if not _names(book, row)]
    steps: list[Step] = [(row, _A.ROLLED_BACK, row.reason or "called back", ended) for row in back]
    assignments.move_many(conn, steps, ctx.now)
    events.append_many(
        conn, [_event(ctx, row, "assignment_rolled_back", why) for row, _, why, _ in steps]
    )
    return frozenset(row.rollout_id for row in (*retired, *unsettled, *back))


def restore_previous(
    conn: Connection, deps: Deps, ctx: Ctx, rows: Sequence[AssignmentRow]
) -> dict[str, int]:
    """Previous entries are desired again; gives generations by device.

    Devices are left out where a newer order stands or nothing was said.
    """
    book = DesiredBook(conn, {row.device_id for row in rows})
    named = [row for row in rows if _names(book, row)]
    back = ways_back(conn, {(row.device_id, row.model): row.previous_entry for row in named})
    generations = {
        row.device_id: book.change(Change(row.device_id, row.model, back[row.device_id, row.model]))
        for row in named
    }
    book.write(deps, ctx)
    return generations


def _names(book: DesiredBook, row: AssignmentRow) -> bool:
    entry = book.entry(row.device_id, row.model)
    return entry is not None and entry["rollout"] == row.rollout_id


def _previous_entries(
    conn: Connection, book: DesiredBook, device_ids: Sequence[str], model: str
) -> dict[str, Json | None]:
    """What devices go back to: the newest entry of the model that was committed on each."""
    entries = {device_id: book.entry(device_id, model) for device_id in device_ids}
    named = {entry["rollout"] for entry in entries.values() if entry is not None}
    states = list_spoken_of(conn, named, device_ids) if named else {}
    found: dict[str, Json | None] = {}
    for device_id, entry in entries.items():
        row = states.get((entry["rollout"], device_id)) if entry is not None else None
        if row is None or row.state is _A.COMMITTED:
            found[device_id] = entry
        else:  # the whole row only where it is needed: it is large
            whole = assignments.get_assignment(conn, row.rollout_id, device_id)
            found[device_id] = whole.previous_entry if whole is not None else None
    return found


def _by_device(rows: Iterable[SampleRow]) -> dict[str, list[SampleRow]]:
    found: dict[str, list[SampleRow]] = {}
    for row in rows:
        found.setdefault(row.device_id, []).append(row)
    return found


def _baseline(
    seen: Iterable[SampleRow], previous: Json | None, member: Member, ladder: Ladder
) -> Json | None:
    """What the device did just before with the version it goes back to; None: nothing to compare.

    Not what it did with other versions: a bad one just left would make anything look good.
    """
    if previous is None:
        return None
    mine = [row for row in seen if row.version == previous["version"] and is_of_build(row)]
    if not mine:
        return None
    # Where the heaviest rungs of both go by one name, answers of lower ones can be compared.
    was = next((one["rung"] for one in previous["ladder"] if one.get("target")), "")
    top = next((one.rung for one in ladder.rungs if one.build is not None), "")
    rungs: Counter[str] = Counter()
    for row in mine:
        rungs[row.rung] += row.histogram.count
    return {
        "version": previous["version"],
        "profile": member.subject.profile,
        "top": top if top == was else "",
        "rungs": dict(rungs),
        "histogram": merged(row.histogram for row in mine).to_json(),
        "errors": sum(row.errors for row in mine),
        "non_finite": sum(row.non_finite for row in mine),
    }


def _event(ctx: Ctx, row: AssignmentRow, kind: str, reason: str) -> NewEvent:
    return NewEvent(
        project=ctx.project,
        at=ctx.now,
        kind=kind,
        actor=ctx.actor,
        device_id=row.device_id,
        model=row.model,
        version=row.version,
        rollout_id=row.rollout_id,
        reason=reason,
    )
