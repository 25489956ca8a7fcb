"""Latency histogram with base-2 exponential buckets, mergeable without error.

Layout of OpenTelemetry at scale 3: bucket i holds (base^i, base^(i+1)] seconds with
base = 2^(1/8), so a quantile is off by at most 4.4 %. Refuses other scales and floats in counts.
"""

from bisect import bisect_left
from collections.abc import Mapping
from math import frexp

SCALE = 3
_PER_OCTAVE = 1 << SCALE
# frexp gives a mantissa in [0.5, 1): upper bounds of the eight buckets of an octave.
_BOUNDS = tuple(2.0 ** (k / _PER_OCTAVE - 1) for k in range(_PER_OCTAVE + 1))
_SMALLEST_S = 1e-9


def bucket_index(seconds: float) -> int:
    """The bucket of a value; values below 1 ns (a clock's noise) count as 1 ns."""
    mantissa, exponent = frexp(max(seconds, _SMALLEST_S))
    return (exponent - 1) * _PER_OCTAVE + bisect_left(_BOUNDS, mantissa) - 1


def bucket_upper_s(index: int) -> float:
    """The inclusive upper bound of a bucket, in seconds."""
    return float(2.0 ** ((index + 1) / _PER_OCTAVE))


class Histogram:
    """Counts per bucket; grows with the spread of its values, not with their number."""

    __slots__ = ("buckets", "count", "sum_ns")

    def __init__(self, buckets: Mapping[int, int] | None = None, sum_ns: int = 0) -> None:
        self.buckets: dict[int, int] = dict(buckets or {})
        self.count = sum(self.buckets.values())
        self.sum_ns = sum_ns

    @property
    def sum_s(self) -> float:
        """Sum of all values, seconds."""
        return self.sum_ns / 1e9

    def add(self, seconds: float, times: int = 1) -> None:
        """Count one value (or the same value several times)."""
        index = bucket_index(seconds)
        self.buckets[index] = self.buckets.get(index, 0) + times
        self.count += times
        self.sum_ns += round(max(seconds, 0.0) * 1e9) * times

    def merge(self, other: "Histogram") -> None:
        """Add all counts of another histogram."""
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count
        self.count += other.count
        self.sum_ns += other.sum_ns

    def quantile(self, q: float) -> float | None:
        """The value below which a share `q` lies, seconds; None when nothing was counted.

        Interpolates geometrically inside the bucket, as Prometheus does.
        """
        if not self.count:
            return None
        rank = min(max(q, 0.0), 1.0) * self.count
        below = 0
        index = 0
        for index in sorted(self.buckets):
            here = self.buckets[index]
            if below + here >= rank and here:
                share = max(rank - below, 0.0) / here
                return float(2.0 ** ((index + share) / _PER_OCTAVE))
            below += here
        return bucket_upper_s(index)

    def sparse(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices ascending and their counts, as they travel."""
        indices = tuple(sorted(i for i, n in self.buckets.items() if n))
        return indices, tuple(self.buckets[i] for i in indices)
