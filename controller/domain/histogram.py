"""Latency histograms with base-2 exponential buckets, sparse and mergeable.

The layout is that of OpenTelemetry and of Prometheus native histograms: bucket ``i`` holds values
in ``(base^i, base^(i+1)]`` seconds with ``base = 2^(2^-scale)``. Refuses to average: quantiles come
from merged data.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controller.errors import InvalidError

SCALE = 3
# 2^-64 to 2^64 s: what lies outside was measured by no clock, and its power would not fit a float.
POWER_MOST = 64
COUNT_MOST = 10**12
SUM_MOST_S = 1e12


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts per bucket. Values in seconds."""

    scale: int = SCALE
    count: int = 0
    sum_s: float = 0.0
    zero_count: int = 0
    buckets: Mapping[int, int] = field(default_factory=dict)

    def merge(self, other: "Histogram") -> "Histogram":
        """Both together; the finer one is coarsened where scales differ."""
        if self.count == 0:
            return other
        if other.count == 0:
            return self
        scale = min(self.scale, other.scale)
        buckets: dict[int, int] = {}
        for part in (self, other):
            for index, count in part.buckets.items():
                at = index >> (part.scale - scale)
                buckets[at] = buckets.get(at, 0) + count
        return Histogram(
            scale=scale,
            count=self.count + other.count,
            sum_s=self.sum_s + other.sum_s,
            zero_count=self.zero_count + other.zero_count,
            buckets=buckets,
        )

    def quantile(self, q: float) -> float | None:
        """The value below which the share ``q`` (0–1) lies, in seconds; None without data.

        Interpolated geometrically within its bucket: at most one bucket width off, 9 % at scale 3.
        """
        if self.count == 0:
            return None
        rank = q * self.count
        seen = float(self.zero_count)
        if rank <= seen:
            return 0.0
        last = 0.0
        for index in sorted(self.buckets):
            inside = self.buckets[index]
            if inside <= 0:
                continue
            share = (rank - seen) / inside
            width = 2.0 ** (-self.scale)
            if share <= 1.0:
                return float(2.0 ** ((index + share) * width))
            last = float(2.0 ** ((index + 1) * width))
            seen += inside
        return last

    def to_json(self) -> dict[str, object]:
        """The form stored in a sample row."""
        return {
            "scale": self.scale,
            "count": self.count,
            "sum_s": self.sum_s,
            "zero_count": self.zero_count,
            "buckets": {str(index): self.buckets[index] for index in sorted(self.buckets)},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Histogram":
        """Read :meth:`to_json`; InvalidError where it does not add up."""
        try:
            raw = value.get("buckets") or {}
            if not isinstance(raw, Mapping):
                raise TypeError("buckets is no mapping")
            histogram = cls(
                scale=int(value["scale"]),  # type: ignore[call-overload]
                count=int(value["count"]),  # type: ignore[call-overload]
                sum_s=float(value["sum_s"]),  # type: ignore[arg-type]
                zero_count=int(value.get("zero_count") or 0),  # type: ignore[call-overload]
                buckets={int(index): int(count) for index, count in raw.items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidError(f"not a histogram: {error!r}") from None
        histogram.check()
        return histogram

    def check(self) -> None:
        """InvalidError where counts are negative, do not add up or the sum is no finite time."""
        total = self.zero_count + sum(self.buckets.values())
        if total != self.count or self.zero_count < 0 or min(self.buckets.values(), default=0) < 0:
            raise InvalidError(f"histogram says {self.count} values, its buckets hold {total}")
        if not -4 <= self.scale <= 20 or not math.isfinite(self.sum_s) or self.sum_s < 0:
            raise InvalidError(f"histogram has scale {self.scale} and sum {self.sum_s}")
        farthest = max(map(abs, self.buckets), default=0)
        if farthest > POWER_MOST * 2.0**self.scale or self.count > COUNT_MOST:
            raise InvalidError(f"histogram has {self.count} values, bucket {farthest} among them")
        if self.sum_s > SUM_MOST_S:
            raise InvalidError(f"histogram has the sum {self.sum_s:g} s, {SUM_MOST_S:g} at most")


def index_of(value_s: float, scale: int = SCALE) -> int:
    """The bucket of a positive value in seconds."""
    return math.ceil(math.log2(value_s) * float(2**scale)) - 1


def histogram_of(values_s: Iterable[float], scale: int = SCALE) -> Histogram:
    """The histogram of these values in seconds; what is not positive counts as zero."""
    buckets: dict[int, int] = {}
    count = zero = 0
    total = 0.0
    for value in values_s:
        count += 1
        if value <= 0:
            zero += 1
            continue
        total += value
        index = index_of(value, scale)
        buckets[index] = buckets.get(index, 0) + 1
    return Histogram(scale, count, total, zero, buckets)


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All of them together."""
    result = Histogram()
    for histogram in histograms:
        result = result.merge(histogram)
    return result
