"""Orders to devices within a rollout: offer, withdraw, call back, and closing what devices left.

Refuses to decide: it carries out what the planner said, in the caller's transaction.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from controller.domain.histogram import merged
from controller.domain.rollout import UNDERWAY, AssignmentState
from controller.services.context import Ctx, Deps
from controller.services.desired import Composer, change_desired, load_members
from controller.store import assignments, events
from controller.store.assignments import AssignmentRow
from controller.store.desired import get_desired
from controller.store.rollouts import RolloutRow
from controller.store.samples import SampleRow, is_of_build, list_samples
from controller.store.session import Connection

Json = dict[str, Any]
_A = AssignmentState

BASELINE = timedelta(minutes=15)
CALLED_BACK = "called back: "  # before the reason of what left by order, not by itself
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

    A device for which no build passes any more is REFUSED with that reason.
    """
    members = {m.subject.device_id: m for m in load_members(conn, rollout.project, device_ids)}
    seen = list_samples(conn, device_ids=device_ids, model=rollout.model, since=ctx.now - BASELINE)
    offered = 0
    for device_id in device_ids:
        row = assignments.get_assignment(conn, rollout.rollout_id, device_id)
        if row is None or row.state is not _A.PLANNED:
            continue
        member = members.get(device_id)
        ladder = composer.ladder(member) if member else None
        if member is None or ladder is None or not ladder.rungs:
            reason = "not active any more" if ladder is None else ladder.reason
            assignments.move(conn, row, _A.REFUSED, reason, ctx.now, finished_at=ctx.now)
            _told(conn, ctx, row, "assignment_refused", reason)
            continue
        previous = _previous_entry(conn, device_id, rollout.model)
        entry = composer.entry(member, ladder, rollout.rollout_id)
        generation = change_desired(conn, deps, ctx, device_id, rollout.model, entry)
        assignments.move(
            conn,
            row,
            _A.OFFERED,
            f"offered in wave {wave}",
            ctx.now,
            wave=wave,
            exposed=True,
            generation=generation,
            previous_entry=previous,
            previous_version=previous["version"] if previous else None,
            baseline=_baseline(seen, device_id, previous),
            offered_at=ctx.now,
        )
        _told(conn, ctx, row, "assignment_offered", f"wave {wave}, generation {generation}")
        offered += 1
    return offered


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
    for row in rows:
        restore_previous(conn, deps, ctx, row)
        said = reason if row.exposed else NEVER_OFFERED
        assignments.move(conn, row, _A.WITHDRAWN, said, ctx.now, finished_at=ctx.now)
        if row.exposed:
            _told(conn, ctx, row, "assignment_withdrawn", reason)
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
    new = 0
    wanted = {*states, _A.ROLLING_BACK}
    for row in assignments.list_assignments(conn, rollout.rollout_id, states=wanted):
        generation = restore_previous(conn, deps, ctx, row)
        values = {} if generation is None else {"generation": generation}
        if row.state is _A.ROLLING_BACK:
            if values:
                assignments.move(conn, row, _A.ROLLING_BACK, row.reason, ctx.now, **values)
            continue
        why = f"{CALLED_BACK}{reason}"
        assignments.move(conn, row, _A.ROLLING_BACK, why, ctx.now, finished_at=None, **values)
        _told(conn, ctx, row, "assignment_called_back", reason)
        new += 1
    return new


def supersede(
    conn: Connection,
    deps: Deps,
    ctx: Ctx,
    rows: Iterable[AssignmentRow],
    rollout_id: str,
) -> None:
    """Close open assignments in favour of a newer rollout; what is underway is withdrawn."""
    reason = f"superseded by {rollout_id}"
    for row in rows:
        if row.state in UNDERWAY:
            restore_previous(conn, deps, ctx, row)
        assignments.move(conn, row, _A.SUPERSEDED, reason, ctx.now, finished_at=ctx.now)
        _told(conn, ctx, row, "assignment_superseded", reason)


def close_left(conn: Connection, deps: Deps, ctx: Ctx) -> int:
    """Look after desired where a device left a version by itself, and close what came back.

    Works over all rollouts, ended ones too: a committed version may be left days later.
    """
    closed = 0
    for row in assignments.list_retired(conn):
        state = _A.REFUSED if row.state is _A.PLANNED else _A.SUPERSEDED
        assignments.move(conn, row, state, "the device was retired", ctx.now, finished_at=ctx.now)
        closed += 1
    for row in assignments.list_unsettled(conn):
        restore_previous(conn, deps, ctx, row)
        assignments.settle(conn, row, ctx.now)
        closed += 1
    for row in assignments.list_recalled(conn):
        if _names(conn, row):
            continue  # the device returns by itself; its own report closes it
        reason = row.reason or "called back"
        assignments.move(conn, row, _A.ROLLED_BACK, reason, ctx.now, finished_at=ctx.now)
        _told(conn, ctx, row, "assignment_rolled_back", reason)
        closed += 1
    return closed


def restore_previous(conn: Connection, deps: Deps, ctx: Ctx, row: AssignmentRow) -> int | None:
    """The previous entry is desired again; None where a newer order stands or nothing was said."""
    if not _names(conn, row):
        return None
    return change_desired(conn, deps, ctx, row.device_id, row.model, row.previous_entry)


def _names(conn: Connection, row: AssignmentRow) -> bool:
    current = get_desired(conn, row.device_id)
    entry = None if current is None else current.models.get(row.model)
    return entry is not None and entry["rollout"] == row.rollout_id


def _previous_entry(conn: Connection, device_id: str, model: str) -> Json | None:
    """What this device goes back to: the newest entry of the model that was committed on it."""
    current = get_desired(conn, device_id)
    entry: Json | None = None if current is None else current.models.get(model)
    if entry is None:
        return None
    row = assignments.get_assignment(conn, entry["rollout"], device_id)
    if row is None or row.state is _A.COMMITTED:
        return entry
    return row.previous_entry


def _baseline(seen: Iterable[SampleRow], device_id: str, previous: Json | None) -> Json | None:
    """What the device did just before with the version it goes back to; None: nothing to compare.

    Not what it did with other versions: a bad one just left would make anything look good.
    """
    if previous is None:
        return None
    wanted = (device_id, previous["version"])
    mine = [row for row in seen if (row.device_id, row.version) == wanted and is_of_build(row)]
    if not mine:
        return None
    return {
        "version": previous["version"],
        "histogram": merged(row.histogram for row in mine).to_json(),
        "errors": sum(row.errors for row in mine),
        "non_finite": sum(row.non_finite for row in mine),
    }


def _told(conn: Connection, ctx: Ctx, row: AssignmentRow, kind: str, reason: str) -> None:
    events.append(
        conn,
        ctx.project,
        ctx.now,
        kind,
        ctx.actor,
        device_id=row.device_id,
        model=row.model,
        version=row.version,
        rollout_id=row.rollout_id,
        reason=reason,
    )
