"""The small moves that all parts of the update machine share, and the only places that set phase.

Refuses moves that the table in `assignment` does not have.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from agent.domain.assignment import BEGINS, LEGAL, ModelState, Phase, Slot
from agent.domain.desired import DesiredModel
from agent.domain.instructions import Instruction, Report, SetSlots
from agent.errors import IllegalTransitionError

Step = tuple[ModelState, tuple[Instruction, ...]]


def enter(state: ModelState, phase: Phase, reason: str, **changes: Any) -> ModelState:
    """The next phase of the same assignment; IllegalTransitionError tells the story."""
    if phase not in LEGAL[state.phase]:
        raise IllegalTransitionError(
            f"{_tell(state)} cannot become {phase}: {reason}",
            f"from {state.phase}: {', '.join(sorted(LEGAL[state.phase])) or 'nothing follows'}",
        )
    return replace(state, phase=phase, reason=reason, **changes)


def begin(
    state: ModelState, phase: Phase, order: DesiredModel | None, reason: str, **changes: Any
) -> ModelState:
    """Turn to another order, or back to an older one; late results of earlier work are stale."""
    if phase not in BEGINS:
        raise IllegalTransitionError(f"{_tell(state)}: no assignment begins as {phase}: {reason}")
    fresh: dict[str, Any] = {
        "attempts": 0,
        "restarts": 0,
        "counted": 0,
        "elapsed_s": 0.0,
        "starved": False,
    }
    return replace(
        state,
        phase=phase,
        order=order,
        reason=reason,
        ticket=state.ticket + 1,
        **{**fresh, **changes},
    )


def illegal(state: ModelState, event: object) -> IllegalTransitionError:
    """What to raise for an event that has no room in this phase."""
    return IllegalTransitionError(
        f"{_tell(state)} has no room for {type(event).__name__}",
        f"ticket {state.ticket}; last reason: {state.reason or 'none'}",
    )


def report(state: ModelState, **changes: Any) -> Report:
    """What the controller has to know of the order at hand."""
    order = state.order
    if order is None:
        raise IllegalTransitionError(f"{_tell(state)} has no order to report")
    made = Report(
        rollout=order.rollout,
        version=order.version,
        phase=state.phase,
        reason=state.reason,
        generation=state.generation,
        serving_version=state.current.release.version if state.current else "",
        starved=state.starved,
    )
    return replace(made, **changes)


def set_slots(state: ModelState) -> SetSlots:
    """The pointers as this state has them."""
    ticket = state.ticket if state.phase is Phase.VERIFIED else None
    return SetSlots(state.current, state.previous, state.staged, ticket)


def is_bad(state: ModelState, release: DesiredModel) -> bool:
    """Whether this device left these files within the same rollout."""
    return (release.rollout, release.slot_id) in state.bad


def fallback_of(state: ModelState) -> Slot | None:
    """Where a rollback goes: the newest version committed here, on disk, not bad; or None."""
    back = state.previous
    if back is None or not back.committed or is_bad(state, back.release):
        return None
    return back


def may_roll_back(state: ModelState) -> bool:
    """Whether the host may go back by itself: there is somewhere to go, and it has not yet."""
    return fallback_of(state) is not None and not state.latched


def is_current(state: ModelState) -> bool:
    """Whether the order at hand is what answers now."""
    return (
        state.order is not None
        and state.current is not None
        and state.current.slot_id == state.order.slot_id
        and state.current.release.rollout == state.order.rollout
    )


def joined(state: ModelState, *parts: Iterable[Instruction]) -> Step:
    """The state with all instructions in a row."""
    return state, tuple(item for part in parts for item in part)


def _tell(state: ModelState) -> str:
    what = f"{state.order.version} of {state.order.rollout}" if state.order else "nothing ordered"
    return f"{state.model} ({what}) in {state.phase}"
