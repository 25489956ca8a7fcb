"""The gate: each refusal with its reason and figures; intervals against known values."""

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.build import Evidence, GateVerdict, Recipe, parse_recipe
from controller.domain.device import Profile, parse_profile
from controller.domain.finding import Finding
from controller.domain.gate import gate, refuse_early
from controller.domain.interval import Interval, paired_difference_pts, quantile_of, share_pct
from controller.errors import InvalidError

INT8 = parse_recipe(
    "onnxruntime-int8",
    {
        "runtime": "onnxruntime",
        "precision": "int8",
        "gate": {
            "max_accuracy_drop_pts": 3.0,
            "min_agreement_pct": 93.0,
            "not_slower_than_fp32": True,
        },
    },
)
FP32 = parse_recipe("onnxruntime-fp32", {"runtime": "onnxruntime", "precision": "fp32"})
PROFILE = parse_profile(
    "raspberry-pi-5",
    {
        "runtimes": ["onnxruntime"],
        "recipes": ["onnxruntime-int8", "onnxruntime-fp32"],
        "memory_budget_bytes": "512MiB",
        "latency_budget_ms": 100,
    },
)
GOOD = Evidence(
    size_bytes=25_900_000,
    p50_ms=21.4,
    p95_ms=38.0,
    latency_n=200,
    measured_on="x86_64 AMD EPYC",
    accuracy=share_pct(198, 225),
    accuracy_delta_pts=paired_difference_pts(1, 2, 225),
    agreement=share_pct(221, 225),
    fp32_p50_ms=74.1,
    peak_rss_bytes=117_000_000,
    rows_checked=225,
    rows_not_finite=0,
)


def test_a_good_build_passes_and_says_its_figures() -> None:
    found = gate(GOOD, PROFILE, INT8, host_matches=False)
    assert found.verdict is GateVerdict.PASSED
    assert found.reason == (
        "no NaN or infinity in the answers to 225 rows;"
        " accuracy −0.4 points (95 % interval −2.4 to +1.5) against the source's, n=225;"
        " agreement 98.2 % with the source (95 % interval 95.5–99.3, n=225);"
        " p50 21.4 ms, fp32 74.1 ms, n=200;"
        " needs 111.6 MiB of 512.0 MiB;"
        " latency not measured on this class (measured on x86_64 AMD EPYC)"
    )


@pytest.mark.parametrize(
    ("changes", "host_matches", "reason"),
    [
        # Two points lost where three are allowed: not proven, and said what would.
        (
            {"accuracy_delta_pts": paired_difference_pts(1, 5, 225)},
            False,
            "accuracy −1.8 points (95 % interval −4.2 to +0.7) against the source's, n=225,"
            " the lower end has to reach −3 points: that takes about 740 rows like these",
        ),
        (
            {"accuracy_delta_pts": paired_difference_pts(0, 9, 225)},
            False,
            "more rows would not help, the figure itself is beyond it",
        ),
        # Twenty photos prove nothing, also where every one of them is right.
        (
            {"accuracy_delta_pts": paired_difference_pts(0, 0, 20), "agreement": share_pct(20, 20)},
            False,
            "n=20, the lower end has to reach −3 points: that takes about 91 rows like these;"
            " agreement 100.0 % with the source (95 % interval 83.9–100.0, n=20), the lower end has"
            " to reach 93 %: that takes about 52 rows like these",
        ),
        ({"agreement": share_pct(214, 225)}, False, "the lower end has to reach 93 %: that"),
        ({"agreement": None, "accuracy_delta_pts": None}, False, "no dataset to measure agreement"),
        ({"fp32_p50_ms": 20.0}, False, "slower than fp32 of onnxruntime: p50 21.4 ms, fp32 20 ms"),
        ({"fp32_p50_ms": None}, False, "fp32 of onnxruntime was not measured beside it"),
        ({"size_bytes": 600 * 1024**2}, False, "needs 600.0 MiB, budget of raspberry-pi-5 512.0"),
        ({"peak_rss_bytes": 600 * 1024**2}, False, "needs 600.0 MiB"),
        ({"p95_ms": 140.0}, True, "p95 140 ms, budget 100 ms"),
        ({"rows_not_finite": 3}, False, "3 of 225 rows gave NaN or infinity"),
        ({"rows_checked": 0}, False, "no row's outputs were looked at"),
        ({"rows_compared": 32, "rows_differing": 2}, False, "the export is wrong: 2 of 32 rows"),
    ],
)
def test_each_refusal_has_its_reason(
    changes: dict[str, object], host_matches: bool, reason: str
) -> None:
    found = gate(replace(GOOD, **changes), PROFILE, INT8, host_matches)  # type: ignore[arg-type]
    assert found.verdict is GateVerdict.REFUSED
    assert reason in found.reason
    # The reason says what refused it, the findings all that was looked at.
    assert "; ".join(one.text for one in found.findings if not one.ok) == found.reason
    assert len(found.findings) >= 4
    assert [Finding.from_json(one.to_json()) for one in found.findings] == list(found.findings)


