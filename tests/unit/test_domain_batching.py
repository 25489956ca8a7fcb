"""Which requests go together: sizes that pay, in order, nobody past a deadline it would meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.batching import LEAST_GAIN_PCT, NO_BATCHES, Curve, Waiting, cut, first_of

CURVE = Curve(0.010, ((2, 0.014), (4, 0.020)))


def ones(count: int, left_s: float | None = None) -> list[Waiting]:
    return [Waiting(1, left_s)] * count


@pytest.mark.parametrize(
    ("queue", "count"),
    [
        (ones(1), 1),
        (ones(2), 2),
        (ones(3), 2),
        (ones(4), 4),
        (ones(9), 4),
        ([Waiting(2), Waiting(2)], 2),
        ([Waiting(3), Waiting(1), Waiting(1)], 2),
        ([Waiting(1), Waiting(2), Waiting(1)], 3),
        ([Waiting(7), Waiting(1)], 1),
        # Its time is over in a batch of four, and not in one of two.
        ([Waiting(1, 0.015), *ones(3)], 2),
        ([*ones(3), Waiting(1, 0.015)], 2),
        # Too late in any case: it holds nobody back.
        ([Waiting(1, 0.001), *ones(3)], 4),
    ],
)
def test_how_many_of_the_first_go_together(queue: list[Waiting], count: int) -> None:
    assert first_of(queue, CURVE) == count


def test_without_a_curve_each_goes_alone() -> None:
    assert first_of(ones(9), NO_BATCHES) == 1
    assert NO_BATCHES.most == 1


@pytest.mark.parametrize(
    ("measured", "kept"),
    [
        ([(2, 0.014), (4, 0.020), (8, 0.060)], (2, 4)),
        ([(2, 0.0199), (4, 0.030)], (4,)),
        ([(2, 0.021), (4, 0.041)], ()),
        ([(2, 0.012), (4, 0.030)], (2,)),
        ([(2, 0.012), (4, 0.020), (8, 0.0501)], (2, 4)),
    ],
)
def test_what_does_not_pay_or_takes_too_long_is_cut(
    measured: list[tuple[int, float]], kept: tuple[int, ...]
) -> None:
    assert tuple(rows for rows, _ in cut(0.010, measured, 0.050).batches) == kept


@given(
    st.floats(1e-5, 0.2),
    st.lists(st.floats(0.2, 1.5), min_size=5, max_size=5),
    st.floats(0.001, 0.2),
    st.lists(st.tuples(st.integers(1, 5), st.none() | st.floats(0.0, 0.3)), min_size=1),
)
def test_a_batch_is_one_that_was_measured_to_pay(
    single_s: float, shares: list[float], most_s: float, waits: list[tuple[int, float | None]]
) -> None:
    measured = [
        (size, share * size * single_s)
        for size, share in zip((2, 4, 8, 16, 32), shares, strict=True)
    ]
    curve = cut(single_s, measured, most_s)
    queue = [Waiting(*wait) for wait in waits]
    count = first_of(queue, curve)
    assert 1 <= count <= len(queue)
    if count == 1:
        return
    rows = sum(one.rows for one in queue[:count])
    took = dict(curve.batches)[rows]
    assert took <= most_s
    assert took <= (1 - LEAST_GAIN_PCT / 100) * rows * single_s * (1 + 1e-9)
    assert curve.alone(rows) == pytest.approx(single_s / took)
    for one in queue[:count]:
        assert one.left_s is None or one.left_s < single_s or took <= one.left_s
