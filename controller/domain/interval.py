"""Figures that carry how sure they are: value, 95 % interval, n. Refuses a figure without n."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from controller.domain.spec import Spec

_Z = 1.959963984540054  # 95 %, two-sided


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


def paired_difference_pts(gained: int, lost: int, n: int) -> Interval:
    """Points of accuracy won by the second of two classifiers on the same ``n`` rows.

    ``gained`` rows only the second got right, ``lost`` rows only the first did. Interval after
    Bonett and Price (2012): Wald with one added to both discordant counts, sound on small n.
    ValueError on impossible counts.
    """
    if min(gained, lost) < 0 or gained + lost > n or n == 0:
        raise ValueError(f"{gained} gained and {lost} lost of {n} rows is impossible")
    p_gain, p_loss = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_gain - p_loss
    half = _Z * math.sqrt((p_gain + p_loss - centre * centre) / (n + 2))
    value = (gained - lost) / n
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Interval(100 * value, 100 * min(low, value), 100 * max(high, value), n)
