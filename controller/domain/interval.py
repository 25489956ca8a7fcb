"""Figures that carry how sure they are: value, 95 % interval, n. Refuses a figure without n."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controller.domain.spec import Spec

_Z = 1.959963984540054  # 95 %, two-sided
_TAIL = 0.025  # what may lie outside on either side
_ROWS_MOST = 2**30


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, its 95 % interval, and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Interval":
        """Read :meth:`to_json`; InvalidError names what is wrong."""
        spec = Spec(value, "interval")
        low, mid, high = (spec.number(key, least=-1e12) for key in ("low", "value", "high"))
        return cls(mid, low, high, spec.whole("n"))


def share_pct(successes: int, n: int) -> Interval:
    """Percent of ``n`` with Wilson's interval. ValueError on impossible counts."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} of {n} is no share")
    p = successes / n
    z2 = _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(100 * p, 100 * min(low, p), 100 * max(high, p), n)


def paired_difference_pts(gained: int, lost: int, n: int, z: float = _Z) -> Interval:
    """Points of accuracy won by the second of two classifiers on the same ``n`` rows.

    ``gained`` rows only the second got right, ``lost`` rows only the first did: the discordant
    pairs of McNemar's test, which alone carry the difference. The interval is the one of Bonett and
    Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data" (Journal of Educational and Behavioral Statistics 37, 2012): Wald with one added to
    both discordant counts, sound on small n. The normal quantile is of 95 %, two-sided: whoever
    asks only whether the lower end holds errs in at most about 2.5 of 100 cases. ValueError on
    impossible counts.
    """
    if min(gained, lost) < 0 or gained + lost > n or n == 0:
        raise ValueError(f"{gained} gained and {lost} lost of {n} rows is impossible")
    p_gain, p_loss = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_gain - p_loss
    half = z * math.sqrt((p_gain + p_loss - centre * centre) / (n + 2))
    value = (gained - lost) / n
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Interval(100 * value, 100 * min(low, value), 100 * max(high, value), n)


def metric_pct(value: float, variance: float, n: int) -> Interval:
    """A metric of ``n`` rows as percent, with its interval; ``value`` is a share of 0 to 1.

    ``variance`` is the jackknife's of that value. The interval is Wald's with two rows added on
    which all is right and two on which all is wrong, which for a share of rows is the one of
    Agresti and Coull ("Approximate is better than exact", The American Statistician 52, 1998).
    ValueError on impossible input.
    """
    return _adjusted(value, variance, n, (1.0, 1.0, 0.0, 0.0), (0.0, 1.0), _Z)


def metric_change_pts(change: float, variance: float, n: int, z: float = _Z) -> Interval:
    """Points of a metric won by the second of two models on the same ``n`` rows.

    ``change`` is the difference of the two values, shares of 0 to 1; ``variance`` is the
    jackknife's of that difference, rows left out on both sides at once, so that what both find hard
    falls out (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11). It alone
    would claim certainty where a few rows are the same on both sides. So, as Bonett and Price do
    for shares, one row that the second wins whole and one that it loses whole are added: for a
    share of rows this is `paired_difference_pts` itself. ValueError on impossible input.
    """
    return _adjusted(change, variance, n, (1.0, -1.0), (-1.0, 1.0), z)


def _adjusted(
    value: float,
    variance: float,
    n: int,
    added: tuple[float, ...],
    ends: tuple[float, float],
    z: float,
) -> Interval:
    if n < 1 or not ends[0] <= value <= ends[1] or not 0 <= variance < math.inf:
        raise ValueError(f"{value} with variance {variance} of {n} rows is no metric")
    # The jackknife's variance of a mean is sum (d - mean)^2 / (n (n - 1)): the squares come back.
    squares = variance * n * (n - 1) + n * value * value + math.fsum(one * one for one in added)
    whole = n + len(added)
    centre = (n * value + math.fsum(added)) / whole
    half = z * math.sqrt(max(0.0, squares / whole - centre * centre) / whole)
    low, high = max(ends[0], centre - half), min(ends[1], centre + half)
    return Interval(100 * value, 100 * min(low, value), 100 * max(high, value), n)


def rows_to_prove(delta: Interval, drop_pts: float) -> int | None:
    """About how many rows prove a drop of at most ``drop_pts``, if rows go on as they did.

    ``delta`` is of `paired_difference_pts` or `metric_change_pts`. None: the difference itself is
    beyond the bound, or at it, and no number of rows would do.
    """
    won = delta.value / 100
    centre = won * delta.n / (delta.n + 2)
    half = centre - delta.low / 100
    added = ((half / _Z) ** 2 * (delta.n + 2) + centre * centre) * (delta.n + 2)
    apart = max(abs(won), (added - 2) / delta.n)  # share of rows that one alone got right

    def proven(n: int) -> bool:
        at = won * n / (n + 2)
        spread = max(0.0, (apart * n + 2) / (n + 2) - at * at)
        return at - _Z * math.sqrt(spread / (n + 2)) >= -drop_pts / 100

    return _least(proven) if won > -drop_pts / 100 else None


def rows_to_reach(share: Interval, least_pct: float) -> int | None:
    """About how many rows bring the lower end of a `share_pct` to ``least_pct``, at that share.

    None: the share itself is not above it.
    """
    p, z2 = share.value / 100, _Z * _Z

    def reached(n: int) -> bool:
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return centre - half >= least_pct / 100

    return _least(reached) if share.value > least_pct else None


def _least(holds: Callable[[int], bool]) -> int | None:
    """The smallest number that holds, where all larger ones do as well; None above a billion."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _ROWS_MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def quantile_of(values: Sequence[float], share: float) -> tuple[float, Interval | None]:
    """A quantile (``share`` 0.5: the median) of single observations, and its 95 % interval.

    The value interpolates between neighbours. The interval is of two order statistics and asks
    nothing of the distribution: with B binomial (n, share), the l-th smallest lies above the true
    quantile with probability P(B < l), the u-th below it with P(B >= u); l is the largest and u the
    smallest for which these are at most 2.5 % (Hahn and Meeker, Statistical Intervals, 1991,
    section 5.2). None where so few observations have no such pair: fewer than 6 for the median, 72
    for p95. ValueError without any, or for a share that is not between 0 and 1.
    """
    if not values or not 0.0 < share < 1.0:
        raise ValueError(f"no quantile {share} of {len(values)} values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    value = ordered[below] + (ordered[above] - ordered[below]) * (place - below)
    ranks = _quantile_ranks(len(ordered), share)
    if ranks is None:
        return value, None
    low, high = ordered[ranks[0] - 1], ordered[ranks[1] - 1]
    return value, Interval(value, min(low, value), max(high, value), len(ordered))


def _quantile_ranks(n: int, share: float) -> tuple[int, int] | None:
    """Ranks l and u, counted from 1, of the order statistics; None where there are none."""
    low, high, below = 0, 0, 0.0  # `below` is P(B < rank)
    for rank in range(n + 1):
        if rank and below <= _TAIL:
            low = rank
        below += _binomial(n, rank, share)
        if below >= 1 - _TAIL:
            high = rank + 1
            break
    return (low, high) if low and 0 < high <= n else None


def _binomial(n: int, k: int, share: float) -> float:
    """P(B = k); by logarithms, since n may be tens of thousands."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))
