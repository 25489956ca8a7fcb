"""What the gate asks to be proven: intervals beside SciPy's, rows that would do, drift."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from controller.domain.build import Evidence, GateVerdict, Precision, Recipe, parse_recipe
from controller.domain.device import parse_profile
from controller.domain.gate import Previous, gate
from controller.domain.interval import (
    Interval,
    paired_difference_pts,
    rows_to_prove,
    rows_to_reach,
    share_pct,
)

PROFILE = parse_profile("pi", {"runtimes": ["onnxruntime"], "recipes": ["onnxruntime-fp32"]})
FP32 = Recipe("onnxruntime-fp32", "onnxruntime", Precision.FP32)
GOOD = Evidence(
    size_bytes=10_000_000,
    p50_ms=20.0,
    p95_ms=25.0,
    latency_n=200,
    measured_on="x86_64 here",
    rows_checked=64,
    rows_not_finite=0,
    p50_interval_ms=Interval(20.0, 19.0, 21.0, 200),
)
BEFORE = Previous("1.0.0", 10_000_000, 20.0, Interval(20.0, 19.0, 21.0, 200), "x86_64 here")


@given(st.integers(1, 5000), st.data())
def test_the_paired_interval_is_the_published_one(n: int, data: st.DataObject) -> None:
    """Bonett and Price (2012), equation 3, written down once more with SciPy's quantile."""
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    found = paired_difference_pts(gained, lost, n)
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    error = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    low, high = stats.norm.interval(0.95, loc=p12 - p21, scale=error)
    value = (gained - lost) / n
    assert found.value == pytest.approx(100 * value)
    assert found.low == pytest.approx(100 * max(-1, min(low, value)), abs=1e-9)
    assert found.high == pytest.approx(100 * min(1, max(high, value)), abs=1e-9)


@given(st.integers(200, 3000), st.integers(0, 12), st.integers(0, 12))
def test_it_lies_near_the_score_interval(n: int, gained: int, lost: int) -> None:
    """Tango (1998), solved by SciPy: another method that asks the same of the same counts."""
    found = paired_difference_pts(gained, lost, n)
    z = float(stats.norm.ppf(0.975))

    def statistic(delta: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * delta
        p21 = (math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta))) - b) / (4 * n)
        return (gained - lost - n * delta) / math.sqrt(n * (2 * p21 + delta * (1 - delta)) + 1e-15)

    low = optimize.brentq(lambda d: statistic(d) - z, -0.5, (gained - lost) / n - 1e-9)
    # Points; the score interval is the wider one on the side of the rarer change.
    assert found.low == pytest.approx(100 * low, abs=100 * 4.5 / n)


@pytest.mark.parametrize(
    ("n", "gain", "loss"), [(50, 0.01, 0.03), (200, 0.005, 0.03), (375, 0, 0.01)]
)
def test_a_bound_is_met_by_chance_as_seldom_as_it_says(n: int, gain: float, loss: float) -> None:
    """Over all counts with SciPy's probabilities: how often the lower end is above the truth."""
    wrong = 0.0
    for lost in range(n + 1):
        at = stats.binom.pmf(lost, n, loss)
        for gained in range(n + 1 - lost) if at > 1e-9 else ():
            found = paired_difference_pts(gained, lost, n)
            if found.low > 100 * (gain - loss):
                wrong += at * stats.binom.pmf(gained, n - lost, gain / (1 - loss))
    assert wrong <= 0.035


def test_the_point_alone_would_pass_what_is_not_proven() -> None:
    """The negative control: judged by the figure itself, 20 rows would prove anything."""
    rule = {"runtime": "onnxruntime", "precision": "int8", "gate": {"max_accuracy_drop_pts": 1.0}}
    recipe = parse_recipe("int8", rule)
    for n, verdict in ((20, GateVerdict.REFUSED), (2000, GateVerdict.PASSED)):
        delta = paired_difference_pts(0, 0, n)
        assert delta.value >= -1.0
        found = gate(
            replace(GOOD, accuracy_delta_pts=delta, fp32_p50_ms=30.0), PROFILE, recipe, False
        )
        assert found.verdict is verdict


