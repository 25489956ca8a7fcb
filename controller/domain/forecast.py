"""What a rollout would take before it starts: how long, how many bytes, whom a bad version reaches.

Plays the planner and the judge that run rollouts over a fleet that is described by classes: how
often its devices are away, how fast they fetch, how much they infer. The same seed gives the same
forecast. Refuses to know where a description comes from; work is bounded whatever its size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controller.domain.chance import Chance
from controller.domain.evidence import Rules
from controller.domain.forecast_run import Played, play
from controller.domain.rollout import Phase
from controller.domain.spec import Spec, parse_size
from controller.domain.wave import Wave
from controller.errors import InvalidError

DRAWS = 40_000  # devices times runs: what a forecast may cost, some seconds
RUNS_LEAST, RUNS_MOST = 10, 100
DEVICES_MOST = 10_000  # played one by one; a larger fleet is played by a sample of so many
POINTS = 48  # of the picture
BYTES_PER_S = 1_000_000.0  # where nothing is known


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """Devices that behave alike. `away_pct` of the time they are away, `away_s` at a time."""

    name: str
    devices: int
    away_pct: float = 0.0
    away_s: float = 0.0
    bytes_per_s: float = BYTES_PER_S
    inferences_per_s: float = 1.0
    fails_pct: float = 0.0  # cannot take any version: full disk ...

    @property
    def here_s(self) -> float:
        """How long they are reachable at a time; infinite where they always are."""
        if self.away_pct <= 0 or self.away_s <= 0:
            return math.inf
        return self.away_s * (100.0 - self.away_pct) / self.away_pct


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be rolled out, to whom, by which rules. Times in seconds."""

    classes: tuple[DeviceClass, ...]
    waves: tuple[Wave, ...]
    rules: Rules
    bytes: int  # of a device
    min_inferences: int = 200  # of the probation
    min_s: float = 60.0
    max_s: float = 1800.0
    load_s: float = 2.0
    fails_on_pct: float = 0.0  # of the devices, where the version is bad; 0: it is good

    @property
    def devices(self) -> int:
        """All of them."""
        return sum(one.devices for one in self.classes)


@dataclass(frozen=True, slots=True)
class Span:
    """A figure over all runs: half of them are at most `p50`, nine of ten at most `p90`."""

    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class Point:
    """Of the picture: exposed devices after so long, and the cap then."""

    at_s: float
    exposed: Span
    cap: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What came of all runs. Spans are None where no run came so far."""

    devices: int
    runs: int
    duration_s: Span | None  # to its end, whichever that is
    bytes: Span
    exposed: Span  # at the end: of a bad version its blast radius
    hit: Span  # devices on which the version failed
    waves_s: tuple[Span | None, ...]  # until each wave was passed
    reached_per_hour: tuple[int, ...]  # new devices in each hour, median, at most two days
    endings: Mapping[Phase, int]  # runs by how they ended; open ones under the phase they are in
    points: tuple[Point, ...]


def forecast(question: Question, seed: int = 1) -> Forecast:
    """Play it as often as the bounds allow."""
    if question.devices < 1:
        raise InvalidError("a fleet without devices has no forecast")
    asked, factor = _sampled(question)
    runs = max(RUNS_LEAST, min(RUNS_MOST, DRAWS // asked.devices))
    played = [play(asked, Chance(seed * 1_000_003 + number)) for number in range(runs)]
    ended = [one.ended_s for one in played if one.ended_s is not None]
    enough = len(ended) * 2 > runs
    horizon = _quantile(ended, 0.9) if enough else max(one.last_s for one in played)
    endings = {phase: sum(one.phase is phase for one in played) for phase in Phase}
    return Forecast(
        devices=question.devices,
        runs=runs,
        duration_s=_span(ended) if enough else None,
        bytes=_span([one.fetched * asked.bytes * factor for one in played]),
        exposed=_span([one.exposed[-1][1] * factor for one in played]),
        hit=_span([one.hit * factor for one in played]),
        waves_s=tuple(_passed(played, number) for number in range(len(asked.waves))),
        reached_per_hour=_per_hour(played, horizon, factor),
        endings={phase: count for phase, count in endings.items() if count},
        points=_points(played, horizon, factor),
    )


def _sampled(question: Question) -> tuple[Question, float]:
    """A question of at most `DEVICES_MOST`, and how many devices one of them stands for."""
    if question.devices <= DEVICES_MOST:
        return question, 1.0
    factor = question.devices / DEVICES_MOST
    classes = tuple(
        replace(one, devices=max(1, round(one.devices / factor))) for one in question.classes
    )
    total = sum(one.devices for one in classes)
    waves = []
    for wave in question.waves:
        share = max(1, min(total, math.ceil(wave.cumulative / factor)))
        waves.append(replace(wave, cumulative=share))
    waves[-1] = replace(waves[-1], cumulative=total)
    return replace(question, classes=classes, waves=tuple(waves)), factor


def _passed(played: Sequence[Played], number: int) -> Span | None:
    found = [one.passed_s[number] for one in played if len(one.passed_s) > number]
    return _span(found) if len(found) * 2 > len(played) else None


def _span(values: Sequence[float]) -> Span:
    return Span(_quantile(values, 0.5), _quantile(values, 0.9))


def _quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank: a value that was seen."""
    ordered = sorted(values)
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) if ordered else 0.0


