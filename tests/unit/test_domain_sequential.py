"""Bounds that hold at every look: against reference values, and by looking all the time."""

import math

import numpy as np
import pytest

from controller.domain.sequential import (
    log_evidence,
    mean_bound,
    mean_half_width,
    share_bounds,
)

RUNS = 2000

# alpha, information, one-sided bound of the score, two-sided bound: `OneSidedNormalMixture` and
# `TwoSidedNormalMixture` of the library confseq 0.0.11 with v_opt=2000, alpha_opt=alpha.
REFERENCE = [
    (0.005, 25, 43.064318, 43.774275),
    (0.005, 400, 77.251149, 81.075075),
    (0.005, 4000, 227.409972, 240.237331),
    (0.005, 40000, 767.315806, 805.648149),
    (0.01, 25, 42.281888, 43.059170),
    (0.01, 400, 73.178357, 77.246489),
    (0.01, 4000, 213.664159, 227.406015),
    (0.01, 40000, 726.455029, 767.312428),
    (0.05, 25, 40.083412, 41.059759),
    (0.05, 4000, 176.608049, 193.624820),
]


@pytest.mark.parametrize(("alpha", "information", "one", "two"), REFERENCE)
def test_bounds_are_those_of_the_reference(
    alpha: float, information: float, one: float, two: float
) -> None:
    assert mean_bound(information, alpha) == pytest.approx(one, rel=1e-6)
    assert mean_half_width(information, alpha) * information == pytest.approx(two, rel=1e-6)
    assert log_evidence(one, information, alpha) == pytest.approx(math.log(1 / alpha), abs=1e-5)


def test_far_on_the_good_side_there_is_no_evidence() -> None:
    assert log_evidence(-1e6, 100.0, 0.01) == -math.inf


def scores(drift: float, looks: int = 400) -> np.ndarray:
    """Score processes of `RUNS` estimates whose true mean is `drift`, by information 10, 20 ..."""
    random = np.random.default_rng(7)
    steps = random.normal(drift * 10, math.sqrt(10), (RUNS, looks))
    return np.cumsum(steps, axis=1)


def test_who_always_looks_is_rarely_wrong() -> None:
    alpha = 0.02
    bounds = np.array([mean_bound(10.0 * n, alpha) for n in range(1, 401)])
    false = (scores(0.0) >= bounds).any(axis=1).mean()
    assert false <= alpha
    assert (scores(0.15) >= bounds).any(axis=1).mean() > 0.99, "and what is there is found"
    # The negative control: a test made for one look, looked at all the time.
    naive = 2.054 * np.sqrt(10.0 * np.arange(1, 401))  # one-sided 2 %
    assert (scores(0.0) >= naive).any(axis=1).mean() > 0.1


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_a_share_stays_inside_its_bounds_however_often_one_looks(share: float) -> None:
    alpha, looks = 0.05, 1000
    random = np.random.default_rng(11)
    hits = np.cumsum(random.random((RUNS, looks)) < share, axis=1)
    half = np.array([math.lgamma(k + 0.5) for k in range(looks + 1)])
    n = np.arange(1, looks + 1)
    whole = np.array([math.lgamma(k + 1.0) for k in n])
    evidence = half[hits] + half[n - hits] - whole - math.log(math.pi)
    evidence -= hits * math.log(share) + (n - hits) * math.log1p(-share)
    outside = evidence >= math.log(1 / alpha)
    assert outside.any(axis=1).mean() <= alpha
    for run in range(20):  # what the function says is where that evidence begins
        low, high = share_bounds(int(hits[run, -1]), looks, alpha)
        assert (low <= share <= high) == (not outside[run, -1])


@pytest.mark.parametrize("n", [1, 7, 1000, 10**7])
def test_bounds_of_a_share_hold_its_value(n: int) -> None:
    for successes in {0, 1, n // 2, n}:
        low, high = share_bounds(successes, n, 0.01)
        assert 0.0 <= low <= successes / n <= high <= 1.0
        assert (low == 0.0) == (successes == 0)
        assert (high == 1.0) == (successes == n)


def test_nothing_seen_says_nothing() -> None:
    assert share_bounds(0, 0, 0.01) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        share_bounds(3, 2, 0.01)
