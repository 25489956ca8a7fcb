"""The tables of transitions: what DESIGN says, and what a report may make of an assignment."""

from itertools import product

import pytest

from controller.domain.rollout import (
    BY_ORDER,
    CALLED_BACK,
    CLOSED,
    DEFAULT_DEADLINE_S,
    LEGAL,
    OPEN,
    PHASE_LEGAL,
    TERMINAL,
    AssignmentState,
    IllegalTransitionError,
    Phase,
    check_phase,
    check_state,
    on_report,
    parse_rollout_spec,
    reason_of_report,
)
from controller.domain.wave import DEFAULT_WAVES
from controller.errors import InvalidError
from controller.store.tables import OPEN_STATES

A = AssignmentState


def test_terminal_phases_are_those_of_the_design() -> None:
    assert {Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.FAILED, Phase.ABORTED} == TERMINAL
    assert all(Phase.ABORTED in after for phase, after in PHASE_LEGAL.items() if after)


def test_open_states_are_those_of_the_index() -> None:
    assert {state.value for state in OPEN} == set(OPEN_STATES)
    assert {*OPEN, *CLOSED, A.COMMITTED} == set(A)


@pytest.mark.parametrize(("before", "after"), list(product(Phase, Phase)))
def test_phases_go_along_the_table_only(before: Phase, after: Phase) -> None:
    if before is after or after in PHASE_LEGAL[before]:
        assert check_phase("r-1", before, after, "test") is after
        return
    with pytest.raises(IllegalTransitionError, match=f"r-1 cannot go from {before} to {after}"):
        check_phase("r-1", before, after, "test")


@pytest.mark.parametrize(("before", "after"), list(product(A, A)))
def test_reports_move_forward_or_not_at_all(before: A, after: A) -> None:
    found = on_report(before, after)
    assert found.changed == (found.state is not before)
    if before is after:
        assert not found.ignored
    elif found.changed:
        assert found.state is after
        assert before not in CLOSED
        assert on_report(after, before).ignored  # never back
    else:
        assert found.ignored
        assert found.state is before


def test_who_obeyed_keeps_the_word_of_who_called_it_back() -> None:
    called = f"{CALLED_BACK}rolled back by ana: complaints"
    for obeyed in BY_ORDER:
        assert reason_of_report(called, obeyed) == called
        assert reason_of_report("it answers requests", obeyed) == obeyed
    # Called back and bad here as well: what the device found weighs more.
    assert reason_of_report(called, "5 inferences in a row") == "5 inferences in a row"


def test_a_report_may_skip_steps_but_not_the_offer() -> None:
    assert on_report(A.OFFERED, A.COMMITTED).changed
    assert on_report(A.STAGED, A.ROLLED_BACK).changed
    assert on_report(A.PLANNED, A.DOWNLOADING).ignored
    assert on_report(A.ROLLING_BACK, A.COMMITTED).ignored
    assert on_report(A.PROBATION, A.WITHDRAWN).ignored
    assert on_report(A.DOWNLOADING, A.REFUSED).ignored
    assert on_report(A.WITHDRAWN, A.ACTIVATED).ignored


@pytest.mark.parametrize("before", A)
def test_the_controller_withdraws_only_what_does_not_answer_yet(before: A) -> None:
    allowed = before in (A.PLANNED, A.OFFERED, A.DOWNLOADING, A.VERIFIED, A.STAGED, A.WITHDRAWN)
    if allowed:
        check_state("r-1 on pi-1", before, A.WITHDRAWN, "test")
        return
    with pytest.raises(IllegalTransitionError):
        check_state("r-1 on pi-1", before, A.WITHDRAWN, "test")


def test_every_closed_state_ends() -> None:
    assert all(not LEGAL[state] for state in CLOSED)


def test_a_spec_takes_defaults_for_what_is_not_said() -> None:
    spec = parse_rollout_spec({"model": "photo", "version": "1.0.0", "selector": "all"})
    assert (spec.waves, spec.deadline_s) == (DEFAULT_WAVES, DEFAULT_DEADLINE_S)
    assert spec.min_samples > 0
    assert parse_rollout_spec(spec.to_json()) == spec


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"version": "a/b"},
        {"selector": ""},
        {"selector": "a=b=c"},
        {"soak_s": -1},
        {"soak_s": float("nan")},
        {"min_samples": -5},
    ],
)
def test_a_wrong_spec_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        parse_rollout_spec({"model": "photo", "version": "1.0.0", "selector": "all"} | wrong)
