"""The update machine of one model: offered, fetched, verified, staged, activated, proven, or back.

Refuses to act: it returns the next state and instructions; the loop journals, then does. Its parts:
`orders` (a new desired state), `retreat` (verdicts and the way back), `booting` (after a start).
"""

from dataclasses import replace
from typing import assert_never

from agent.domain.assignment import ModelState, Phase, Slot
from agent.domain.booting import on_booted
from agent.domain.desired import Activation, DesiredModel
from agent.domain.events import (
    Activated,
    Booted,
    Downloaded,
    DownloadFailed,
    Event,
    Loaded,
    LoadFailed,
    NewDesired,
    NoRoom,
    PreflightOk,
    ProbationVerdict,
    Progress,
    RollBackFailed,
    RollBackRequested,
    RolledBack,
    Staged,
    Verified,
    VerifyFailed,
)
from agent.domain.instructions import (
    CollectGarbage,
    Fetch,
    Instruction,
    LoadAndWarm,
    Swap,
    Unload,
    Verify,
    WriteJournal,
)
from agent.domain.orders import on_desired
from agent.domain.retreat import (
    on_load_failed,
    on_requested,
    on_roll_back_failed,
    on_rolled_back,
    on_verdict,
)
from agent.domain.transition import Step, enter, fallback_of, illegal, is_bad, report, set_slots

_VERIFY_ATTEMPTS = 3

Work = (
    PreflightOk
    | NoRoom
    | Downloaded
    | DownloadFailed
    | Verified
    | VerifyFailed
    | Staged
    | Loaded
    | Activated
    | Progress
)


def step(state: ModelState, event: Event) -> Step:
    """Take one event; instructions begin with WriteJournal when the state changed.

    IllegalTransitionError when the event has no room in this phase; late results (of an older
    ticket or slot) are no error and change nothing.
    """
    after, instructions = _route(state, event)
    if after.pending is not None and after.phase is not Phase.ROLLING_BACK:
        pending = after.pending
        after, more = on_desired(replace(after, pending=None), pending)
        instructions = (*instructions, *more)
    if after == state:
        return state, instructions
    return after, (WriteJournal(after), *instructions)


def _route(state: ModelState, event: Event) -> Step:
    match event:
        case NewDesired():
            return on_desired(state, event)
        case Booted():
            return on_booted(state, event)
        case ProbationVerdict():
            return on_verdict(state, event)
        case RollBackRequested():
            return on_requested(state, event)
        case RolledBack():
            return on_rolled_back(state, event)
        case RollBackFailed():
            return on_roll_back_failed(state, event)
        case LoadFailed():
            return on_load_failed(state, event)
        case (
            PreflightOk()
            | NoRoom()
            | Downloaded()
            | DownloadFailed()
            | Verified()
            | VerifyFailed()
            | Staged()
            | Loaded()
            | Activated()
            | Progress()
        ):
            if event.ticket != state.ticket:
                return state, ()
            order = state.order
            if order is None:
                raise illegal(state, event)
            return _work(state, order, event)
        case never:
            assert_never(never)


def _work(state: ModelState, order: DesiredModel, event: Work) -> Step:
    match (state.phase, event):
        case (Phase.OFFERED, PreflightOk()):
            after = enter(state, Phase.DOWNLOADING, "there is room", attempts=0)
            return after, (report(after), Fetch(after.ticket, order.targets, 0))
        case (Phase.OFFERED, NoRoom()):
            after = enter(state, Phase.REFUSED, event.reason)
            return after, (report(after), CollectGarbage())
        case (Phase.DOWNLOADING, Downloaded()):
            return state, (Verify(state.ticket, order.targets),)
        case (Phase.DOWNLOADING, DownloadFailed()):
            if event.retryable:
                return _fetch_again(state, order, event.reason)
            return _fail(state, event.reason)
        case (Phase.DOWNLOADING, Verified()):
            after = enter(
                state, Phase.VERIFIED, "every file is what was signed", staged=Slot(order)
            )
            return after, (report(after), set_slots(after))
        case (Phase.DOWNLOADING, VerifyFailed()):
            if state.attempts + 1 < _VERIFY_ATTEMPTS:
                return _fetch_again(state, order, event.reason)
            return _fail(state, event.reason)
        case (Phase.VERIFIED, Staged()):
            after = enter(state, Phase.STAGED, "ready to be loaded", restarts=0)
            if order.activation is Activation.HANDOVER:
                ready, work = _activate(after, order)
                return ready, (report(after), *work)
            return after, (report(after), LoadAndWarm(after.ticket, order))
        case (Phase.STAGED, Staged()):
            return state, ()
        case (Phase.STAGED, Loaded()):
            return _activate(state, order)
        case (Phase.ACTIVATED, Activated()):
            after = enter(state, Phase.PROBATION, "it answers requests")
            return after, (report(after),)
        case (Phase.ACTIVATED | Phase.PROBATION, Progress()):
            return replace(state, counted=event.counted, elapsed_s=event.elapsed_s), ()
        case (Phase.COMMITTED | Phase.ROLLED_BACK | Phase.FAILED, Progress()):
            return state, ()
        case _:
            raise illegal(state, event)


def _fetch_again(state: ModelState, order: DesiredModel, reason: str) -> Step:
    after = replace(state, attempts=state.attempts + 1, reason=reason)
    return after, (Fetch(after.ticket, order.targets, after.attempts),)


def _fail(state: ModelState, reason: str) -> Step:
    after = enter(state, Phase.FAILED, reason, staged=None)
    return after, (report(after), CollectGarbage())


def _activate(state: ModelState, order: DesiredModel) -> Step:
    """Make the order current on disk *before* it answers: if it kills the agent, the next start
    has to know which version that was."""
    old, staged = state.current, state.staged
    if staged is None:
        raise illegal(state, Swap(state.ticket, order))
    keeps = old is not None and old.committed and not is_bad(state, old.release)
    back = old if keeps else fallback_of(state)
    if back is not None and back.slot_id == staged.slot_id:
        back = None  # the same files again: they are no way back from themselves
    after = enter(
        state,
        Phase.ACTIVATED,
        "loaded and warm beside the running version",
        current=staged,
        previous=back,
        staged=None,
        latched=False,
        restarts=0,
        counted=0,
        elapsed_s=0.0,
    )
    work: list[Instruction] = [set_slots(after), report(after), Swap(after.ticket, order)]
    kept = {slot.slot_id for slot in (after.current, after.previous) if slot is not None}
    for slot in (old, state.previous):
        if slot is not None and slot.slot_id not in kept:
            work.append(Unload(slot.slot_id))
    return after, tuple(work)
