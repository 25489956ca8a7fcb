"""The rollback rule, enumerated: trial × pressure × gap × previous, the row, the latch.

Each check takes the rule as an argument; broken variants of it have to fail the same check.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.policy import Policy, ProbationPolicy
from agent.domain.probation import (
    Cause,
    Commit,
    LadderPosition,
    RollBack,
    RowState,
    ServiceSample,
    StepDown,
    Trial,
    Verdict,
    Wait,
    begin,
    judge,
    observe,
    on_rung_change,
)

POLICY = Policy(probation=ProbationPolicy(min_inferences=20, min_s=60, max_s=600))
SLOW, FAST, LIMIT = 0.140, 0.030, 0.100
Observe = Callable[[RowState, ServiceSample, Policy], RowState]
Judge = Callable[..., Verdict]
Inference = tuple[float, float, dict[str, Any]]


@dataclass(frozen=True)
class Rule:
    """A rule under test: the real one or a broken one."""

    observe: Observe = observe
    judge: Judge = judge


REAL = Rule()


def play(rule: Rule, steps: Sequence[Inference], start: float = 1000.0) -> RowState:
    """Fold (gap before, service time, marks) into a row, the device having been busy before."""
    state = rule.observe(begin(start), ServiceSample(start, FAST), POLICY)
    at = start
    for gap, service, marks in steps:
        at += gap + service
        state = rule.observe(state, ServiceSample(at, service, **marks), POLICY)
    return state


def decide(
    rule: Rule,
    state: RowState,
    trial: Trial = Trial.PROBATION,
    position: LadderPosition = LadderPosition.LOCAL,
    *,
    normal: bool = True,
    latched: bool = False,
) -> Verdict:
    now = state.last_at_s or state.since_s
    return rule.judge(state, trial, position, normal, POLICY, now, latched=latched)


# -- the whole table -------------------------------------------------------------------------------

TABLE = list(
    itertools.product(
        Trial, (False, True), (False, True), (False, True), LadderPosition, (False, True)
    )
)


def check_table(rule: Rule) -> None:
    """Four slow inferences (or three slow and a fast one), then a slow fifth, in every setting."""
    for trial, hot, idle, previous_slow, position, latched in TABLE:
        fourth = SLOW if previous_slow else FAST
        before: list[Inference] = [(0.05, s, {}) for s in (SLOW, SLOW, SLOW, fourth)]
        fifth = (5.0 if idle else 0.05, SLOW, {"pressured": hot})
        state = play(rule, [*before, fifth])
        found = decide(rule, state, trial, position, normal=not hot, latched=latched)
        where = f"{trial=} {hot=} {idle=} {previous_slow=} {position=} {latched=}: {found}"
        excused = hot or idle
        assert len(state.row) == (0 if not previous_slow else 4) + (0 if excused else 1), where
        if excused or not previous_slow:
            assert isinstance(found, Wait), where
        elif position is LadderPosition.REMOTE:
            assert isinstance(found, StepDown), where
        elif trial is Trial.PROBATION:
            assert isinstance(found, RollBack), where
            assert found.cause is Cause.SLOW, where
            assert found.row == (SLOW,) * 5, where
        elif position is LadderPosition.LOCAL:
            assert isinstance(found, StepDown), where
        else:
            assert isinstance(found, Wait if latched else RollBack), where


def check_excuses_keep_the_row(rule: Rule) -> None:
    """Excused samples stand between slow ones without ending the row, and cannot fill it either."""
    hot: Inference = (0.05, SLOW, {"pressured": True})
    idle: Inference = (3.0, SLOW, {})
    slow: Inference = (0.05, SLOW, {})
    for excuse in (hot, idle, (0.05, FAST, {"pressured": True}), (3.0, FAST, {})):
        steps = list(itertools.chain.from_iterable((slow, excuse) for _ in range(5)))
        assert isinstance(decide(rule, play(rule, steps[:8])), Wait)
        assert isinstance(decide(rule, play(rule, steps)), RollBack)
    assert isinstance(decide(rule, play(rule, [hot] * 50)), Wait)
    assert isinstance(decide(rule, play(rule, [idle] * 50)), Wait)


def check_a_slow_model_cannot_excuse_itself(rule: Rule) -> None:
    """Inferences longer than the idle gap, one after the other, are a row."""
    assert isinstance(decide(rule, play(rule, [(0.01, 3.0, {})] * 5)), RollBack)


def check_bad_outputs_count_as_slow(rule: Rule) -> None:
    """Not finite, or failed: one slow inference each, with the same excuses."""
    for marks, cause in (
        ({"non_finite": True}, Cause.NON_FINITE),
        ({"ok": False}, Cause.ERRORS),
    ):
        four = [(0.05, FAST, marks)] * 4
        assert isinstance(decide(rule, play(rule, four)), Wait)
        found = decide(rule, play(rule, [*four, (0.05, SLOW, {})]))
        assert isinstance(found, RollBack)
        assert found.cause is cause
        hot = [(0.05, FAST, {**marks, "pressured": True})] * 9
        assert isinstance(decide(rule, play(rule, hot)), Wait)


def check_committed_pressure_and_latch(rule: Rule) -> None:
    """Committed, on the lowest local rung: pressure and the latch hold it back."""
    state = play(rule, [(0.05, SLOW, {})] * 5)
    lowest = LadderPosition.LOWEST_LOCAL
    assert isinstance(decide(rule, state, Trial.COMMITTED, lowest), RollBack)
    assert isinstance(decide(rule, state, Trial.COMMITTED, lowest, normal=False), Wait)
    assert isinstance(decide(rule, state, Trial.COMMITTED, lowest, latched=True), Wait)
    stepped = on_rung_change(state)
    assert isinstance(decide(rule, stepped, Trial.COMMITTED, lowest), Wait)


def check_silence_commits_nothing(rule: Rule) -> None:
    """Only counted inferences and time commit; at the end of the time it says it is starved."""
    policy = POLICY
    state = begin(0.0)
    for now, kind in ((59.0, Wait), (60.0, Wait), (599.0, Wait), (6000.0, Wait)):
        found = rule.judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, policy, now)
        assert isinstance(found, kind)
        assert found.starved == (now >= 600)
    at = 0.0
    for marks in ({"pressured": True}, {"non_finite": True}, {"ok": False}):
        for _ in range(100):
            at += 0.2
            state = rule.observe(state, ServiceSample(at, FAST, **marks), policy)
            at += 0.2
            state = rule.observe(state, ServiceSample(at, FAST, pressured=True), policy)
    found = rule.judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, policy, 700.0)
    assert not isinstance(found, Commit)


CHECKS = [
    check_table,
    check_excuses_keep_the_row,
    check_a_slow_model_cannot_excuse_itself,
    check_bad_outputs_count_as_slow,
    check_committed_pressure_and_latch,
    check_silence_commits_nothing,
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_rule_passes(check: Callable[[Rule], None]) -> None:
    check(REAL)


# -- negative controls -----------------------------------------------------------------------------


def _without_pressure(state: RowState, sample: ServiceSample, policy: Policy) -> RowState:
    return observe(state, replace(sample, pressured=False), policy)


def _pressure_breaks(state: RowState, sample: ServiceSample, policy: Policy) -> RowState:
    after = observe(state, sample, policy)
    return replace(after, row=()) if sample.pressured else after


def _without_idle(state: RowState, sample: ServiceSample, policy: Policy) -> RowState:
    return observe(state, sample, replace(policy, idle_gap_s=1e9))


def _gap_between_ends(state: RowState, sample: ServiceSample, policy: Policy) -> RowState:
    last = state.last_at_s
    idle = last is not None and sample.at_s - last > policy.idle_gap_s
    return observe(state, replace(sample, pressured=sample.pressured or idle), policy)


def _ignores_bad(state: RowState, sample: ServiceSample, policy: Policy) -> RowState:
    return observe(state, replace(sample, ok=True, non_finite=False), policy)


def _four_are_enough(state: RowState, *args: Any, **kwargs: Any) -> Verdict:
    row = (*state.row, 1.0) if len(state.row) == 4 else state.row
    return judge(replace(state, row=row), *args, **kwargs)


def _forgets_the_latch(*args: Any, **kwargs: Any) -> Verdict:
    return judge(*args, **{**kwargs, "latched": False})


def _never_steps_down(
    state: RowState, trial: Trial, position: LadderPosition, *args: Any, **kwargs: Any
) -> Verdict:
    return judge(state, trial, LadderPosition.LOWEST_LOCAL, *args, **kwargs)


def _ignores_pressure(
    state: RowState, trial: Trial, position: LadderPosition, normal: bool, *args: Any, **kw: Any
) -> Verdict:
    return judge(state, trial, position, True, *args, **kw)


def _commits_by_silence(*args: Any, **kwargs: Any) -> Verdict:
    found = judge(*args, **kwargs)
    return Commit("time is over") if isinstance(found, Wait) and found.starved else found


BROKEN = {
    "pressure is no excuse": (Rule(observe=_without_pressure), check_table),
    "pressure breaks the row": (Rule(observe=_pressure_breaks), check_excuses_keep_the_row),
    "an idle gap is no excuse": (Rule(observe=_without_idle), check_table),
    "the gap counts from end to end": (
        Rule(observe=_gap_between_ends),
        check_a_slow_model_cannot_excuse_itself,
    ),
    "bad outputs are ignored": (Rule(observe=_ignores_bad), check_bad_outputs_count_as_slow),
    "four are enough": (Rule(judge=_four_are_enough), check_bad_outputs_count_as_slow),
    "the latch is forgotten": (Rule(judge=_forgets_the_latch), check_table),
    "committed never steps down": (Rule(judge=_never_steps_down), check_table),
    "committed under pressure": (
        Rule(judge=_ignores_pressure),
        check_committed_pressure_and_latch,
    ),
    "silence commits": (Rule(judge=_commits_by_silence), check_silence_commits_nothing),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_fails_its_check(name: str) -> None:
    rule, check = BROKEN[name]
    with pytest.raises(AssertionError):
        check(rule)


# -- further ---------------------------------------------------------------------------------------


def test_the_threshold_itself_is_not_over_it() -> None:
    assert play(REAL, [(0.05, LIMIT, {})] * 9).row == ()
    assert len(play(REAL, [(0.05, LIMIT + 1e-9, {})] * 9).row) == 5


def test_the_first_sample_of_all_follows_an_idle_gap() -> None:
    state = observe(begin(0.0), ServiceSample(1.0, SLOW), POLICY)
    assert state.row == ()
    assert (state.seen, state.counted) == (1, 0)


def test_it_commits_after_enough_inferences_and_time() -> None:
    state = play(REAL, [(0.05, FAST, {})] * 20, start=0.0)
    early = judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, POLICY, 30.0)
    assert early == Wait(60.0, "enough inferences, the minimum time runs")
    found = judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, POLICY, 60.0)
    assert found == Commit("20 inferences in 60 s, no row of slow ones")


def test_a_restart_goes_on_with_the_counters_of_the_journal() -> None:
    state = begin(5.0, counted=20, elapsed_s=61.0)
    assert isinstance(
        judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, POLICY, 5.0), Commit
    )


def test_starved_it_may_still_commit_when_inferences_come() -> None:
    state = play(REAL, [(0.05, FAST, {})] * 20, start=700.0)
    late = replace(state, since_s=0.0)
    assert isinstance(
        judge(late, Trial.PROBATION, LadderPosition.LOCAL, True, POLICY, 705.0), Commit
    )


def test_the_story_names_the_row() -> None:
    found = decide(REAL, play(REAL, [(0.05, 0.131, {})] * 4 + [(0.05, 0.118, {})]))
    assert isinstance(found, RollBack)
    assert found.reason == "5 inferences in a row over 100 ms (131 131 131 131 118)"


@pytest.mark.parametrize(
    ("slow", "cause", "said"),
    [
        (5, Cause.SLOW, "5 inferences in a row over 100 ms (140 140 140 140 140)"),
        (4, Cause.NON_FINITE, "5 bad inferences in a row (0 failed, 1 not finite)"),
    ],
)
def test_what_fell_out_of_the_row_says_nothing_of_it(slow: int, cause: Cause, said: str) -> None:
    # Six that are not finite, then slow ones: all of the six fell out, or all but one.
    bad: list[Inference] = [(0.05, FAST, {"non_finite": True})] * 6
    state = play(REAL, bad + [(0.05, SLOW, {})] * slow)
    assert len(state.row) == len(state.flaws) == 5
    found = decide(REAL, state)
    assert isinstance(found, RollBack)
    assert (found.cause, found.reason) == (cause, said)


def test_samples_of_parallel_requests_may_come_out_of_order() -> None:
    state = play(REAL, [(0.05, SLOW, {})] * 4)
    assert state.last_at_s is not None
    late = ServiceSample(state.last_at_s - 0.1, SLOW)
    after = observe(state, late, POLICY)
    assert after.last_at_s == state.last_at_s
    assert len(after.row) == 5


SAMPLES = st.lists(
    st.tuples(
        st.sampled_from([0.01, 0.05, 1.9, 2.1, 60.0]),
        st.sampled_from([FAST, LIMIT, SLOW, 3.0]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(SAMPLES)
def test_the_row_is_what_the_sentence_says(
    samples: list[tuple[float, float, Any, Any, Any]],
) -> None:
    """Against a second, slow telling of the rule over the whole history."""
    steps = [
        (gap, service, {"ok": ok, "non_finite": nan, "pressured": hot})
        for gap, service, ok, nan, hot in samples
    ]
    state = play(REAL, steps)
    counted = [
        (service, ok and not nan)
        for gap, service, ok, nan, hot in samples
        if not hot and gap <= POLICY.idle_gap_s
    ]
    bad = [not good or service > LIMIT for service, good in counted]
    row = len(list(itertools.takewhile(bool, reversed(bad))))
    assert len(state.row) == len(state.flaws) == min(row, 5)
    assert state.counted == sum(good for _, good in counted)
    assert state.seen == len(samples) + 1
