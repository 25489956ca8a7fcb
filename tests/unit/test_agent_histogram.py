"""The latency histogram: exact buckets, lossless merges, quantiles within a bucket."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.domain.histogram import Histogram, bucket_index, bucket_upper_s
from controller.domain.histogram import index_of as controller_index

SECONDS = st.floats(1e-9, 1e5)


def filled(values: list[float]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@settings(max_examples=500, deadline=None)
@given(SECONDS)
def test_a_value_lies_in_its_bucket(value: float) -> None:
    index = bucket_index(value)
    assert bucket_upper_s(index - 1) < value * (1 + 1e-12)
    assert value <= bucket_upper_s(index) * (1 + 1e-12)


@pytest.mark.parametrize("power", range(-20, 12))
def test_bounds_are_upper_inclusive_at_powers_of_two(power: int) -> None:
    assert bucket_index(2.0**power) == power * 8 - 1
    assert bucket_index(math.nextafter(2.0**power, 1e9)) == power * 8


def test_known_values() -> None:
    # 100 ms at scale 3: log2(0.1) * 8 = -26.6.
    assert bucket_index(0.1) == -27
    assert bucket_index(0.0) == bucket_index(1e-9) == bucket_index(-1.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, max_size=50))
def test_merging_is_counting_together(left: list[float], right: list[float]) -> None:
    merged = filled(left)
    merged.merge(filled(right))
    both = filled(left + right)
    assert (merged.buckets, merged.count, merged.sum_ns) == (both.buckets, both.count, both.sum_ns)
    assert merged.count == len(left) + len(right)


@settings(max_examples=200, deadline=None)
@given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_within_a_bucket_of_the_true_one(values: list[float], q: float) -> None:
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    found = filled(values).quantile(q)
    assert found is not None
    assert 2 ** (-1 / 8) - 1e-9 <= found / true <= 2 ** (1 / 8) + 1e-9


def test_nothing_has_no_quantile_and_the_sparse_form_is_sorted() -> None:
    assert Histogram().quantile(0.95) is None
    made = filled([0.1, 0.001, 0.1])
    assert made.sparse() == ((-80, -27), (1, 2))
    assert made.sum_s == pytest.approx(0.201)
    assert Histogram(dict(zip(*made.sparse(), strict=True)), made.sum_ns).count == 3


@settings(max_examples=300, deadline=None)
@given(SECONDS)
def test_device_and_controller_count_alike(value: float) -> None:
    """Two texts of one layout, because neither side may import the other."""
    index = bucket_index(value)
    # Where a bound is no exact float, the last bit may fall on either side of it.
    assume(all(abs(value / bucket_upper_s(i) - 1) > 1e-12 for i in (index - 1, index)))
    assert index == controller_index(value)
