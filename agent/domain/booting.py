"""What a start makes of a model: serve what is there, then go on where the journal ended.

Refuses to wait for a network: everything here comes from the disk.
"""

from dataclasses import replace
from typing import assert_never

from agent.domain.assignment import WORKING, ModelState, Phase, Slot
from agent.domain.events import Booted, Ending
from agent.domain.instructions import (
    CollectGarbage,
    Fetch,
    Instruction,
    LoadAndWarm,
    Preflight,
    Serve,
    SetSlots,
    Swap,
    SwapBack,
)
from agent.domain.probation import Cause
from agent.domain.retreat import give_up, retreat
from agent.domain.transition import (
    Step,
    begin,
    enter,
    fallback_of,
    is_bad,
    report,
    set_slots,
)

# A power cut says little of a version once; a version that crashes needs a place to return to.
_POWER_CUTS = 2
_CRASHES_WITHOUT_RETURN = 3
_CRASHES_LOADING = 2


def on_booted(state: ModelState, event: Booted) -> Step:
    """Check what is on disk, judge how the last run ended, resume."""
    state, repaired = _repair(state, event.present)
    if event.ending is not Ending.CLEAN:
        after = replace(state, restarts=state.restarts + 1)
        fallen = _fallen(after, event.ending)
        if fallen is not None:
            return _with_pointers(fallen[0], (*repaired, *fallen[1]))
        state = after
    resumed, work = _resume(state)
    return _with_pointers(resumed, (*repaired, *work))


def _with_pointers(state: ModelState, work: tuple[Instruction, ...]) -> Step:
    """The journal is written before the pointers: a death between them is made good here."""
    if any(isinstance(i, SetSlots) for i in work):
        return state, work
    # After Serve: a device whose disk is full still answers.
    at = 1 if work and isinstance(work[0], Serve) else 0
    return state, (*work[:at], set_slots(state), *work[at:])


def _repair(state: ModelState, present: frozenset[str]) -> Step:
    """Forget slots whose files are missing or wrong; a spare takes the place of the current one."""

    def sound(slot: Slot | None) -> Slot | None:
        return slot if slot is not None and slot.slot_id in present else None

    current, previous, staged = sound(state.current), sound(state.previous), sound(state.staged)
    if (current, previous, staged) == (state.current, state.previous, state.staged):
        return state, ()
    lost_current = state.current is not None and current is None
    lost_staged = state.staged is not None and staged is None
    after = replace(state, current=current, previous=previous, staged=staged)
    if lost_current and state.phase is not Phase.ROLLING_BACK:
        spare = fallback_of(after)
        after = replace(after, current=spare, previous=None)
        # An order for the very files of the spare is adopted when it is told again.
        order = after.order
        is_spare = spare is not None and order is not None and spare.slot_id == order.slot_id
        if state.phase not in WORKING or is_spare:
            reason = "files of the running version were damaged; they are fetched again"
            after = begin(after, Phase.IDLE, None, reason, staged=None, pending=None)
    if lost_staged and after.phase in (Phase.VERIFIED, Phase.STAGED):
        after = enter(after, Phase.DOWNLOADING, "staged files were damaged; fetching them again")
        return after, (set_slots(after), report(after))
    return after, (set_slots(after),)


def _fallen(state: ModelState, ending: Ending) -> Step | None:
    """Whether the version at work is to blame for how the last run ended."""
    current = state.current
    trial = current is not None and not current.committed and not is_bad(state, current.release)
    crashed = ending is Ending.CRASHED
    if trial and state.phase is not Phase.ROLLING_BACK:
        back = fallback_of(state)
        limit = (1 if back else _CRASHES_WITHOUT_RETURN) if crashed else _POWER_CUTS
        if state.restarts >= limit and (crashed or back):
            what = "the agent crashed" if crashed else f"power was lost {state.restarts} times"
            return retreat(state, Cause.CRASH, f"{what} while the version was in probation")
    if state.phase is Phase.STAGED and crashed and state.restarts >= _CRASHES_LOADING:
        return give_up(state, Cause.CRASH, f"the agent crashed {state.restarts} times loading it")
    return None


def _resume(state: ModelState) -> Step:
    current, order = state.current, state.order
    serve: tuple[Instruction, ...] = ()
    if current is not None:
        standby = None if current.committed else fallback_of(state)
        serve = (Serve(state.ticket, current.release, standby.release if standby else None),)
    match state.phase:
        case Phase.ROLLING_BACK:
            back = fallback_of(state)
            if back is not None:
                return state, (SwapBack(state.ticket, back.release),)
            after = enter(state, Phase.FAILED, f"{state.reason}; no version to return to")
            return after, (report(after), *serve)
        case Phase.ACTIVATED if order is not None:
            return state, (*serve, Swap(state.ticket, order))
        case Phase.OFFERED if order is not None:
            return state, (*serve, Preflight(state.ticket, order))
        case Phase.DOWNLOADING if order is not None:
            return state, (*serve, Fetch(state.ticket, order.targets, state.attempts))
        case Phase.VERIFIED:
            return state, (*serve, set_slots(state))
        case Phase.STAGED if order is not None:
            return state, (*serve, LoadAndWarm(state.ticket, order))
        case (
            Phase.IDLE
            | Phase.PROBATION
            | Phase.COMMITTED
            | Phase.ROLLED_BACK
            | Phase.FAILED
            | Phase.WITHDRAWN
            | Phase.REFUSED
            | Phase.SUPERSEDED
            | Phase.ACTIVATED
            | Phase.OFFERED
            | Phase.DOWNLOADING
            | Phase.STAGED
        ):
            return state, (*serve, CollectGarbage())
        case never:
            assert_never(never)
