"""Rollouts in the words of people: start, pause, resume, abort, roll back, list, look.

Only `intent` is written here after the start; the phase is the planner's, written by the tick.
"""

from collections import Counter
from collections.abc import Mapping

from controller.domain.planner import is_over
from controller.domain.rollout import AssignmentState, Intent, Phase, parse_rollout_spec
from controller.domain.words import count_of
from controller.errors import NotFoundError, RefusedError
from controller.services.context import Ctx, Deps
from controller.services.rollout_checks import refuse_changes
from controller.services.rollout_orders import supersede
from controller.services.rollout_plans import Draft, draft_rollout, in_order
from controller.services.rollout_views import RolloutView, view_rollout
from controller.services.suggestions import suggest_names
from controller.store import assignments, events, rollouts, waves
from controller.store.assignments import NewAssignment
from controller.store.rollouts import RolloutRow
from controller.store.session import Connection

_A = AssignmentState
_VERBS = {
    Intent.RUN: "resumed",
    Intent.PAUSE: "paused",
    Intent.ABORT: "aborted",
    Intent.ROLL_BACK: "rolled back",
}


def start_rollout(
    deps: Deps, ctx: Ctx, spec: Mapping[str, object], confirmed_devices: int
) -> RolloutView:
    """Start a rollout. `confirmed_devices` has to be the plan's count, else RefusedError.

    RefusedError too where the signature changes and the spec does not say that this is meant.

    Open assignments of the same model on these devices are superseded, and that is an event.
    """
    with deps.store.write() as conn:
        draft = draft_rollout(conn, ctx, parse_rollout_spec(spec))
        refuse_changes(draft.spec, draft.changes)
        if confirmed_devices != len(draft.ready):
            raise RefusedError(
                f"{count_of(len(draft.ready), 'device')} would get"
                f" {draft.spec.model}:{draft.spec.version}, {confirmed_devices}"
                f" {'was' if confirmed_devices == 1 else 'were'} confirmed",
                "look at fleetctl rollout plan again; the fleet may have changed since",
            )
        row = _insert(conn, ctx, draft)
        supersede(conn, deps, ctx, draft.open, row.rollout_id)
        _insert_assignments(conn, ctx, draft, row.rollout_id)
        _tell_start(conn, ctx, draft, row)
        view = view_rollout(conn, ctx, row)
    deps.agenda.note(one.rollout_id for one in draft.open)
    deps.agenda.note([row.rollout_id], urgent=True)
    return view


def set_intent(
    deps: Deps, ctx: Ctx, rollout_id: str, intent: Intent, reason: str = ""
) -> RolloutView:
    """What people want of it from now on. RefusedError where it is over or on its way to an end."""
    with deps.store.write() as conn:
        row = _existing(conn, ctx, rollout_id)
        _check_intent(conn, ctx, row, intent)
        rollouts.set_intent(conn, rollout_id, intent, ctx.actor, reason, ctx.now)
        events.append(
            conn,
            ctx.project,
            ctx.now,
            "rollout_intent",
            ctx.actor,
            model=row.model,
            version=row.version,
            rollout_id=rollout_id,
            reason=f"{_VERBS[intent]} by {ctx.actor}" + (f": {reason}" if reason else ""),
            details={"intent": intent.value},
        )
        view = view_rollout(conn, ctx, _existing(conn, ctx, rollout_id))
    deps.agenda.note([rollout_id], urgent=True)
    return view


def get_rollout(deps: Deps, ctx: Ctx, rollout_id: str) -> RolloutView:
    """One rollout; NotFoundError suggests an id."""
    with deps.store.read() as conn:
        return view_rollout(conn, ctx, _existing(conn, ctx, rollout_id))


def list_rollouts(
    deps: Deps, ctx: Ctx, *, active_only: bool = False, limit: int = 0
) -> list[RolloutView]:
    """Rollouts, newest first; at most 50 unless `limit` says more."""
    with deps.store.read() as conn:
        rows = rollouts.list_rollouts(conn, ctx.project, active_only=active_only, limit=limit or 50)
        return [view_rollout(conn, ctx, row) for row in rows]