def test_a_latency_measured_elsewhere_does_not_bind() -> None:
    slow = replace(GOOD, p95_ms=500.0)
    assert gate(slow, PROFILE, INT8, host_matches=False).verdict is GateVerdict.PASSED
    assert gate(slow, PROFILE, INT8, host_matches=True).verdict is GateVerdict.REFUSED


def test_unlabelled_rows_leave_accuracy_to_the_agreement() -> None:
    found = gate(replace(GOOD, accuracy_delta_pts=None), PROFILE, INT8, host_matches=False)
    assert found.verdict is GateVerdict.PASSED
    assert "the dataset has no labels" in found.reason


def test_fp32_needs_no_dataset() -> None:
    bare = replace(GOOD, accuracy=None, accuracy_delta_pts=None, agreement=None, fp32_p50_ms=None)
    assert gate(bare, PROFILE, FP32, host_matches=False).verdict is GateVerdict.PASSED
    assert refuse_early(FP32, PROFILE, None, "photo") is None


@pytest.mark.parametrize("recipe", [INT8, FP32])
def test_no_recipe_lets_answers_pass_that_are_no_numbers(recipe: Recipe) -> None:
    """Also where a recipe demands nothing at all; and nobody having looked is no proof."""
    one = gate(replace(GOOD, rows_checked=128, rows_not_finite=1), PROFILE, recipe, False)
    assert (one.verdict, one.reason) == (
        GateVerdict.REFUSED, "1 of 128 rows gave NaN or infinity",
    )  # fmt: skip
    generated = replace(GOOD, rows_checked=64, rows_not_finite=64, rows_generated=True)
    assert gate(generated, PROFILE, recipe, False).reason == (
        "64 of 64 generated rows gave NaN or infinity"
    )
    for unseen in ({"rows_checked": None}, {"rows_not_finite": None}):
        blind = replace(GOOD, **unseen)  # type: ignore[arg-type]
        assert gate(blind, PROFILE, recipe, False).verdict is GateVerdict.REFUSED
    assert gate(GOOD, PROFILE, recipe, False).verdict is GateVerdict.PASSED


def test_a_tie_is_no_wrong_export() -> None:
    tie = replace(GOOD, rows_compared=32, rows_differing=1)
    assert gate(tie, PROFILE, FP32, False).verdict is GateVerdict.PASSED


def test_evidence_comes_back_as_it_was_stored() -> None:
    full = replace(
        GOOD,
        p50_interval_ms=Interval(21.4, 21.0, 21.9, 200),
        eager_p50_interval_ms=Interval(118.0, 110.0, 125.0, 13),
        rows_compared=32,
        rows_differing=1,
        rows_generated=True,
        dataset_digest="sha256:1",
    )
    assert Evidence.from_json(full.to_json()) == full


@pytest.mark.parametrize(
    ("recipe", "profile", "dataset", "reason"),
    [
        (INT8, PROFILE, None, "no dataset photo: int8 needs"),
        (INT8, replace(PROFILE, recipes=("onnxruntime-fp32",)), "photo", "is not one of profile"),
        (INT8, replace(PROFILE, runtimes=("tensorrt",)), "photo", "has no runtime onnxruntime"),
        (INT8, PROFILE, "photo", None),
    ],
)
def test_refusals_before_any_compile(
    recipe: Recipe, profile: Profile, dataset: str | None, reason: str | None
) -> None:
    found = refuse_early(recipe, profile, dataset, "photo")
    assert (found is None) == (reason is None)
    if found is not None and reason is not None:
        assert reason in found.reason


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), method 3: 81 of 263 and 0 of 20.
    assert share_pct(81, 263).low == pytest.approx(25.53, abs=0.02)
    assert share_pct(81, 263).high == pytest.approx(36.62, abs=0.02)
    assert share_pct(0, 20).low == 0.0
    assert share_pct(0, 20).high == pytest.approx(16.11, abs=0.02)


