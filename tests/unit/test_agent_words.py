"""How figures stand in the agent's reasons: none rounds to nothing, nouns agree with counts."""

import pytest

from agent.domain.desired import RungKind, RungSpec
from agent.domain.ladder import LadderState, Pressure, choose_rung
from agent.domain.manifest import parse_policy
from agent.domain.probation import (
    Cause,
    LadderPosition,
    RollBack,
    ServiceSample,
    Trial,
    begin,
    judge,
    observe,
)
from agent.domain.words import count_of, ms, span, times_ms
from tests.support.releases import POLICY


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0.0, "0 ms"), (0.131, "131 ms"), (1.5, "1500 ms"), (0.0999, "99.9 ms"),
        (0.09997, "100 ms"), (0.0042, "4.2 ms"), (0.000041, "0.041 ms"), (0.0005, "0.5 ms"),
    ],
)  # fmt: skip
def test_milliseconds_keep_three_digits(seconds: float | None, text: str) -> None:
    assert ms(seconds) == text


def test_counts_and_spans() -> None:
    assert [count_of(n, "inference") for n in (0, 1, 2, 1200)] == [
        "0 inferences", "1 inference", "2 inferences", "1,200 inferences",
    ]  # fmt: skip
    assert times_ms([0.131, 0.118, 0.000041]) == "131 118 0.041"
    assert [span(s) for s in (0.0, 0.25, 1.0, 61.4)] == ["0 s", "0.25 s", "1 s", "61 s"]


def test_a_rollback_below_a_millisecond_tells_figures() -> None:
    policy = parse_policy({**POLICY, "slow_threshold_ms": 0.02, "slow_count": 3})
    state = begin(0.0)
    for i in range(3):
        state = observe(state, ServiceSample(at_s=i * 0.1, service_s=0.000041), policy)
        state = observe(state, ServiceSample(at_s=i * 0.1, service_s=0.000041), policy)
    verdict = judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, policy, 1.0)
    assert isinstance(verdict, RollBack)
    assert verdict.cause is Cause.SLOW
    assert verdict.reason == "3 inferences in a row over 0.02 ms (0.041 0.041 0.041)"


def test_a_row_of_one_is_one_inference() -> None:
    policy = parse_policy({**POLICY, "slow_count": 1})
    state = observe(begin(0.0), ServiceSample(at_s=0.0, service_s=0.01), policy)
    state = observe(state, ServiceSample(at_s=0.1, service_s=0.2), policy)
    verdict = judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, policy, 1.0)
    assert isinstance(verdict, RollBack)
    assert verdict.reason == "1 inference in a row over 100 ms (200)"


def test_a_step_below_a_millisecond_tells_figures() -> None:
    ladder = {**POLICY["ladder"], "p95_budget_ms": 0.05, "dwell_down_s": 0.25}
    policy = parse_policy({**POLICY, "ladder": ladder}).ladder
    rungs = [RungSpec(n, RungKind.LOCAL) for n in ("heavy", "light")]
    state = LadderState("heavy", 0.0)
    slow = Pressure(p95_s=0.00007)
    state = choose_rung(state, slow, policy, rungs, 1.0).state
    choice = choose_rung(state, slow, policy, rungs, 1.25)
    assert choice.reason == "p95 0.07 ms > 0.05 ms for 0.25 s"


def test_times_are_not_told_where_they_are_not_the_cause() -> None:
    policy = parse_policy({**POLICY, "slow_count": 2})
    state = begin(0.0)
    for i in range(3):  # the first one comes after an idle gap
        sample = ServiceSample(at_s=i * 0.1, service_s=0.01, non_finite=True)
        state = observe(state, sample, policy)
    verdict = judge(state, Trial.PROBATION, LadderPosition.LOCAL, True, policy, 1.0)
    assert isinstance(verdict, RollBack)
    assert verdict.reason == "2 bad inferences in a row (0 failed, 2 not finite)"
