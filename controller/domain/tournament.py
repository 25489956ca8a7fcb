"""Measured on devices: whose word counts, and the ladder that the builds of a profile make.

Refuses to judge whether a build may be released: the gate did. A device can only speak of itself,
so a figure of a profile is the median over devices, and one device alone is said to be one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from controller.domain.device import Capabilities
from controller.domain.spec import Spec
from controller.domain.words import ms
from controller.errors import InvalidError

# A lighter rung that is hardly faster only costs accuracy, and a measurement is no more exact.
FASTER_PCT = 10.0
_MOST_MS = 3_600_000.0
_MOST_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class Measured:
    """What one device says of one build; with a ``reason`` it has no figures. None: unknown."""

    reason: str = ""
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    n: int = 0
    first_p50_ms: float = 0.0
    rss_bytes: int = 0
    temperature_start_c: float | None = None
    temperature_max_c: float | None = None
    energy_mj: float | None = None
    energy_source: str = ""
    os: str = ""
    runtime: str = ""
    runtime_version: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are figures."""
        return not self.reason

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Measured":
        """Read :meth:`to_json`, also as a device sends it; InvalidError for impossible figures."""
        spec = Spec(value, "figures")
        found = cls(
            reason=spec.text("reason", ""),
            p50_ms=spec.number("p50_ms", 0.0),
            p95_ms=spec.number("p95_ms", 0.0),
            n=spec.whole("n", 0),
            first_p50_ms=spec.number("first_p50_ms", 0.0),
            rss_bytes=spec.whole("rss_bytes", 0),
            temperature_start_c=_celsius(spec, "temperature_start_c"),
            temperature_max_c=_celsius(spec, "temperature_max_c"),
            energy_mj=spec.optional("energy_mj"),
            energy_source=spec.text("energy_source", ""),
            os=spec.text("os", ""),
            runtime=spec.text("runtime", ""),
            runtime_version=spec.text("runtime_version", ""),
        )
        if found.ok and not (0 < found.p50_ms <= found.p95_ms <= _MOST_MS and found.n > 0):
            raise InvalidError("figures: p50, p95 and n do not fit each other")
        if found.rss_bytes > _MOST_BYTES:
            raise InvalidError(f"figures.rss_bytes {found.rss_bytes} has no machine")
        return found


def _celsius(spec: Spec, key: str) -> float | None:
    if spec.body.get(key) is None:
        return None
    return spec.number(key, least=-273.0)


def stale(measured: Measured, now: Capabilities) -> str:
    """What is another one on the device by now; empty while the figures still speak of it."""
    if measured.os != now.os:
        return f"the OS is {now.os or 'unknown'}, it was {measured.os or 'unknown'}"
    runtime = now.runtimes.get(measured.runtime, "")
    if measured.runtime and runtime != measured.runtime_version:
        there = runtime or "gone"
        return f"{measured.runtime} is {there}, it was {measured.runtime_version or 'unknown'}"
    return ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one build on a profile: medians over ``devices``; 0 devices: of the build host."""

    p50_ms: float
    p95_ms: float
    rss_bytes: int = 0
    energy_mj: float | None = None
    devices: int = 0


def combine(words: Iterable[Measured]) -> Figures | None:
    """Medians over devices that measured; None where none did.

    With three devices or more no single one can move a median beyond what the others say.
    """
    found = [one for one in words if one.ok]
    if not found:
        return None
    energy = [one.energy_mj for one in found if one.energy_mj is not None]
    return Figures(
        p50_ms=median(one.p50_ms for one in found),
        p95_ms=median(one.p95_ms for one in found),
        rss_bytes=int(median(one.rss_bytes for one in found)),
        energy_mj=median(energy) if energy else None,
        devices=len(found),
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A build that may be released. ``position`` of its variant: 0 is the heaviest.

    ``quality`` in percent where it can be compared with the others', else None for all of them.
    """

    build_id: str
    variant: str
    position: int
    recipe: str
    quality: float | None
    size_bytes: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Budget:
    """What a profile bears. None: as much as it takes."""

    latency_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A candidate that is no rung, and why."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """Rungs heavy to light, and what was cut."""

    rungs: tuple[Candidate, ...]
    cut: tuple[Cut, ...]


def propose(candidates: Sequence[Candidate], budget: Budget) -> Proposal:
    """The ladder: the Pareto front of (quality, p95, memory and size), cut to the budget.

    On the front is who is beaten by nobody: not in any of the three, or equal in all. A rung has to
    be faster than the one above it by `FASTER_PCT`, so what is on the front for its size alone is
    no rung. Without comparable qualities a heavier variant counts as better, and the builds of one
    variant as equal. Pure, and the same for any order of ``candidates``.
    """
    cut = [Cut(one, why) for one in candidates if (why := _over(one, budget))]
    out = {one.candidate.build_id for one in cut}
    left = [one for one in candidates if one.build_id not in out]
    front: list[Candidate] = []
    for one in left:
        better = [other for other in left if _beats(other, one)]
        if better:
            best = min(better, key=_order)
            cut.append(Cut(one, f"{_name(best)} is as good or better in all"))
        else:
            front.append(one)
    rungs: list[Candidate] = []
    for one in sorted(front, key=_order):
        if rungs and not _is_faster(one, rungs[-1]):
            above = rungs[-1]
            cut.append(
                Cut(
                    one,
                    f"p95 {ms(one.figures.p95_ms)} ms is not {FASTER_PCT:g} % below"
                    f" {ms(above.figures.p95_ms)} of {_name(above)}",
                )
            )
        else:
            rungs.append(one)
    return Proposal(tuple(rungs), tuple(sorted(cut, key=lambda c: _order(c.candidate))))


def _name(one: Candidate) -> str:
    return f"{one.variant} {one.recipe}"


def _quality(one: Candidate) -> float:
    return -float(one.position) if one.quality is None else one.quality


def _order(one: Candidate) -> tuple[float, float, int, int, str]:
    memory = one.figures.rss_bytes
    return (-_quality(one), one.figures.p95_ms, memory, one.size_bytes, one.build_id)


def _over(one: Candidate, budget: Budget) -> str:
    if budget.latency_ms is not None and one.figures.p95_ms > budget.latency_ms:
        return f"p95 {ms(one.figures.p95_ms)} ms is over the budget of {budget.latency_ms:g} ms"
    memory = one.figures.rss_bytes or one.size_bytes
    if budget.memory_bytes is not None and memory > budget.memory_bytes:
        return f"{memory / 1e6:.0f} MB are over the budget of {budget.memory_bytes / 1e6:.0f} MB"
    return ""


def _costs(one: Candidate) -> tuple[float, float, int]:
    return (-_quality(one), one.figures.p95_ms, (one.figures.rss_bytes or 0) + one.size_bytes)


def _beats(other: Candidate, one: Candidate) -> bool:
    theirs, mine = _costs(other), _costs(one)
    if theirs == mine:  # twins: one of them is enough
        return other.build_id < one.build_id
    return all(a <= b for a, b in zip(theirs, mine, strict=True))


def _is_faster(one: Candidate, above: Candidate) -> bool:
    limit = above.figures.p95_ms * (1 - FASTER_PCT / 100)
    return one.figures.p95_ms <= limit or math.isclose(one.figures.p95_ms, limit)
