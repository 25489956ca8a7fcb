"""Answers "why is it so" about a rollout: verdicts, devices that left or refused, what people said.

Guesses nothing: what was not reported or stored is not said.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from controller.domain.rollout import LIVE, AssignmentState
from controller.domain.words import count_of
from controller.errors import NotFoundError
from controller.services.context import Ctx, Deps
from controller.services.decisions import compared_texts
from controller.services.explain import LAST_SHOWN, Fact, last_events, state_text, times_text
from controller.services.rollout_views import (
    AssignmentView,
    RolloutView,
    view_assignments,
    view_rollout,
)
from controller.services.suggestions import suggest_names
from controller.store import assignments, events, rollouts, waves
from controller.store.assignments import AssignmentRow
from controller.store.events import EventRow

_A = AssignmentState
DEVICES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RolloutExplanation:
    """A rollout, why it is where it is, and each of its devices."""

    rollout: RolloutView
    facts: tuple[Fact, ...]
    assignments: tuple[AssignmentView, ...]


def explain_rollout(deps: Deps, ctx: Ctx, rollout_id: str) -> RolloutExplanation:
    """Why the rollout is where it is: verdicts, devices that left, what people said."""
    with deps.store.read() as conn:
        row = rollouts.get_rollout(conn, ctx.project, rollout_id)
        if row is None:
            known = [one.rollout_id for one in rollouts.list_rollouts(conn, ctx.project, limit=50)]
            raise NotFoundError(
                f"no rollout {rollout_id}",
                *suggest_names(rollout_id, known, "none was started yet"),
            )
        view = view_rollout(conn, ctx, row)
        rows = assignments.list_assignments(conn, rollout_id)
        said = events.list_events(conn, ctx.project, rollout_id=rollout_id, limit=500)
        facts = (
            Fact("why", f"{view.phase}: {view.phase_reason}", _ids(said, "rollout_phase")),
            Fact("exposed", _exposure(view, rows)),
            *_verdicts(view, said),
            *(
                Fact("compared", text)
                for text in compared_texts(waves.list_waves(conn, rollout_id))
            ),
            *_devices_that_left(rows, said),
            *_refusals(rows),
            *(Fact("people", _by(one), (str(one.number),)) for one in said if _by_people(one)),
            *last_events(said, names=True),
        )
        return RolloutExplanation(view, facts, view_assignments(conn, rollout_id))


def _exposure(view: RolloutView, rows: list[AssignmentRow]) -> str:
    parts = [f"{view.exposed} of {count_of(view.devices, 'device')} (cap {view.exposed_cap})"]
    back = [row for row in rows if row.state is _A.ROLLED_BACK]
    for version in sorted({row.previous_version or "nothing" for row in back}):
        count = sum((row.previous_version or "nothing") == version for row in back)
        parts.append(f"{count} back on {version}")
    keep = sum(row.state in LIVE for row in rows)
    if keep:
        parts.append(f"{keep} {'runs' if keep == 1 else 'run'} it")
    refused = sum(row.state is _A.REFUSED for row in rows)
    if refused:
        parts.append(f"{refused} refused it")
    never = sum(not row.exposed for row in rows) - refused
    if never or not refused:
        parts.append(f"{never} never saw it")
    return " · ".join(parts)


def _verdicts(view: RolloutView, said: list[EventRow]) -> list[Fact]:
    facts: list[Fact] = []
    for wave in view.waves:
        if not wave.verdict:
            continue
        judged = [
            str(one.number)
            for one in said
            if one.kind == "wave_judged" and one.reason.startswith(f"wave {wave.number} ")
        ]
        reason = f": {wave.verdict_reason}" if wave.verdict_reason else ""
        facts.append(
            Fact(f"wave {wave.number}", f"{wave.verdict}{reason}", tuple(judged[-LAST_SHOWN:]))
        )
    return facts


def _devices_that_left(rows: list[AssignmentRow], said: list[EventRow]) -> list[Fact]:
    left = [row for row in rows if row.state in (_A.ROLLED_BACK, _A.ROLLING_BACK, _A.FAILED)]
    facts: list[Fact] = []
    for row in left[:DEVICES_SHOWN]:
        text = f"{row.device_id} {state_text(row)}: {row.reason}{times_text(row)}"
        ids = [str(one.number) for one in said if one.device_id == row.device_id]
        facts.append(Fact("device", text, tuple(ids[-LAST_SHOWN:])))
    if len(left) > DEVICES_SHOWN:
        facts.append(Fact("device", f"and {len(left) - DEVICES_SHOWN} more"))
    return facts


def _refusals(rows: list[AssignmentRow]) -> list[Fact]:
    refused = [row for row in rows if row.state is _A.REFUSED]
    facts = [Fact("refused", f"{row.device_id}: {row.reason}") for row in refused[:DEVICES_SHOWN]]
    if len(refused) > DEVICES_SHOWN:
        facts.append(Fact("refused", f"and {len(refused) - DEVICES_SHOWN} more"))
    return facts


def _by_people(event: EventRow) -> bool:
    return event.kind in (
        "rollout_intent",
        "first_wave_override",
        "rolled_back_override",
        "signature_override",
        "missing_rung_override",
        "rollout_supersedes",
    )


def _by(event: EventRow) -> str:
    """What a person did; an order's own reason names it already."""
    match event.kind:
        case "rollout_intent":
            return event.reason
        case "rollout_supersedes":
            return f"supersedes {event.reason}"
        case _:
            return f"{event.kind.replace('_', ' ')} by {event.actor}: {event.reason}"


def _ids(said: Iterable[EventRow], kind: str) -> tuple[str, ...]:
    return tuple(str(one.number) for one in said if one.kind == kind)