def test_top_five_has_a_bound_of_its_own() -> None:
    rule = {"runtime": "onnxruntime", "precision": "int8", "gate": {"max_top5_drop_pts": 1.0}}
    recipe = parse_recipe("int8", rule)
    seen = replace(GOOD, fp32_p50_ms=30.0, agreement=share_pct(995, 1000))
    labelled = replace(seen, accuracy_delta_pts=paired_difference_pts(0, 50, 1000))
    lost = replace(labelled, top5_delta_pts=paired_difference_pts(0, 12, 1000))
    kept = replace(labelled, top5_delta_pts=paired_difference_pts(1, 1, 1000))
    assert "top-5 accuracy −1.2 points" in gate(lost, PROFILE, recipe, False).reason
    assert gate(kept, PROFILE, recipe, False).verdict is GateVerdict.PASSED
    for few, said in ((labelled, "five classes or fewer"), (seen, "the dataset has no labels")):
        found = gate(few, PROFILE, recipe, False)
        assert (found.verdict, said in found.reason) == (GateVerdict.PASSED, True)


@given(st.integers(5, 2000), st.integers(0, 40), st.integers(0, 40), st.floats(0.2, 10))
def test_so_many_rows_prove_it_and_fewer_do_not(
    n: int, gained: int, lost: int, bound: float
) -> None:
    if gained + lost > n:
        return
    delta = paired_difference_pts(gained, lost, n)
    rows = rows_to_prove(delta, bound)
    if rows is None:
        assert delta.value <= -bound
        return
    # Counts are whole and shares are not: a multiple of n has both, and lies within n of it.
    enough, few = -(-rows // n), rows // n - 1
    assert paired_difference_pts(enough * gained, enough * lost, enough * n).low >= -bound - 1e-6
    if few > 0:
        assert paired_difference_pts(few * gained, few * lost, few * n).low < -bound + 1e-6


def test_rows_that_prove_an_agreement() -> None:
    for right, n, bound in ((20, 20, 93.0), (98, 100, 95.0), (214, 225, 93.0)):
        rows = rows_to_reach(share_pct(right, n), bound)
        assert rows is not None
        low = stats.binomtest(round(right / n * rows), rows).proportion_ci(method="wilson").low
        assert 100 * low == pytest.approx(bound, abs=0.7)
    assert rows_to_reach(share_pct(93, 100), 93.0) is None


def test_what_grew_twofold_needs_a_person() -> None:
    passed = gate(GOOD, PROFILE, FP32, False, BEFORE)
    assert passed.verdict is GateVerdict.PASSED
    assert "size 9.5 MiB, of 1.0.0 9.5 MiB; p50 20 ms, of 1.0.0 20 ms" in passed.reason
    large = gate(replace(GOOD, size_bytes=20_000_001), PROFILE, FP32, False, BEFORE)
    assert large.verdict is GateVerdict.REFUSED
    assert large.reason == (
        "size 19.1 MiB is more than 2 times that of 1.0.0, 9.5 MiB:"
        " somebody has to override it by name and reason"
    )
    at = Interval(45.0, 43.0, 47.0, 200)
    slow = replace(GOOD, p50_ms=45.0, p50_interval_ms=at)
    assert "p50 45 ms is more than 2 times" in gate(slow, PROFILE, FP32, False, BEFORE).reason


@pytest.mark.parametrize(
    ("changes", "before"),
    [
        ({"size_bytes": 20_000_000}, {}),  # exactly twice
        ({"size_bytes": 900_000}, {"size_bytes": 100_000}),  # nobody notices a megabyte
        # One of 200 calls may say so; the interval does not.
        ({"p50_ms": 45.0, "p50_interval_ms": Interval(45.0, 41.0, 47.0, 200)}, {}),
        ({"p50_ms": 45.0, "p50_interval_ms": None}, {"measured_on": "aarch64 there"}),
        ({"p50_ms": 1.1, "p50_interval_ms": None}, {"p50_ms": 0.2, "p50_interval_ms": None}),
    ],
)
def test_what_is_no_drift(changes: dict[str, object], before: dict[str, object]) -> None:
    evidence = replace(GOOD, **changes)  # type: ignore[arg-type]
    previous = replace(BEFORE, **before)  # type: ignore[arg-type]
    assert gate(evidence, PROFILE, FP32, False, previous).verdict is GateVerdict.PASSED


def test_a_recipe_that_says_nothing_ships_nothing_slower_than_float() -> None:
    recipe = parse_recipe("int8", {"runtime": "onnxruntime", "precision": "int8"})
    slow = replace(GOOD, fp32_p50_ms=19.0)
    assert "slower than fp32" in gate(slow, PROFILE, recipe, False).reason
    off = {"runtime": "onnxruntime", "precision": "int8", "gate": {"not_slower_than_fp32": False}}
    assert gate(slow, PROFILE, parse_recipe("x", off), False).verdict is GateVerdict.PASSED
