"""Drives the agent's update machine: answers its instructions, checks what must always hold.

Holds no fault of its own: what fails is chosen by the test.
"""

from collections.abc import Callable, Iterable

from agent.domain.assignment import LIVE, ModelState, Phase
from agent.domain.events import (
    Activated,
    Downloaded,
    Event,
    Loaded,
    PreflightOk,
    ProbationVerdict,
    RolledBack,
    Staged,
    Verified,
)
from agent.domain.instructions import (
    Fetch,
    Instruction,
    LoadAndWarm,
    Preflight,
    Report,
    Serve,
    SetSlots,
    Swap,
    SwapBack,
    Verify,
    WriteJournal,
)
from agent.domain.probation import Commit
from agent.domain.state_json import state_from_json, state_to_json
from agent.domain.transition import fallback_of, is_bad, is_current
from agent.domain.update import step

Stepper = Callable[[ModelState, Event], tuple[ModelState, tuple[Instruction, ...]]]


def answer_of(instruction: Instruction) -> Event | None:
    """The event that follows when everything works."""
    match instruction:
        case Preflight():
            return PreflightOk(instruction.ticket)
        case Fetch():
            return Downloaded(instruction.ticket)
        case Verify():
            return Verified(instruction.ticket)
        case SetSlots() if instruction.ticket is not None:
            return Staged(instruction.ticket)
        case LoadAndWarm():
            return Loaded(instruction.ticket)
        case Swap():
            return Activated(instruction.ticket)
        case SwapBack():
            return RolledBack(instruction.ticket)
        case _:
            return None


def run(
    state: ModelState, events: Iterable[Event], stepper: Stepper = step
) -> tuple[ModelState, list[Instruction]]:
    """Feed events, and after each all answers that follow from it; gives every instruction."""
    done: list[Instruction] = []
    for event in events:
        queue: list[Event] = [event]
        while queue:
            before = state
            state, instructions = stepper(state, queue.pop(0))
            check_edge(before, state, instructions)
            done.extend(instructions)
            queue.extend(a for a in map(answer_of, instructions) if a is not None)
    return state, done


def prove(state: ModelState) -> tuple[ModelState, list[Instruction]]:
    """Let the version that answers pass its probation."""
    assert state.current is not None
    verdict = ProbationVerdict(state.current.slot_id, Commit("enough inferences"))
    return run(state, [verdict])


def reports(instructions: Iterable[Instruction]) -> list[tuple[str, str]]:
    """(rollout, phase) of every report, in order."""
    return [(i.rollout, i.phase.value) for i in instructions if isinstance(i, Report)]


def check_state(state: ModelState) -> None:
    """What holds in every state: one current slot, a sound way back, phase and slots agree."""
    order, current, previous, staged = state.order, state.current, state.previous, state.staged
    assert previous is None or previous.committed, "a way back that was never committed"
    assert current is None or previous is None or current.slot_id != previous.slot_id
    assert (state.order is None) <= (state.phase is Phase.IDLE)
    if state.phase in (Phase.VERIFIED, Phase.STAGED):
        assert staged is not None
        assert staged.release == order
    else:
        assert staged is None
    if state.phase in LIVE:
        assert is_current(state)
        assert current is not None
        assert current.committed is (state.phase is Phase.COMMITTED)
    if state.phase is Phase.ROLLING_BACK:
        assert order is not None
        assert is_bad(state, order)
    else:
        assert state.pending is None


def check_kept(state: ModelState) -> None:
    """What the journal keeps of a state is the whole state."""
    assert state_from_json(state_to_json(state)) == state


def check_edge(
    before: ModelState, after: ModelState, instructions: tuple[Instruction, ...]
) -> None:
    """What holds for every step: journal first, nothing unverified runs, no way back to the bad."""
    check_state(after)
    journaled = [i for i in instructions if isinstance(i, WriteJournal)]
    assert len(journaled) == (after != before)
    if journaled:
        assert instructions[0] == WriteJournal(after)
    assert after.generation >= before.generation
    assert after.ticket >= before.ticket
    assert before.bad <= after.bad
    if after.current is not None and (
        before.current is None or after.current.slot_id != before.current.slot_id
    ):
        sources = {s.slot_id for s in (before.staged, before.previous) if s is not None}
        assert after.current.slot_id in sources, "something unverified became current"
    for instruction in instructions:
        ticket = getattr(instruction, "ticket", None)
        # A failed Serve is told by its slot: the order it was started beside may change.
        assert ticket in (None, after.ticket) or isinstance(instruction, Serve)
        match instruction:
            case SwapBack():
                back = fallback_of(after)
                assert back is not None
                assert instruction.release == back.release
            case Swap() | Serve():
                assert after.current is not None
                assert instruction.release.slot_id == after.current.slot_id
            case _:
                pass
    moved = (before.phase, before.order) != (after.phase, after.order)
    if moved and after.phase is not Phase.IDLE and before.phase is not after.phase:
        assert after.order is not None
        told = reports(instructions)
        assert (after.order.rollout, after.phase.value) in told, f"{after.phase} was not reported"
