"""Every state that the agent's update machine can reach, and every event tried in each of them.

Holds no promise of its own: what must hold of a step is the visitor's to check.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from agent.domain.assignment import ModelState, Phase
from agent.domain.desired import DesiredModel
from agent.domain.events import (
    Activated,
    Booted,
    Downloaded,
    DownloadFailed,
    Ending,
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
from agent.domain.instructions import Instruction
from agent.domain.probation import Cause, Commit, RollBack, Wait
from agent.domain.update import step
from agent.errors import IllegalTransitionError
from tests.support.releases import release
from tests.support.update_world import Stepper

A1 = release("1.0.0", "r-1")
B2 = release("1.1.0", "r-2")
B3 = release("1.1.0", "r-3")
FINAL = release("9.0.0", "r-9")
SLOW = RollBack(Cause.SLOW, "5 in a row")
ALL_SLOTS = frozenset(r.slot_id for r in (A1, B2, FINAL))

# Before, the event, after and what is to be done; the last two are None for an illegal event.
Visit = Callable[[ModelState, Event, ModelState | None, tuple[Instruction, ...]], None]


def alphabet(state: ModelState) -> Iterator[Event]:
    """Every kind of event, with the tickets and slots that matter in this state."""
    for generation in (state.generation, state.generation + 1):
        for order in (A1, B2, B3, None):
            yield NewDesired(order, generation)
    yield NewDesired(B2, state.generation - 1)
    for ticket in (state.ticket, state.ticket - 1):
        yield PreflightOk(ticket)
        yield NoRoom(ticket, "needs 2 MB, 1 MB is free")
        yield Downloaded(ticket)
        yield DownloadFailed(ticket, "cut", retryable=True)
        yield DownloadFailed(ticket, "gone", retryable=False)
        yield Verified(ticket)
        yield VerifyFailed(ticket, "other bytes")
        yield Staged(ticket)
        yield Loaded(ticket)
        yield Activated(ticket)
        yield Progress(ticket, 0, 0.0)
        yield RolledBack(ticket)
        yield RollBackFailed(ticket, "no runtime")
        for slot_id in sorted(ALL_SLOTS):
            yield LoadFailed(ticket, slot_id, "bad opset")
    for slot_id in sorted(ALL_SLOTS):
        for verdict in (Commit("ok"), SLOW, Wait(None, "starved", starved=True)):
            yield ProbationVerdict(slot_id, verdict)
    yield RollBackRequested("by hand")
    here = state.current.slot_id if state.current else ""
    for ending in Ending:
        for present in (ALL_SLOTS, ALL_SLOTS - {here}, frozenset({here}), frozenset[str]()):
            yield Booted(ending, present)


def same(state: ModelState) -> ModelState:
    """States that differ only in counters and words are one."""
    pending = state.pending and replace(state.pending, generation=1)
    on_trial = state.current is not None and not state.current.committed
    counts = on_trial or state.phase is Phase.STAGED
    return replace(
        state,
        generation=1,
        ticket=1,
        reason="",
        pending=pending,
        restarts=min(state.restarts, 3) if counts else 0,
        attempts=min(state.attempts, 2) if state.phase is Phase.DOWNLOADING else 0,
    )


def walk(visit: Visit, stepper: Stepper = step) -> list[ModelState]:
    """All reachable states up to `same`; every event was tried in each."""
    start = same(ModelState("photo"))
    seen, todo = {_key(start): start}, [start]
    while todo:
        state = todo.pop()
        for event in alphabet(state):
            try:
                after, instructions = stepper(state, event)
            except IllegalTransitionError:
                visit(state, event, None, ())
                continue
            visit(state, event, after, instructions)
            known = same(after)
            if _key(known) not in seen:
                seen[_key(known)] = known
                todo.append(known)
    return list(seen.values())


def _key(state: ModelState) -> tuple[object, ...]:
    def named(order: DesiredModel | None) -> object:
        return order and (order.version, order.rollout)

    slots = tuple(
        slot and (named(slot.release), slot.committed)
        for slot in (state.current, state.previous, state.staged)
    )
    pending = state.pending and (named(state.pending.order), state.pending.generation)
    flags = (state.latched, state.starved, state.attempts, state.restarts, state.bad)
    return (state.phase, named(state.order), slots, pending, *flags)
