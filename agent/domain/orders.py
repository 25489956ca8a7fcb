"""What a new desired state makes of a model: a new order, the same again, a way back, or nothing.

Refuses older generations silently: desired states may come twice and in any order.
"""

from dataclasses import replace

from agent.domain.assignment import LIVE, WORKING, ModelState, Phase, Slot
from agent.domain.desired import DesiredModel, DesiredState
from agent.domain.events import NewDesired
from agent.domain.instructions import (
    CollectGarbage,
    Instruction,
    Preflight,
    Reconfigure,
    Report,
    Swap,
)
from agent.domain.probation import Cause
from agent.domain.retreat import retreat
from agent.domain.transition import (
    Step,
    begin,
    enter,
    fallback_of,
    is_bad,
    is_current,
    report,
    set_slots,
)

_RETRY = (Phase.FAILED, Phase.REFUSED, Phase.WITHDRAWN)


def orders_of(desired: DesiredState, known: frozenset[str]) -> dict[str, NewDesired]:
    """One event per model: its order, or None for a known model that is no longer named."""
    found = {name: NewDesired(None, desired.generation) for name in sorted(known)}
    found.update({m.model: NewDesired(m, desired.generation) for m in desired.models})
    return found


def on_desired(state: ModelState, event: NewDesired) -> Step:
    """Take the newest desired state; the newest supersedes whatever is under way."""
    if event.generation < state.generation:
        return state, ()
    newer = event.generation > state.generation
    state = replace(state, generation=event.generation)
    if state.phase is Phase.ROLLING_BACK:
        return replace(state, pending=event), ()
    order = event.order
    if order is None:
        return _unnamed(state)
    if _is_same(state.order, order) and state.phase is not Phase.IDLE:
        return _again(state, order, newer)
    if _is_way_back(state, order):
        return _way_back(state, event)
    current = state.current
    if current is not None and current.slot_id == order.slot_id and not is_bad(state, order):
        return _adopt(state, order, current)
    return _take(state, order)


def _is_same(known: DesiredModel | None, order: DesiredModel) -> bool:
    return known is not None and known.rollout == order.rollout and known.slot_id == order.slot_id


def _is_way_back(state: ModelState, order: DesiredModel) -> bool:
    """A controller orders a return by naming the older version under a rollout known here.

    The same version under a new rollout is an order like any other and proves itself again.
    """
    back = fallback_of(state)
    if back is None or state.current is None or back.slot_id != order.slot_id:
        return False
    return order.rollout in (back.release.rollout, state.current.release.rollout)


def _closing(state: ModelState, order: DesiredModel | None) -> tuple[ModelState, list[Instruction]]:
    """End the assignment at hand, if it is open, in favour of `order`."""
    if state.phase in WORKING:
        back_to_current = order is None or (
            state.current is not None and _is_same(state.current.release, order)
        )
        phase = Phase.WITHDRAWN if back_to_current else Phase.SUPERSEDED
        what = "withdrawn" if order is None or back_to_current else f"superseded by {_name(order)}"
        ended = enter(state, phase, what, staged=None, ticket=state.ticket + 1)
        return ended, [report(ended)]
    if state.phase in (Phase.ACTIVATED, Phase.PROBATION) and order is not None:
        ended = enter(state, Phase.SUPERSEDED, f"superseded by {_name(order)}")
        return ended, [report(ended)]
    return state, []


def _name(order: DesiredModel) -> str:
    return f"{order.version} of {order.rollout}"


def _unnamed(state: ModelState) -> Step:
    if state.phase in WORKING:
        ended, told = _closing(state, None)
        return ended, (set_slots(ended), *told, CollectGarbage())
    if state.phase in LIVE and is_current(state):
        return retreat(state, Cause.ORDERED, "the controller no longer orders this model here")
    return state, ()


def _again(state: ModelState, order: DesiredModel, newer: bool) -> Step:
    """The same files for the same rollout: at most policy and parameters are new."""
    if state.phase in _RETRY and newer and not is_bad(state, order):
        return _take(state, order)
    done: list[Instruction] = []
    if state.order != order:
        was_current = is_current(state)
        state = replace(
            state,
            order=order,
            current=_renew(state.current, order),
            staged=_renew(state.staged, order),
        )
        done.append(set_slots(state))
        if was_current:
            done.append(Reconfigure(order))
    if newer:
        done.append(report(state))
    return state, tuple(done)


def _renew(slot: Slot | None, order: DesiredModel) -> Slot | None:
    return replace(slot, release=order) if slot and _is_same(slot.release, order) else slot


def _way_back(state: ModelState, event: NewDesired) -> Step:
    told: list[Instruction] = []
    if state.phase in WORKING:
        state, told = _closing(state, event.order)
    state = replace(state, pending=event)
    after, done = retreat(state, Cause.ORDERED, "the controller orders the previous version")
    return after, (*told, *done)


def _adopt(state: ModelState, order: DesiredModel, current: Slot) -> Step:
    """The files answer here already: committed ones stay so, others prove themselves anew."""
    ended, told = _closing(state, order)
    slot = replace(current, release=order)
    if current.committed:
        after = begin(
            ended,
            Phase.COMMITTED,
            order,
            f"{order.version} answers here already and was committed here",
            current=slot,
            staged=None,
        )
        work: tuple[Instruction, ...] = (Reconfigure(order),)
    else:
        after = begin(
            ended,
            Phase.ACTIVATED,
            order,
            f"{order.version} answers here already and proves itself anew",
            current=slot,
            staged=None,
            latched=False,
        )
        work = (Swap(after.ticket, order),)
    return after, (set_slots(after), *told, *work, report(after), CollectGarbage())


def _take(state: ModelState, order: DesiredModel) -> Step:
    ended, told = _closing(state, order)
    after = begin(ended, Phase.OFFERED, order, f"ordered by {order.rollout}", staged=None)
    drop: list[Instruction] = [set_slots(after)] if state.staged is not None else []
    if is_bad(after, order):
        after = enter(
            after, Phase.REFUSED, f"this device left {order.version} in {order.rollout} already"
        )
        return after, (*drop, *told, report(after))
    offered: Report = report(after)
    return after, (*drop, *told, offered, Preflight(after.ticket, order))
