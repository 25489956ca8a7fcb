"""The way back: what a verdict, a crash or an order makes of the version that answers now.

Refuses to go anywhere but to `fallback_of`, and to go twice without a new order (the latch).
"""

from dataclasses import replace
from typing import assert_never

from agent.domain.assignment import WORKING, ModelState, Phase
from agent.domain.events import (
    LoadFailed,
    NewDesired,
    ProbationVerdict,
    RollBackFailed,
    RollBackRequested,
    RolledBack,
)
from agent.domain.instructions import (
    CollectGarbage,
    Instruction,
    MarkBad,
    MarkGood,
    Serve,
    SwapBack,
    Unload,
)
from agent.domain.probation import Cause, Commit, RollBack, Wait
from agent.domain.transition import (
    Step,
    begin,
    enter,
    fallback_of,
    illegal,
    is_bad,
    is_current,
    report,
    set_slots,
)


def on_verdict(state: ModelState, event: ProbationVerdict) -> Step:
    """What the rollback rule said; verdicts on anything but the current slot are late."""
    current = state.current
    if current is None or event.slot_id != current.slot_id or state.phase is Phase.ROLLING_BACK:
        return state, ()
    match event.verdict:
        case Commit() as verdict:
            return _commit(state, verdict)
        case Wait() as verdict:
            if not verdict.starved or state.starved or state.phase is not Phase.PROBATION:
                return state, ()
            after = replace(state, starved=True, reason=verdict.reason)
            return after, (report(after),)
        case RollBack() as verdict:
            return _roll_back(state, verdict)
        case never:
            assert_never(never)


def _commit(state: ModelState, verdict: Commit) -> Step:
    current = state.current
    if current is None or current.committed or is_bad(state, current.release):
        return state, ()
    good = replace(current, committed=True)
    told: tuple[Instruction, ...] = ()
    if is_current(state) and state.phase in (Phase.ACTIVATED, Phase.PROBATION):
        if state.phase is Phase.ACTIVATED:
            state = enter(state, Phase.PROBATION, "it answers requests")
            told = (report(state),)
        state = enter(state, Phase.COMMITTED, verdict.reason, current=good, starved=False)
        told = (*told, report(state))
    else:
        # Superseded while it proved itself: its own rollout is closed, but it is a place to return.
        state = replace(state, current=good)
    free: tuple[Instruction, ...] = ()
    if state.previous is not None:
        free = (Unload(state.previous.slot_id),)
    return state, (MarkGood(good.slot_id), set_slots(state), *free, *told, CollectGarbage())


def _roll_back(state: ModelState, verdict: RollBack) -> Step:
    current = state.current
    if current is None or is_bad(state, current.release):
        return state, ()
    if current.committed:
        if state.latched:
            return state, ()
        if fallback_of(state) is None:
            return replace(state, latched=True, reason=f"{verdict.reason}; nowhere to return"), ()
    return retreat(state, verdict.cause, verdict.reason)


def retreat(state: ModelState, cause: Cause, reason: str) -> Step:
    """Leave the current version; an order still being worked on is taken up again afterwards."""
    current = state.current
    if current is None:
        raise illegal(state, cause)
    pending = state.pending
    if state.phase in WORKING:
        pending = pending or NewDesired(state.order, state.generation)
    release = current.release
    bad = state.bad | {(release.rollout, release.slot_id)}
    changes = {"bad": bad, "pending": pending, "staged": None, "starved": False}
    if is_current(state) and state.phase in (Phase.ACTIVATED, Phase.PROBATION, Phase.COMMITTED):
        moved = enter(state, Phase.ROLLING_BACK, reason, ticket=state.ticket + 1, **changes)
    else:
        moved = begin(state, Phase.ROLLING_BACK, release, reason, **changes)
    mark = MarkBad(release.slot_id, release.rollout, cause)
    back = fallback_of(moved)
    if back is not None:
        return moved, (mark, report(moved), SwapBack(moved.ticket, back.release))
    return _stranded(moved, cause, (mark, report(moved)))


def _stranded(state: ModelState, cause: Cause, before: tuple[Instruction, ...]) -> Step:
    """Nowhere to return: what can still answer goes on answering, what cannot is freed."""
    current = state.current
    runs = cause not in (Cause.CRASH, Cause.LOAD)
    what = "it goes on answering" if runs else "nothing answers"
    after = enter(
        state,
        Phase.FAILED,
        f"{state.reason}; no version to return to, {what}",
        latched=True,
        current=current if runs else None,
    )
    free = () if runs or current is None else (Unload(current.slot_id),)
    return after, (*before, set_slots(after), *free, report(after))


def on_requested(state: ModelState, event: RollBackRequested) -> Step:
    """An order from the device itself; the latch does not bind people."""
    if state.phase is Phase.ROLLING_BACK:
        return state, ()
    if fallback_of(state) is None:
        raise illegal(state, event)
    return retreat(state, Cause.ORDERED, event.reason)


def on_rolled_back(state: ModelState, event: RolledBack) -> Step:
    """The previous version answers: the one that was left gives up its slot."""
    if event.ticket != state.ticket:
        return state, ()
    back = fallback_of(state)
    if state.phase is not Phase.ROLLING_BACK or back is None:
        raise illegal(state, event)
    left = state.current
    after = enter(state, Phase.ROLLED_BACK, state.reason, current=back, previous=None, latched=True)
    free = () if left is None else (Unload(left.slot_id),)
    return after, (set_slots(after), *free, report(after), CollectGarbage())


def on_roll_back_failed(state: ModelState, event: RollBackFailed) -> Step:
    """The previous version is not usable either: try to go on with what there is."""
    if event.ticket != state.ticket:
        return state, ()
    if state.phase is not Phase.ROLLING_BACK:
        raise illegal(state, event)
    reason = f"{state.reason}; the previous version could not be loaded: {event.reason}"
    after = enter(state, Phase.FAILED, reason, previous=None, latched=True)
    serve = () if after.current is None else (Serve(after.ticket, after.current.release, None),)
    return after, (set_slots(after), report(after), *serve)


def on_load_failed(state: ModelState, event: LoadFailed) -> Step:
    """The staged order, or what should answer, was refused by its runtime."""
    if state.phase is Phase.ROLLING_BACK:
        return state, ()
    staged = state.staged
    if state.phase is Phase.STAGED and staged is not None and event.slot_id == staged.slot_id:
        if event.ticket != state.ticket:
            return state, ()
        return give_up(state, Cause.LOAD, event.reason)
    current = state.current
    if current is None or event.slot_id != current.slot_id:
        if event.ticket != state.ticket:
            return state, ()
        raise illegal(state, event)
    if fallback_of(state) is None and (current.committed or is_bad(state, current.release)):
        # Nothing better is here; the pointer stays, so that a repaired runtime finds it again.
        return replace(state, reason=f"{event.reason}; no version to return to"), ()
    return retreat(state, Cause.LOAD, event.reason)


def give_up(state: ModelState, cause: Cause, reason: str) -> Step:
    """A staged order that cannot run here: never activated, never tried again in its rollout."""
    staged = state.staged
    if staged is None:
        raise illegal(state, cause)
    release = staged.release
    bad = state.bad | {(release.rollout, release.slot_id)}
    after = enter(state, Phase.FAILED, reason, bad=bad, staged=None)
    mark = MarkBad(release.slot_id, release.rollout, cause)
    return after, (mark, set_slots(after), Unload(release.slot_id), report(after), CollectGarbage())
