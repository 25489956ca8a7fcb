"""How devices changed with a new version, against themselves before and those not yet updated.

The unit is the device, not the inference: a thousand answers of one warm device are one witness.
Each tells one difference (after less before, on itself); the mean difference of devices that got
the version, less that of untouched devices in the same minutes, is the estimate. What moves all of
them (hour of day, load, weather) falls out; how far devices differ by themselves is learned from
both. Refuses to compare medians of medians or devices without a past. Decides nothing.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from controller.domain.histogram import Histogram
from controller.domain.sequential import log_evidence, mean_half_width
from controller.domain.spec import Spec
from controller.errors import InvalidError

ALL_WAVES = -1
LEAST_COUNT = 20  # inferences of a device, before and after, or it is no witness
# In a window that moves on and never fills: the slow first answers after pauses weigh much in few.
LEAST_IN_WINDOW = 50
CONTROLS_LEAST = 3  # untouched devices of a profile, or those of all profiles stand for them
# A device differs from itself by so much without any cause: 5 % of latency, and 5 points of the
# answers of a lower rung. Weighs as much as so many devices against what is seen.
OWN_SPREAD = 0.05
PRIOR_DEVICES = 4
# And all of them together between two quarters of an hour, where no untouched one tells of it.
COMMON_SPREAD = 0.05


class Metric(StrEnum):
    """What is compared: ln of latency, or the share of answers below the heaviest rung."""

    LATENCY = "latency"
    STEPPED_DOWN = "stepped_down"


@dataclass(frozen=True, slots=True)
class Difference:
    """What one device shows; `noise` is the variance of `value` that its few samples explain."""

    device_id: str
    profile: str
    value: float
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one group of devices; `profile` is empty for all of them.

    `estimate` and its variance are in the metric's unit; `tests` comparisons share the chance of a
    false alarm.
    """

    metric: Metric
    profile: str
    estimate: float
    variance: float
    devices: int
    controls: int
    tests: int = 1
    # 0: devices of the open wave; 1: those of the first one as they are by now; ALL_WAVES: together
    wave: int = 0

    @property
    def information(self) -> float:
        """1 / variance."""
        return 1 / self.variance

    def log_evidence(self, limit: float, alpha: float) -> float:
        """ln of the evidence that the change is above `limit`; `alpha` is shared by all tests."""
        score = (self.estimate - limit) * self.information
        return log_evidence(score, self.information, alpha / self.tests)

    def is_above(self, limit: float, alpha: float) -> bool:
        """Whether a change above `limit` is proven, however often one looks."""
        return self.log_evidence(limit, alpha) >= math.log(self.tests / alpha)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Where the change lies, at every look at once."""
        half = mean_half_width(self.information, alpha / self.tests)
        return self.estimate - half, self.estimate + half

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {
            "metric": self.metric.value,
            "profile": self.profile,
            "estimate": self.estimate,
            "variance": self.variance,
            "devices": self.devices,
            "controls": self.controls,
            "tests": self.tests,
            "wave": self.wave,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Comparison":
        """Read :meth:`to_json`; InvalidError names what is wrong."""
        spec = Spec(value, "comparison")
        variance = spec.number("variance")
        if variance <= 0:
            raise InvalidError(f"comparison has the variance {variance:g}")
        return cls(
            Metric(spec.text("metric")),
            spec.text("profile", ""),
            spec.number("estimate", least=-1e6),
            variance,
            spec.whole("devices"),
            spec.whole("controls"),
            spec.whole("tests", least=1),
            int(spec.number("wave", 0, least=ALL_WAVES)),
        )


def latency_difference(
    device_id: str, profile: str, before: Histogram, after: Histogram, least: int = LEAST_COUNT
) -> Difference | None:
    """How much slower the device is, as ln of the ratio; None with fewer than `least` samples.

    By the mean of the logarithms: one answer of a second among thousands says nothing.
    """
    was, now = log_moments(before, least), log_moments(after, least)
    if was is None or now is None:
        return None
    noise = was[1] / before.count + now[1] / after.count
    return Difference(device_id, profile, now[0] - was[0], noise)


def log_moments(histogram: Histogram, least: int = LEAST_COUNT) -> tuple[float, float] | None:
    """Mean and variance of ln seconds; None with fewer than `least` positive values."""
    count = sum(histogram.buckets.values())
    if count < least:
        return None
    width = 2.0**-histogram.scale * math.log(2)
    total = square = 0.0
    for index, inside in histogram.buckets.items():
        middle = (index + 0.5) * width
        total += inside * middle
        square += inside * middle * middle
    mean = total / count
    return mean, max(square / count - mean * mean, 0.0) + width * width / 12


def share_difference(
    device_id: str, profile: str, before: tuple[int, int], after: tuple[int, int]
) -> Difference | None:
    """The change of a share, each side as (part, all); None where it has too few samples."""
    (part, whole), (now_part, now_whole) = before, after
    if min(whole, now_whole) < LEAST_COUNT:
        return None
    was, now = part / whole, now_part / now_whole
    noise = was * (1 - was) / whole + now * (1 - now) / now_whole
    return Difference(device_id, profile, now - was, noise)


def compare(
    metric: Metric, changed: Sequence[Difference], untouched: Sequence[Difference]
) -> tuple[Comparison, ...]:
    """All devices together, and each profile by itself where there are several."""
    if not changed:
        return ()
    profiles = sorted(Counter(one.profile for one in changed))
    groups = ["", *profiles] if len(profiles) > 1 else [""]
    found: list[Comparison] = []
    for profile in groups:
        mine = [one for one in changed if profile in ("", one.profile)]
        same = [one for one in untouched if profile in ("", one.profile)]
        found.append(
            _compare(
                metric,
                profile,
                mine,
                same if len(same) >= CONTROLS_LEAST else untouched,
                len(groups),
            )
        )
    return tuple(found)


def first_wave(
    changed: Sequence[Difference], untouched: Sequence[Difference], looks: int
) -> tuple[Comparison, ...]:
    """The first wave's devices as they are by now, where somebody tells what moved all of them.

    For one look before each of so many waves passes: a window that moves on with time is no growing
    sum, so its looks share the chance of a false alarm instead.
    """
    if not changed or len(untouched) < CONTROLS_LEAST:
        return ()
    return (replace(_compare(Metric.LATENCY, "", changed, untouched, max(1, looks)), wave=1),)


def together(now: Sequence[Comparison], earlier: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """All waves so far as one, by metric: what is a doubt in each of three is none in all.

    Waves are of other devices, so their informations add, and so do their scores.
    """
    found: list[Comparison] = []
    for one in now:
        same = [it for it in earlier if it.metric is one.metric and not (it.wave or it.profile)]
        if one.profile or one.wave or not same:
            continue
        every = [one, *same]
        information = math.fsum(it.information for it in every)
        score = math.fsum(it.estimate * it.information for it in every)
        found.append(
            Comparison(
                one.metric,
                "",
                score / information,
                1 / information,
                sum(it.devices for it in every),
                min(it.controls for it in every),
                wave=ALL_WAVES,
            )
        )
    return tuple(found)


def _compare(
    metric: Metric,
    profile: str,
    changed: Sequence[Difference],
    untouched: Sequence[Difference],
    tests: int,
) -> Comparison:
    estimate = _mean(changed)
    variance = _spread(changed, untouched) / len(changed)
    if untouched:
        estimate -= _mean(untouched)
        variance += _spread(untouched, changed) / len(untouched)
    else:
        variance += COMMON_SPREAD**2
    return Comparison(metric, profile, estimate, variance, len(changed), len(untouched), tests)


def _spread(mine: Sequence[Difference], others: Sequence[Difference]) -> float:
    """The variance between devices: of both sets pooled, and drawn towards what is expected.

    The mean of an inverse gamma posterior, hence the 2: a variance learned from few is uncertain,
    and that uncertainty is paid for here.
    """
    expected = OWN_SPREAD**2 + math.fsum(one.noise for one in mine) / len(mine)
    total, weight = PRIOR_DEVICES * expected, PRIOR_DEVICES
    for one_set in (mine, others):
        if len(one_set) > 1:
            mean = _mean(one_set)
            total += math.fsum((one.value - mean) ** 2 for one in one_set)
            weight += len(one_set) - 1
    return total / (weight - 2)


def _mean(differences: Sequence[Difference]) -> float:
    return math.fsum(one.value for one in differences) / len(differences)