def test_median_intervals_against_published_ranks() -> None:
    """Conover, Practical Nonparametric Statistics: ranks 2 and 9 of 10, 6 and 15 of 20."""
    for n, low, high in ((6, 1, 6), (8, 1, 8), (10, 2, 9), (20, 6, 15), (50, 18, 33)):
        value, interval = quantile_of([float(one) for one in range(1, n + 1)], 0.5)
        assert interval == Interval((n + 1) / 2, float(low), float(high), n)
        assert value == (n + 1) / 2


def test_too_few_calls_have_no_interval() -> None:
    assert quantile_of([3.0, 1.0, 2.0, 5.0, 4.0], 0.5) == (3.0, None)
    assert quantile_of([7.0], 0.95) == (7.0, None)
    assert quantile_of([float(one) for one in range(71)], 0.95)[1] is None
    assert quantile_of([float(one) for one in range(72)], 0.95)[1] is not None
    for values, share in (([], 0.5), ([1.0], 0.0), ([1.0], 1.0)):
        with pytest.raises(ValueError, match="no quantile"):
            quantile_of(values, share)


def test_a_median_interval_covers_as_often_as_it_says() -> None:
    """Of 2,000 skewed samples of 25; the true median of this distribution is known."""
    chance = Random(1)
    hits = 0
    for _ in range(2000):
        _, found = quantile_of([chance.expovariate(1.0) for _ in range(25)], 0.5)
        assert found is not None
        hits += found.low <= math.log(2) <= found.high
    assert 0.945 <= hits / 2000 <= 0.975  # 95.7 % by the ranks 8 and 18


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([0.5, 0.95]))
def test_quantiles_are_those_of_numpy(values: list[float], share: float) -> None:
    value, interval = quantile_of(values, share)
    assert value == pytest.approx(float(np.percentile(values, 100 * share)), rel=1e-9)
    if interval is not None:
        assert min(values) <= interval.low <= value <= interval.high <= max(values)


def test_many_calls_are_counted_in_little_time() -> None:
    _, interval = quantile_of([float(one) for one in range(50_000)], 0.5)
    assert interval == Interval(24999.5, 24780.0, 25219.0, 50_000)


@given(st.integers(1, 3000), st.data())
def test_intervals_hold_their_value(n: int, data: st.DataObject) -> None:
    share = share_pct(data.draw(st.integers(0, n)), n)
    assert 0 <= share.low <= share.value <= share.high <= 100
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    pair = paired_difference_pts(gained, lost, n)
    assert -100 <= pair.low <= pair.value <= pair.high <= 100
    mirrored = paired_difference_pts(lost, gained, n)
    assert (mirrored.low, mirrored.high) == pytest.approx((-pair.high, -pair.low))


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 0), (3, 3, 5), (-1, 0, 5)])
def test_impossible_counts_are_refused(gained: int, lost: int, n: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        paired_difference_pts(gained, lost, n)


def test_evidence_comes_back_from_json() -> None:
    assert Evidence.from_json(GOOD.to_json()) == GOOD
    assert Interval.from_json(share_pct(1, 3).to_json()) == share_pct(1, 3)
    with pytest.raises(InvalidError):
        Evidence.from_json({**GOOD.to_json(), "p50_ms": None})


@pytest.mark.parametrize(
    "spec",
    [
        {"precision": "int8"},
        {"runtime": "onnxruntime", "precision": "int7"},
        {"runtime": "onnxruntime", "precision": "int8", "gate": {"max_accuracy": 1}},
        {"runtime": "onnxruntime", "precision": "int8", "gates": {}},
    ],
)
def test_a_wrong_recipe_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        parse_recipe("x", spec)
