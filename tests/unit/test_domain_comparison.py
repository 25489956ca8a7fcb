"""Devices against themselves and untouched ones: what is found, and how rarely by chance."""

import math
from dataclasses import replace
from random import Random

import pytest

from controller.domain.comparison import (
    ALL_WAVES,
    Comparison,
    Difference,
    Metric,
    compare,
    latency_difference,
    log_moments,
    share_difference,
    together,
)
from controller.domain.histogram import Histogram, histogram_of
from controller.errors import InvalidError

RUNS = 2000


def lognormal(random: Random, mean_s: float, count: int, sigma: float = 0.25) -> Histogram:
    return histogram_of(mean_s * math.exp(random.gauss(0, sigma)) for _ in range(count))


def ratio(before: Histogram, after: Histogram) -> float:
    found = latency_difference("pi-1", "pi", before, after)
    assert found is not None
    return math.exp(found.value)


def test_a_device_is_compared_with_itself() -> None:
    random = Random(1)
    before, after = lognormal(random, 0.020, 2000), lognormal(random, 0.023, 2000)
    assert ratio(before, after) == pytest.approx(1.15, abs=0.03)
    assert latency_difference("pi-1", "pi", before, histogram_of([0.02] * 19)) is None
    # One answer of ten seconds is no slow version.
    odd = after.merge(histogram_of([10.0]))
    assert ratio(after, odd) == pytest.approx(1.0, abs=0.01)


def test_mean_and_spread_of_a_histogram_are_those_of_what_is_in_it() -> None:
    random = Random(2)
    found = log_moments(lognormal(random, 0.050, 4000))
    assert found is not None
    assert math.exp(found[0]) == pytest.approx(0.050, rel=0.02)
    assert math.sqrt(found[1]) == pytest.approx(0.25, rel=0.1)


def test_a_share_is_compared_with_itself() -> None:
    found = share_difference("pi-1", "pi", (10, 100), (60, 120))
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert share_difference("pi-1", "pi", (0, 19), (60, 120)) is None


def some(count: int, value: float, profile: str = "pi") -> list[Difference]:
    return [Difference(f"{profile}-{n}", profile, value + 0.01 * (n % 3 - 1)) for n in range(count)]


def test_what_moves_all_devices_is_not_the_version() -> None:
    (slower,) = compare(Metric.LATENCY, some(6, 0.30), some(30, 0.0))
    assert slower.is_above(math.log(1.1), 0.002)
    (warm,) = compare(Metric.LATENCY, some(6, 0.30), some(30, 0.30))
    assert not warm.is_above(0.0, 0.002)
    (alone,) = compare(Metric.LATENCY, some(6, 0.30), [])
    assert (alone.controls, alone.devices) == (0, 6)
    assert alone.variance > slower.variance, "nobody tells what moved all of them"


def test_one_canary_proves_only_what_is_large() -> None:
    (found,) = compare(Metric.LATENCY, some(1, math.log(1.15)), some(30, 0.0))
    assert not found.is_above(math.log(1.1), 0.002)
    (found,) = compare(Metric.LATENCY, some(1, math.log(2.0)), some(30, 0.0))
    assert found.is_above(math.log(1.1), 0.002)


def test_a_profile_that_alone_is_slower_is_seen_among_many() -> None:
    changed = [*some(30, 0.0), *some(4, 0.5, "n100")]
    found = {
        one.profile: one
        for one in compare(Metric.LATENCY, changed, [*some(20, 0.0), *some(5, 0.0, "n100")])
    }
    assert set(found) == {"", "pi", "n100"}
    assert found["n100"].is_above(math.log(1.1), 0.002)
    assert not found["pi"].is_above(math.log(1.1), 0.002)
    assert not found[""].is_above(math.log(1.1), 0.002), "lost in the mean of all"
    assert (found["n100"].controls, found["n100"].tests) == (5, 3)


@pytest.mark.parametrize(("devices", "controls"), [(1, 10), (3, 5)])
def test_equal_versions_are_rarely_stopped_however_often_one_looks(
    devices: int, controls: int
) -> None:
    """Devices that drift for good, samples that come in, thirty looks; at the edge of the null."""
    alpha, sigma, looks = 0.01, 0.25, 30
    stopped = naive = 0
    for seed in range(RUNS):
        random = Random(seed)
        drifts = [random.gauss(0, 0.05) for _ in range(devices + controls)]
        seen = [0.0] * len(drifts)
        proven = crossed = False
        for look in range(1, looks + 1):
            noise = sigma**2 / (20 * look)
            seen = [one + random.gauss(0, sigma / math.sqrt(20)) for one in seen]
            told = [
                Difference("", "", drift + one / look, noise)
                for drift, one in zip(drifts, seen, strict=True)
            ]
            (found,) = compare(Metric.LATENCY, told[:devices], told[devices:])
            proven = proven or found.is_above(0.0, alpha)
            # The negative control: each answer a witness of its own, tested as if for one look.
            crossed = crossed or found.estimate > 2.33 * math.sqrt(
                noise * (1 / devices + 1 / controls)
            )
        stopped += proven
        naive += crossed
    assert stopped <= alpha * RUNS
    assert naive > 10 * alpha * RUNS


def test_a_comparison_is_stored_and_read_again() -> None:
    (found,) = compare(Metric.STEPPED_DOWN, some(3, -0.2), some(5, 0.1))
    assert Comparison.from_json(found.to_json()) == found
    with pytest.raises(InvalidError, match="variance"):
        Comparison.from_json({**found.to_json(), "variance": 0})


def test_doubts_of_several_waves_add_up() -> None:
    one = Comparison(Metric.LATENCY, "", 0.2, 0.05**2, 3, 10)
    (both,) = together([one], [one, replace(one, profile="pi"), replace(one, wave=1)])
    assert both.estimate == pytest.approx(0.2)
    assert both.variance == pytest.approx(0.05**2 / 2)
    assert (both.devices, both.controls, both.wave) == (6, 10, ALL_WAVES)
    assert Comparison.from_json(both.to_json()) == both
    limit = math.log(1.05)
    assert not one.is_above(limit, 0.002)
    (many,) = together([one], [one] * 3)
    assert many.is_above(limit, 0.002)
    assert together([one], []) == ()


def test_without_a_device_there_is_nothing_to_compare() -> None:
    assert compare(Metric.LATENCY, [], some(3, 0.0)) == ()
