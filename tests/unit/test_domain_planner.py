"""The planner, enumerated: every phase × intent × verdict × wave position × standing of devices."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from controller.domain.planner import (
    ERRORS_TOLERATED,
    Facts,
    PauseKind,
    PauseReason,
    Plan,
    dispatch,
    plan,
)
from controller.domain.rollout import (
    LIVE,
    OPEN,
    PHASE_LEGAL,
    TERMINAL,
    UNDERWAY,
    AssignmentState,
    Intent,
    Phase,
    Verdict,
)

A = AssignmentState
NOW = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
CAPS = (1, 5, 10)

# What devices may look like: name -> (counts, exposed, live in the current wave, candidates).
STANDINGS: dict[str, tuple[dict[AssignmentState, int], int, int, int]] = {
    "nothing offered": ({A.PLANNED: 10}, 0, 0, 10),
    "nobody online": ({A.PLANNED: 10}, 0, 0, 0),
    "canary underway": ({A.PLANNED: 9, A.DOWNLOADING: 1}, 1, 1, 9),
    "canary committed": ({A.PLANNED: 9, A.COMMITTED: 1}, 1, 1, 9),
    "at the middle cap": ({A.PLANNED: 5, A.COMMITTED: 4, A.PROBATION: 1}, 5, 4, 5),
    "one failed": ({A.PLANNED: 5, A.COMMITTED: 4, A.FAILED: 1}, 5, 4, 5),
    "one returned": ({A.PLANNED: 5, A.COMMITTED: 4, A.ROLLED_BACK: 1}, 5, 4, 5),
    "all committed": ({A.COMMITTED: 10}, 10, 5, 0),
    "last offline": ({A.COMMITTED: 9, A.PLANNED: 1}, 9, 4, 0),
    "all returning": ({A.ROLLING_BACK: 10}, 10, 10, 0),
    "all returned": ({A.ROLLED_BACK: 10}, 10, 0, 0),
    "all superseded": ({A.SUPERSEDED: 10}, 3, 0, 0),
    "rest superseded": ({A.SUPERSEDED: 9, A.COMMITTED: 1}, 1, 0, 0),
    "all refused": ({A.REFUSED: 10}, 0, 0, 0),
}


def facts(
    phase: Phase, intent: Intent, verdict: Verdict, wave: int, standing: str, **more: object
) -> Facts:
    counts, exposed, live, candidates = STANDINGS[standing]
    base = Facts(
        rollout_id="r-1",
        phase=phase,
        phase_reason="before",
        intent=intent,
        intent_by="ana",
        intent_at=NOW - timedelta(seconds=60),
        intent_reason="why not",
        caps=CAPS,
        current_wave=wave,
        counts=counts,
        exposed=exposed,
        wave_live=live,
        candidates=tuple(f"pi-{n}" for n in range(candidates)),
        verdict=verdict,
        verdict_reason="because",
    )
    return replace(base, **more)  # type: ignore[arg-type]


REST = list(product(Verdict, range(len(CAPS) + 1), STANDINGS))


def check_plan(before: Facts, decided: Plan) -> None:
    """What holds for every plan, whatever the facts."""
    assert decided.phase is before.phase or decided.phase in PHASE_LEGAL[before.phase]
    assert decided.reason
    assert before.current_wave <= decided.current_wave <= before.current_wave + 1
    if decided.current_wave > before.current_wave:
        assert before.current_wave == 0 or before.verdict is Verdict.PASSED
    if decided.take:
        cap = before.caps[decided.current_wave - 1]
        assert before.exposed + len(decided.take) <= cap
        assert decided.phase is Phase.PROGRESSING
        assert before.intent is Intent.RUN
    if before.phase in TERMINAL:
        assert decided.phase is before.phase
        assert not [*decided.take, *decided.withdraw, *decided.roll_back]
    if decided.roll_back:
        assert decided.phase is Phase.ROLLING_BACK
    if decided.phase is Phase.PAUSED:
        assert decided.pause_reasons
    if decided.phase is Phase.SUCCEEDED and before.phase is not Phase.SUCCEEDED:
        assert not before.count(OPEN)
        assert before.counts.get(A.COMMITTED, 0) > 0


@pytest.mark.parametrize("intent", Intent)
@pytest.mark.parametrize("phase", Phase)
def test_every_plan_keeps_the_rules(phase: Phase, intent: Intent) -> None:
    for verdict, wave, standing in REST:
        check_combination(phase, intent, verdict, wave, standing)


def check_combination(
    phase: Phase, intent: Intent, verdict: Verdict, wave: int, standing: str
) -> None:
    """One of 8,960 plans, against the rules and against what people and judge demand."""
    before = facts(phase, intent, verdict, wave, standing)
    decided = plan(before, NOW)
    check_plan(before, decided)
    assert plan(before, NOW) == decided
    if phase in TERMINAL:
        return
    if intent is Intent.ABORT:
        assert decided.phase is Phase.ABORTED
        assert decided.withdraw == UNDERWAY | {A.PLANNED}
        assert not decided.roll_back
    elif phase is Phase.ROLLING_BACK:
        assert decided.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
    elif intent is Intent.ROLL_BACK:
        if phase is Phase.PENDING:
            assert decided.phase is Phase.ABORTED
        else:
            assert (decided.phase, decided.roll_back) == (Phase.ROLLING_BACK, LIVE)
    elif verdict is Verdict.FAILED and wave and phase is not Phase.PENDING:
        assert (decided.phase, decided.roll_back) == (Phase.ROLLING_BACK, LIVE)
        assert decided.reason == "FAILED: because"
    elif intent is Intent.PAUSE:
        assert not decided.take


@pytest.mark.parametrize("standing", ["canary underway", "canary committed"])
@pytest.mark.parametrize("phase", [Phase.PROGRESSING, Phase.PAUSED])
def test_inconclusive_waits_for_a_person(phase: Phase, standing: str) -> None:
    before = facts(phase, Intent.RUN, Verdict.INCONCLUSIVE, 1, standing)
    decided = plan(before, NOW)
    assert decided.phase is Phase.PAUSED
    assert [one.kind for one in decided.pause_reasons] == [PauseKind.INCONCLUSIVE]
    held = replace(
        before, phase=Phase.PAUSED, verdict=Verdict.PENDING, pause_reasons=decided.pause_reasons
    )
    assert plan(held, NOW).phase is Phase.PAUSED  # it does not clear itself
    resumed = replace(held, intent_at=NOW + timedelta(seconds=1))
    assert plan(resumed, NOW + timedelta(seconds=2)).phase is Phase.PROGRESSING


def test_a_run_older_than_the_reason_does_not_clear_it() -> None:
    reason = PauseReason(PauseKind.INCONCLUSIVE, "INCONCLUSIVE: silence", NOW)
    before = facts(
        Phase.PAUSED,
        Intent.RUN,
        Verdict.PENDING,
        1,
        "canary committed",
        pause_reasons=(reason,),
        intent_at=NOW - timedelta(seconds=1),
    )
    assert plan(before, NOW).phase is Phase.PAUSED


@pytest.mark.parametrize("errors", range(1, ERRORS_TOLERATED + 3))
def test_errors_are_tolerated_so_many_times(errors: int) -> None:
    before = facts(
        Phase.PROGRESSING, Intent.RUN, Verdict.ERROR, 1, "canary committed", errors_in_row=errors
    )
    expected = Phase.PROGRESSING if errors <= ERRORS_TOLERATED else Phase.PAUSED
    assert plan(before, NOW).phase is expected


def test_a_person_pauses_and_resumes() -> None:
    before = facts(Phase.PROGRESSING, Intent.PAUSE, Verdict.PASSED, 1, "canary committed")
    decided = plan(before, NOW)
    assert (decided.phase, decided.reason) == (Phase.PAUSED, "paused by ana: why not")
    resumed = replace(
        before,
        phase=Phase.PAUSED,
        intent=Intent.RUN,
        intent_at=NOW,
        pause_reasons=decided.pause_reasons,
    )
    again = plan(resumed, NOW)
    assert (again.phase, again.current_wave, len(again.take)) == (Phase.PROGRESSING, 2, 4)


def test_a_failed_wave_returns_everyone_even_while_paused() -> None:
    before = facts(Phase.PAUSED, Intent.PAUSE, Verdict.FAILED, 2, "one returned")
    decided = plan(before, NOW)
    assert (decided.phase, decided.roll_back) == (Phase.ROLLING_BACK, LIVE)
    assert decided.withdraw == UNDERWAY | {A.PLANNED}


def test_failed_and_returned_devices_never_leave_the_ledger() -> None:
    before = facts(Phase.PROGRESSING, Intent.RUN, Verdict.PENDING, 2, "one failed")
    assert plan(before, NOW).take == ()
    assert dispatch(5, 4, ("a", "b")) == ("a",)
    assert dispatch(5, 7, ("a", "b")) == ()


def test_the_end_waits_for_devices_that_are_offline() -> None:
    before = facts(Phase.PROGRESSING, Intent.RUN, Verdict.PASSED, 3, "last offline")
    decided = plan(before, NOW)
    assert decided.phase is Phase.PROGRESSING
    assert decided.reason == "wave 3 of 3 passed, waiting for 1 device to be online"
    joined = replace(before, candidates=("pi-9",))
    assert plan(joined, NOW).take == ("pi-9",)


def test_superseded_everywhere_is_aborted() -> None:
    before = facts(
        Phase.PROGRESSING,
        Intent.RUN,
        Verdict.PENDING,
        2,
        "all superseded",
        superseded="superseded by r-2",
    )
    decided = plan(before, NOW)
    assert (decided.phase, decided.reason) == (Phase.ABORTED, "superseded by r-2")


def test_committed_devices_that_went_on_to_a_newer_version_end_it() -> None:
    before = facts(
        Phase.PROGRESSING,
        Intent.RUN,
        Verdict.PENDING,
        len(CAPS),
        "all committed",
        wave_live=0,
        taken_over=10,
        superseded="superseded by r-2",
    )
    decided = plan(before, NOW)
    assert (decided.phase, decided.reason) == (Phase.ABORTED, "superseded by r-2")
    some = plan(replace(before, taken_over=4), NOW)
    assert (some.phase, some.reason) == (
        Phase.ABORTED,
        "superseded by r-2; 6 devices keep it",
    )
    assert plan(replace(before, wave_live=1), NOW).phase is Phase.PROGRESSING
    assert plan(replace(before, verdict=Verdict.PASSED), NOW).phase is Phase.SUCCEEDED


def test_devices_that_cannot_return_make_it_failed() -> None:
    before = facts(Phase.ROLLING_BACK, Intent.RUN, Verdict.FAILED, 1, "all returned")
    assert plan(before, NOW).phase is Phase.ROLLED_BACK
    assert plan(replace(before, not_returned=2), NOW).phase is Phase.FAILED
