"""The update machine: every event in every reachable state, and from each the way to a good end."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from agent.domain.assignment import LEGAL, ModelState, Phase, Slot
from agent.domain.events import (
    Booted,
    Downloaded,
    Ending,
    Event,
    Loaded,
    LoadFailed,
    NewDesired,
    ProbationVerdict,
)
from agent.domain.instructions import Instruction, MarkBad, SwapBack
from agent.domain.transition import fallback_of, is_bad
from agent.domain.update import step
from agent.errors import IllegalTransitionError
from tests.support.update_walk import A1, ALL_SLOTS, B2, FINAL, SLOW, walk
from tests.support.update_world import Stepper, check_edge, check_kept, check_state, prove, run


@cache
def explore() -> tuple[list[ModelState], dict[str, int]]:
    """All reachable states, every event tried in each, every edge checked."""
    outcomes = dict.fromkeys(("moved", "illegal"), 0)

    def visit(
        state: ModelState,
        event: Event,
        after: ModelState | None,
        instructions: tuple[Instruction, ...],
    ) -> None:
        if after is None:
            outcomes["illegal"] += 1
            assert not isinstance(event, NewDesired | Booted | ProbationVerdict), event
            return
        outcomes["moved"] += 1
        check_edge(state, after, instructions)
        check_promises(state, event, after, instructions)

    states = walk(visit)
    for state in states:
        check_kept(state)
    return states, outcomes


def check_promises(
    before: ModelState, event: Event, after: ModelState, instructions: tuple[Instruction, ...]
) -> None:
    """The rules of going back, and that a device with a model keeps one."""
    automatic = isinstance(event, ProbationVerdict)
    back = [i for i in instructions if isinstance(i, SwapBack)]
    if automatic and back:
        current = before.current
        assert current is not None
        assert not (current.committed and before.latched), "went back twice"
        assert any(isinstance(i, MarkBad) for i in instructions)
    if before.current is not None and after.current is None:
        # Only when its files are damaged or its runtime dies with it, and no spare is here.
        assert fallback_of(before) is None or isinstance(event, Booted), event
        assert isinstance(event, Booted | LoadFailed), event
    if isinstance(event, NewDesired) and event.generation < before.generation:
        assert (after, instructions) == (before, ())


def test_every_event_in_every_reachable_state_is_defined() -> None:
    states, outcomes = explore()
    # Every phase an assignment can rest in was met, and the count says that the search ran.
    resting = set(Phase) - {Phase.SUPERSEDED}
    assert {s.phase for s in states} == resting
    assert len(states) > 300
    assert outcomes["moved"] > 10_000
    assert outcomes["illegal"] > 1_000


def test_from_every_state_a_new_order_reaches_its_commit() -> None:
    states, _ = explore()
    for state in states:
        after, _ = run(state, [Booted(Ending.CLEAN, ALL_SLOTS), NewDesired(FINAL, 2)])
        assert after.phase is Phase.PROBATION, state
        after, _ = prove(after)
        assert (after.phase, after.order) == (Phase.COMMITTED, FINAL), state


def test_from_every_state_the_bad_order_is_left_and_the_device_converges() -> None:
    """The new order turns out slow: the device is back on what it had, or still answers."""
    states, _ = explore()
    for state in states:
        after, _ = run(state, [Booted(Ending.CLEAN, ALL_SLOTS), NewDesired(FINAL, 2)])
        had = fallback_of(after)
        after, _ = run(after, [ProbationVerdict(FINAL.slot_id, SLOW)])
        assert after.latched
        assert is_bad(after, FINAL)
        if had is None:
            assert (after.phase, after.current) == (Phase.FAILED, Slot(FINAL)), state
        else:
            assert (after.phase, after.current) == (Phase.ROLLED_BACK, had), state
        # The same order again changes nothing, however often it is told.
        again, _ = run(after, [NewDesired(FINAL, 2), NewDesired(FINAL, 3), NewDesired(FINAL, 3)])
        assert (again.phase, again.current) == (after.phase, after.current)


def test_the_table_of_transitions_has_a_way_out_of_every_open_phase() -> None:
    assert set(LEGAL) == set(Phase)
    for phase, following in LEGAL.items():
        closed = phase in (
            Phase.IDLE,
            Phase.ROLLED_BACK,
            Phase.FAILED,
            Phase.WITHDRAWN,
            Phase.REFUSED,
            Phase.SUPERSEDED,
        )
        assert bool(following) is not closed


def test_an_illegal_event_tells_the_story() -> None:
    state, _ = run(ModelState("photo"), [NewDesired(A1, 1)])
    with pytest.raises(IllegalTransitionError) as caught:
        step(state, Loaded(state.ticket))
    assert "photo (1.0.0 of r-1) in PROBATION has no room for Loaded" in str(caught.value)


# -- negative controls: machines with one promise broken fail the same checks ----------------------


def _forgets_the_journal(
    state: ModelState, event: Event
) -> tuple[ModelState, tuple[Instruction, ...]]:
    after, instructions = step(state, event)
    return after, instructions[1:]


def _runs_unverified(state: ModelState, event: Event) -> tuple[ModelState, tuple[Instruction, ...]]:
    if isinstance(event, Downloaded) and state.phase is Phase.DOWNLOADING and state.order:
        return replace(state, phase=Phase.ACTIVATED, current=Slot(state.order)), ()
    return step(state, event)


def _keeps_uncommitted(
    state: ModelState, event: Event
) -> tuple[ModelState, tuple[Instruction, ...]]:
    after, instructions = step(state, event)
    if isinstance(event, Loaded) and state.current is not None:
        after = replace(after, previous=replace(state.current, committed=False))
    return after, instructions


@pytest.mark.parametrize("broken", [_forgets_the_journal, _runs_unverified, _keeps_uncommitted])
def test_a_broken_machine_fails_the_same_checks(broken: Stepper) -> None:
    with pytest.raises(AssertionError):
        run(ModelState("photo"), [NewDesired(A1, 1), NewDesired(B2, 2)], broken)


def test_without_a_latch_the_check_sees_the_second_return() -> None:
    state, _ = prove(run(ModelState("photo"), [NewDesired(A1, 1)])[0])
    state, _ = prove(run(state, [NewDesired(B2, 2)])[0])
    latched = replace(state, latched=True)
    event = ProbationVerdict(B2.slot_id, SLOW)
    assert step(latched, event) == (latched, ())
    after, instructions = step(state, event)
    with pytest.raises(AssertionError, match="went back twice"):
        check_promises(latched, event, after, instructions)


Check = Callable[[ModelState], None]


def test_check_state_rejects_an_uncommitted_way_back() -> None:
    state, _ = prove(run(ModelState("photo"), [NewDesired(A1, 1)])[0])
    with pytest.raises(AssertionError, match="never committed"):
        check_state(replace(state, previous=Slot(B2)))
