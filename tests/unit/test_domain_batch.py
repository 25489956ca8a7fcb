"""Which batch a measured curve speaks for."""

import pytest

from controller.domain.batch import choose_batch, parse_curve, rows_per_s
from controller.errors import InvalidError


def test_a_batch_has_to_pay() -> None:
    assert rows_per_s(8, 4.0) == 2000
    small = [(1, 1.0), (2, 1.1), (4, 1.4), (8, 2.0), (16, 3.9), (32, 9.0)]
    assert choose_batch(small) == 8, "16 is quicker by a hair and waits twice as long"
    convolutions = [(1, 10.0), (2, 19.5), (4, 38.0), (8, 80.0)]
    assert choose_batch(convolutions) == 1, "five percent are a clock's noise"
    assert choose_batch([]) == choose_batch([(8, 1.0)]) == 1, "nothing to compare with"
    assert choose_batch([(1, 1.0), (2, 2.4), (4, 5.0)]) == 1, "never one that loses"


def test_a_curve_is_read_as_it_was_stored() -> None:
    assert parse_curve([[1, 0.5], [2, 0.75]]) == ((1, 0.5), (2, 0.75))
    assert parse_curve(None) == (), "older evidence has none"
    for wrong in (3, [[1]], [["a", 1]], [[0, 1.0]], [[1, float("nan")]], [[1, -1.0]]):
        with pytest.raises(InvalidError, match="batch_p50_ms"):
            parse_curve(wrong)
