"""Histograms: the layout of the wire, merging without loss, quantiles within a bucket."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.histogram import Histogram as AgentHistogram
from controller.domain.histogram import SCALE, Histogram, histogram_of, index_of, merged
from controller.errors import InvalidError

WIDTH = 2 ** (2**-SCALE)
TIMES = st.floats(1e-6, 100.0)


@given(st.lists(TIMES, min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_within_one_bucket(values: list[float], q: float) -> None:
    found = histogram_of(values).quantile(q)
    exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    assert found is not None
    assert exact / WIDTH * 0.999 <= found <= exact * WIDTH * 1.001


@given(st.lists(TIMES, max_size=50), st.lists(TIMES, max_size=50))
def test_merging_loses_nothing(left: list[float], right: list[float]) -> None:
    both = histogram_of(left).merge(histogram_of(right))
    whole = histogram_of([*left, *right])
    assert both.buckets == whole.buckets
    assert both.count == whole.count
    assert both.sum_s == pytest.approx(whole.sum_s)


@given(st.lists(TIMES, min_size=1, max_size=50))
def test_a_coarser_histogram_merges_too(values: list[float]) -> None:
    both = histogram_of(values, scale=3).merge(histogram_of(values, scale=1))
    assert both.scale == 1
    assert both.buckets == histogram_of(values * 2, scale=1).buckets


@given(st.lists(TIMES, min_size=1, max_size=50))
def test_agents_count_the_same_way(values: list[float]) -> None:
    theirs = AgentHistogram()
    for value in values:
        theirs.add(value)
    ours = histogram_of(values)
    assert dict(ours.buckets) == theirs.buckets
    assert ours.quantile(0.95) == pytest.approx(theirs.quantile(0.95))


def test_bounds_belong_to_the_bucket_below() -> None:
    assert index_of(1.0) == -1
    assert index_of(1.0001) == 0
    assert histogram_of([0.0, -1.0, 2.0]).zero_count == 2
    assert histogram_of([0.0, 0.0, 2.0]).quantile(0.5) == 0.0
    assert Histogram().quantile(0.95) is None
    assert merged([]) == Histogram()


def test_it_comes_back_from_json() -> None:
    histogram = histogram_of([0.01, 0.02, 0.0, 3.0])
    assert Histogram.from_json(histogram.to_json()) == histogram


@pytest.mark.parametrize(
    "change",
    [
        {"count": 9},
        {"buckets": {"1": -1}},
        {"buckets": [1]},
        {"sum_s": float("nan")},
        {"scale": "x"},
        {"scale": 99},
    ],
)
def test_what_does_not_add_up_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        Histogram.from_json({**histogram_of([0.01, 0.02]).to_json(), **change})
