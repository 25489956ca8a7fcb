"""Fleets and versions of the gate's bench: what devices answer, second by second, and how they err.

Everything is drawn from the seed. A fleet knows nothing of waves, a version nothing of the judge.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from controller.domain.histogram import SCALE, Histogram

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

STEP_S = 20.0
WINDOW = 45  # steps of a baseline: a quarter of an hour
BUCKETS, FIRST = 128, -88  # bucket indices that are kept: 0.5 ms to 30 s
DAY_S = 86400.0


class Kind(StrEnum):
    """How a version behaves."""

    EQUAL = "equal"
    FASTER = "faster"
    SLOWER = "slower"
    ERRORS = "errors"
    CRASHES = "crashes"  # on one profile only
    LEAK = "leak"
    HEAT = "heat"


GOOD = (Kind.EQUAL, Kind.FASTER)


@dataclass(frozen=True, slots=True)
class Version:
    """A version; `size` says how much, in the unit of its kind."""

    kind: Kind
    size: float = 0.0
    profile: int = 0

    @property
    def is_bad(self) -> bool:
        """Whether it has to be stopped."""
        return self.kind not in GOOD


def draw_version(random: np.random.Generator, profiles: Counts) -> Version:
    """Half of them good; of the bad ones each kind as often."""
    if random.random() < 0.5:
        return Version(Kind.FASTER if random.random() < 0.2 else Kind.EQUAL)
    kind = Kind(random.choice([kind.value for kind in Kind if kind not in GOOD]))
    match kind:
        case Kind.SLOWER:
            return Version(kind, float(np.exp(random.uniform(math.log(1.15), math.log(3.0)))))
        case Kind.ERRORS:
            return Version(kind, float(np.exp(random.uniform(math.log(0.01), math.log(0.2)))))
        case Kind.CRASHES:
            return Version(kind, float(random.uniform(0.3, 1.0)), int(random.choice(profiles)))
        case Kind.LEAK:
            return Version(kind, float(random.uniform(0.01, 0.05)))  # ln of latency a minute
        case _:
            return Version(kind, float(random.uniform(0.2, 0.7)))  # ln of latency when throttled


@dataclass(slots=True)
class Answers:
    """What devices did in one step, by device."""

    histograms: Counts  # devices x buckets
    below: Counts  # answers of the light rung
    errors: Counts
    slow_rows: Mask  # five in a row over the threshold

    def __add__(self, other: "Answers") -> "Answers":
        """Both together, of different devices."""
        return Answers(
            self.histograms + other.histograms,
            self.below + other.below,
            self.errors + other.errors,
            self.slow_rows | other.slow_rows,
        )


class Fleet:
    """Devices of some profiles, their traffic, their moods, and the weather over all of them."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.count = n = int(np.exp(random.uniform(math.log(10), math.log(1000))))
        profiles = int(random.integers(1, 5))
        self.profile = random.choice(profiles, n, p=random.dirichlet(np.full(profiles, 2.0)))
        self.base = random.uniform(math.log(0.008), math.log(0.060), profiles)[self.profile]
        self.base = self.base + random.normal(0, 0.1, n)
        self.sigma = float(random.uniform(0.08, 0.3))
        rate = float(np.exp(random.uniform(math.log(0.05), math.log(2.0))))  # answers a second
        self.rate = rate * np.exp(random.normal(0, 0.5, n))
        self.own_spread = float(random.uniform(0.005, 0.03))
        self.common_spread = float(random.uniform(0.0, 0.03))
        self.day = float(random.uniform(0.0, 0.15))
        self.hour_s = float(random.uniform(0, DAY_S))
        self.idle_share = float(random.choice([0.0, 0.2, 0.6]))
        self.idle_s = float(random.uniform(120, 1200))
        self.error_rate = float(random.choice([0.0, 0.0001, 0.001]))
        self.hot_share = float(random.choice([0.0, 0.02, 0.1]))  # answers of the light rung
        self.away_share = float(random.choice([0.0, 0.05, 0.2]))
        self.idle: Mask = random.random(n) < self.idle_share
        self.own: Floats = random.normal(0, self.own_spread, n)
        self.common = 0.0
        self.now_s = 0.0
        # A first inference after a pause is slow: clocks ramp up.
        self.woke: Mask = np.zeros(n, dtype=bool)

    def online(self) -> Mask:
        """Who can be offered something now."""
        away = self.random.random(self.count) < self.away_share
        return ~away

    def go_on(self) -> None:
        """One step of time: moods drift over some ten minutes, devices fall idle and wake."""
        self.now_s += STEP_S
        keep = math.exp(-STEP_S / 600)
        fresh = math.sqrt(1 - keep * keep)
        own = self.random.normal(0, self.own_spread, self.count)
        self.own = self.own * keep + own * fresh
        self.common = self.common * keep + float(self.random.normal(0, self.common_spread)) * fresh
        if self.idle_share:
            wakes = self.random.random(self.count) < STEP_S / self.idle_s
            share = self.idle_share / (1 - self.idle_share)
            rests = self.random.random(self.count) < STEP_S / self.idle_s * share
            self.woke = self.idle & wakes
            self.idle = np.where(self.idle, ~wakes, rests)

    def answer(self, who: Mask, version: Version | None, age_s: Floats, limit_s: float) -> Answers:
        """What those devices answer in this step; `version` is None for the one before."""
        wave = math.sin(2 * math.pi * (self.hour_s + self.now_s) / DAY_S)
        load = self.rate * STEP_S * (1 + 0.5 * wave)
        amount = np.where(who & ~self.idle, self.random.poisson(load), 0)
        device = np.repeat(np.arange(self.count), amount)
        level = self.base + self.own + self.common + self.day * wave
        hot = np.full(self.count, self.hot_share * (1 + wave))
        errors = np.full(self.count, self.error_rate)
        if version is not None:
            level, hot, errors = self._changed(version, age_s, level, hot, errors)
        light = self.random.random(device.size) < hot[device]
        ln = level[device] + self.random.normal(0, self.sigma, device.size) - 0.9 * light
        ln = ln + 0.7 * (self.random.random(device.size) < 0.05)  # a tail
        first = np.flatnonzero(np.diff(device, prepend=-1))
        ln[first[self.woke[device[first]]]] += 1.0
        index = np.ceil(ln / math.log(2) * 2**SCALE).astype(np.int64) - 1 - FIRST
        index = np.clip(index, 0, BUCKETS - 1)
        flat = np.bincount(device * BUCKETS + index, minlength=self.count * BUCKETS)
        wrong = self.random.random(device.size) < errors[device]
        return Answers(
            flat.reshape(self.count, BUCKETS),
            np.bincount(device[light], minlength=self.count),
            np.bincount(device[wrong], minlength=self.count),
            _slow_rows(device, np.exp(ln) > limit_s, self.count),
        )

    def _changed(
        self, version: Version, age_s: Floats, level: Floats, hot: Floats, errors: Floats
    ) -> tuple[Floats, Floats, Floats]:
        match version.kind:
            case Kind.FASTER:
                level = level - 0.2
            case Kind.SLOWER:
                level = level + math.log(version.size)
            case Kind.ERRORS:
                errors = errors + version.size
            case Kind.LEAK:
                level = level + version.size * age_s / 60
            case Kind.HEAT:
                warm = 1 - np.exp(-age_s / 300)
                level = level + version.size * warm
                hot = np.clip(hot + version.size * warm, 0, 1)
            case _:
                pass
        return level, hot, errors

    def leaves(self, version: Version, who: Mask, age_s: Floats) -> Mask:
        """Devices on which the version crashes for good in this step: they go back."""
        dice = self.random.random(self.count)
        if version.kind is Kind.CRASHES:  # within some minutes, where it is that profile
            mine: Mask = self.profile == version.profile
            return who & mine & (dice < version.size * STEP_S / 120)
        if version.kind is Kind.LEAK:  # memory is full at some time
            return who & (version.size * age_s / 60 > 1.5) & (dice < 0.2)
        return np.zeros(self.count, dtype=bool)


def _slow_rows(device: Counts, slow: Mask, count: int) -> Mask:
    """Devices with five slow answers in a row; answers are in order, device by device."""
    found = np.zeros(count, dtype=bool)
    if slow.size >= 5 and slow.any():
        together = slow[4:] & slow[3:-1] & slow[2:-2] & slow[1:-3] & slow[:-4]
        mine = device[4:] == device[:-4]
        found[device[4:][together & mine]] = True
    return found


def histogram_of_counts(counts: Counts) -> Histogram:
    """One histogram of bucket counts."""
    used = np.flatnonzero(counts)
    middles = 2.0 ** ((used + FIRST + 0.5) / 2**SCALE)
    return Histogram(
        scale=SCALE,
        count=int(counts.sum()),
        sum_s=float((counts[used] * middles).sum()),
        buckets={int(at) + FIRST: int(counts[at]) for at in used},
    )