def _at(steps: Sequence[tuple[float, int]], at_s: float) -> int:
    found = 0
    for when_s, value in steps:
        if when_s > at_s:
            break
        found = value
    return found


def _per_hour(played: Sequence[Played], horizon_s: float, factor: float) -> tuple[int, ...]:
    hours = min(48, math.ceil(horizon_s / 3600) or 1)
    until = [
        _quantile([_at(one.exposed, hour * 3600.0) for one in played], 0.5)
        for hour in range(hours + 1)
    ]
    until[0] = 0.0
    return tuple(round((until[n + 1] - until[n]) * factor) for n in range(hours))


def _points(played: Sequence[Played], horizon_s: float, factor: float) -> tuple[Point, ...]:
    found = []
    for number in range(POINTS + 1):
        at_s = horizon_s * number / POINTS
        exposed = _span([_at(one.exposed, at_s) * factor for one in played])
        cap = _quantile([_at(one.caps, at_s) for one in played], 0.9)
        found.append(Point(at_s, exposed, cap * factor))
    return tuple(found)


_KNOWN = (
    "name", "devices", "away_pct", "away_s", "bytes_per_s", "inferences_per_s", "fails_pct",
)  # fmt: skip


def parse_fleet(value: Mapping[str, object]) -> tuple[tuple[DeviceClass, ...], int]:
    """Classes and bytes of a version from a described fleet; InvalidError names the place."""
    spec = Spec(value, "fleet").only("classes", "bytes")
    listed = spec.body.get("classes")
    if not isinstance(listed, list) or not listed:
        raise InvalidError(
            "fleet.classes is no list of classes of devices",
            "for example classes: [{name: gate, devices: 400, away_pct: 10, away_s: 1800}]",
        )
    classes = tuple(_parse_class(one, number) for number, one in enumerate(listed, 1))
    return classes, parse_size(spec.body.get("bytes", 0), "fleet.bytes")


def _parse_class(value: object, number: int) -> DeviceClass:
    if not isinstance(value, Mapping):
        raise InvalidError(f"fleet.classes {number} is no mapping")
    one = Spec(value, f"fleet.classes {number}").only(*_KNOWN)
    made = DeviceClass(
        name=one.text("name"),
        devices=one.whole("devices", least=1),
        away_pct=one.number("away_pct", 0.0),
        away_s=one.number("away_s", 3600.0),
        bytes_per_s=one.number("bytes_per_s", BYTES_PER_S, least=1.0),
        inferences_per_s=one.number("inferences_per_s", 1.0),
        fails_pct=one.number("fails_pct", 0.0),
    )
    if made.away_pct >= 100 or made.fails_pct > 100:
        raise InvalidError(f"{one.where} is never there, or always fails: away_pct is below 100")
    return made