def _check_intent(conn: Connection, ctx: Ctx, row: RolloutRow, intent: Intent) -> None:
    name = f"rollout {row.rollout_id}"
    if is_over(row.phase):
        raise RefusedError(
            f"{name} is over: {row.phase}, {row.phase_reason}",
            "start a rollout of the version you want instead" + _before(conn, ctx, row),
        )
    ending = row.phase is Phase.ROLLING_BACK or row.intent in (Intent.ABORT, Intent.ROLL_BACK)
    if ending and intent is not Intent.ABORT:
        raise RefusedError(
            f"{name} is on its way back: {row.phase_reason or row.intent_reason}",
            "it can only be aborted now, which leaves devices where they are",
        )


def _before(conn: Connection, ctx: Ctx, row: RolloutRow) -> str:
    """What most devices ran before: who asks for a way back after the end most often wants that."""
    ran = view_rollout(conn, ctx, row).from_versions
    counts = {version: count for version, count in ran.items() if version}
    if not counts:
        return ""
    version = max(sorted(counts), key=lambda one: counts[one])
    return f"; {row.model}:{version} ran on {count_of(counts[version], 'device')} before"


def _insert(conn: Connection, ctx: Ctx, draft: Draft) -> RolloutRow:
    row = RolloutRow(
        rollout_id=rollouts.new_rollout_id(conn, lambda: ctx.ids.new("r")),
        project=ctx.project,
        model=draft.spec.model,
        version=draft.spec.version,
        spec=draft.spec.to_json(),
        policies=draft.policies,
        phase=Phase.PENDING,
        phase_reason="not looked at yet",
        pause_reasons=(),
        intent=Intent.RUN,
        intent_by=ctx.actor,
        intent_at=ctx.now,
        intent_reason="",
        current_wave=0,
        wake_at=ctx.now,
        created_at=ctx.now,
        created_by=ctx.actor,
        finished_at=None,
    )
    rollouts.insert_rollout(conn, row)
    waves.insert_waves(conn, row.rollout_id, draft.waves)
    return row


def _insert_assignments(conn: Connection, ctx: Ctx, draft: Draft, rollout_id: str) -> None:
    rows: list[NewAssignment] = []
    for position, one in enumerate(in_order(draft, rollout_id)):
        number = next(wave.number for wave in draft.waves if position < wave.cumulative)
        current = one.current["version"] if one.current else None
        rows.append(
            NewAssignment(one.device_id, number, position, _A.PLANNED, "", current, one.bytes)
        )
    for unready in draft.unready:
        rows.append(NewAssignment(unready.device_id, 0, -1, _A.REFUSED, unready.reason, None, 0))
    assignments.insert_assignments(
        conn, rollout_id, draft.spec.model, draft.spec.version, rows, ctx.now
    )


def _tell_start(conn: Connection, ctx: Ctx, draft: Draft, row: RolloutRow) -> None:
    def tell(kind: str, reason: str, **details: object) -> None:
        events.append(
            conn,
            ctx.project,
            ctx.now,
            kind,
            ctx.actor,
            model=row.model,
            version=row.version,
            rollout_id=row.rollout_id,
            reason=reason,
            details=details,
        )

    tell(
        "rollout_started",
        f"{count_of(len(draft.ready), 'device')} in {count_of(len(draft.waves), 'wave')},"
        f" selector {draft.spec.selector}",
        devices=len(draft.ready),
        waves=",".join(wave.entry for wave in draft.waves),
    )
    if draft.spec.override_first_wave_reason:
        tell("first_wave_override", draft.spec.override_first_wave_reason)
    if draft.spec.override_rolled_back_reason:
        tell("rolled_back_override", draft.spec.override_rolled_back_reason)
    if draft.spec.override_signature_reason:
        changed = {one.from_version: str(one.devices) for one in draft.changes}
        tell("signature_override", draft.spec.override_signature_reason, **changed)
    if draft.spec.override_missing_rung_reason:
        without = {f"{one.profile} {one.rung}": str(one.devices) for one in draft.missing}
        tell("missing_rung_override", draft.spec.override_missing_rung_reason, **without)
    for rollout_id, count in sorted(Counter(one.rollout_id for one in draft.open).items()):
        tell(
            "rollout_supersedes", f"{rollout_id} on {count_of(count, 'device')}", rollout=rollout_id
        )


def _existing(conn: Connection, ctx: Ctx, rollout_id: str) -> RolloutRow:
    row = rollouts.get_rollout(conn, ctx.project, rollout_id)
    if row is None:
        known = [one.rollout_id for one in rollouts.list_rollouts(conn, ctx.project, limit=50)]
        raise NotFoundError(
            f"no rollout {rollout_id}",
            *suggest_names(rollout_id, known, "none was started yet"),
        )
    return row
