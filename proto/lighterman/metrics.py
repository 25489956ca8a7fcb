"""The shape of a documented metric, for both sides, and classic buckets from base-2 histograms.

Counts nothing and formats nothing. Tables of `Metric` are what is exported, what the reference page
says and what rules and dashboard are checked against.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

# Upper bounds in seconds, four an octave from 1 ms to 16 s: each is also a bound of the base-2
# buckets at scale 3, so that nothing is guessed, and neighbours differ by 19 %.
BOUNDS_S = tuple(2.0 ** (quarter / 4) for quarter in range(-40, 17))


class MetricKind(StrEnum):
    """As Prometheus names them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of docs/reference/metrics.md.

    `series` says what bounds the number of its series. Counters say in `help` what a restart does
    to them.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    series: str = "1"

    def names(self) -> tuple[str, ...]:
        """The names of its series, as queries write them."""
        if self.kind is MetricKind.HISTOGRAM:
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


def cumulative(buckets: Mapping[int, int], scale: int, zero_count: int = 0) -> list[int]:
    """How many values are at most each of BOUNDS_S, of a histogram with base 2^(2^-scale).

    Bucket i holds (base^i, base^(i+1)]. Exact from scale 2 on; of a coarser one a bucket counts
    where all of it does.
    """
    tops = sorted((2.0 ** ((index + 1) / 2.0**scale), count) for index, count in buckets.items())
    found: list[int] = []
    total, at = zero_count, 0
    for bound in BOUNDS_S:
        # Both are powers of two with the same exponent where they meet; the slack is for rounding.
        while at < len(tops) and tops[at][0] <= bound * (1 + 1e-9):
            total += tops[at][1]
            at += 1
        found.append(total)
    return found


def names_of(metrics: Iterable[Metric]) -> frozenset[str]:
    """Every series name of these metrics."""
    return frozenset(name for metric in metrics for name in metric.names())
