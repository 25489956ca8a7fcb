"""What the judge of a wave is given: facts of the wave, and the rules of its owner.

Both can be stored and read again, so that a decision of last week can be made once more and has to
come out the same. Refuses to judge: `health` does. Times in seconds unless a name says `_ms`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from controller.domain.comparison import Comparison
from controller.domain.histogram import Histogram
from controller.domain.spec import Spec
from controller.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Trouble:
    """A device that left the version (or could not take it), and what it says of it."""

    device_id: str
    reason: str = ""
    last_service_s: tuple[float, ...] = ()
    returned_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """Merged figures of a set of devices."""

    histogram: Histogram = field(default_factory=Histogram)
    errors: int = 0
    non_finite: int = 0

    @property
    def inferences(self) -> int:
        """Answered and failed ones together."""
        return self.histogram.count + self.errors

    @property
    def faults(self) -> int:
        """Errors and outputs that are no numbers."""
        return self.errors + self.non_finite

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {
            "histogram": self.histogram.to_json(),
            "errors": self.errors,
            "non_finite": self.non_finite,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Side":
        """Read :meth:`to_json`; InvalidError names what is wrong."""
        spec = Spec(value, "side")
        histogram = Histogram.from_json(spec.sub("histogram").body)
        return cls(histogram, spec.whole("errors", 0), spec.whole("non_finite", 0))


@dataclass(frozen=True, slots=True)
class Soak:
    """How long evidence has arrived since every device of the wave runs the version."""

    soaked_s: float = 0.0
    counted_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class WaveFacts:
    """What is known of one open wave. Counts are devices.

    `before` and `same` speak of the same devices, those that have a past; `after` of all.
    """

    opened_at: datetime
    exposed: int  # offered in this wave, without those that refused
    in_flight: int
    committed: int
    offline: int  # of those in flight
    rolled_back: tuple[Trouble, ...] = ()  # of the whole rollout, not of this wave only
    failed: tuple[Trouble, ...] = ()  # before activation, since the newest acknowledgement
    starved: tuple[Trouble, ...] = ()  # in probation, too few inferences at max_s
    before: Side = field(default_factory=Side)
    same: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)
    control: Side = field(default_factory=Side)  # untouched devices in the same time
    samples: int = 0
    short: tuple[str, ...] = ()  # committed devices with fewer than min_samples inferences
    last_evidence_at: datetime | None = None
    last_change_at: datetime | None = None
    acknowledged_at: datetime | None = None  # a person said RUN after this wave was held
    passed: bool = False  # judged so before: only what is exposed since has to be shown
    unreadable: str = ""  # evidence that could not be read
    soak: Soak = Soak()
    compared: tuple[Comparison, ...] = ()  # with themselves before and untouched devices

    def to_json(self) -> dict[str, object]:
        """The form stored: of long lists the first and how many, which is all the judge reads."""
        return {
            "opened_at": self.opened_at.isoformat(),
            "exposed": self.exposed,
            "in_flight": self.in_flight,
            "committed": self.committed,
            "offline": self.offline,
            "rolled_back": _troubles(self.rolled_back),
            "failed": _troubles(self.failed),
            "starved": _troubles(self.starved),
            "before": self.before.to_json(),
            "same": self.same.to_json(),
            "after": self.after.to_json(),
            "control": self.control.to_json(),
            "samples": self.samples,
            "short": {"count": len(self.short), "first": self.short[0] if self.short else ""},
            "last_evidence_at": _text(self.last_evidence_at),
            "last_change_at": _text(self.last_change_at),
            "acknowledged_at": _text(self.acknowledged_at),
            "passed": self.passed,
            "unreadable": self.unreadable,
            "soaked_s": self.soak.soaked_s,
            "counted_until": _text(self.soak.counted_until),
            "compared": [one.to_json() for one in self.compared],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "WaveFacts":
        """Read :meth:`to_json`; InvalidError names what is wrong.

        Judged, it gives what the original gave; names beyond the first of a list are gone.
        """
        spec = Spec(value, "facts")
        opened_at = _moment(spec, "opened_at")
        if opened_at is None:
            raise InvalidError("facts have no opened_at")
        short = spec.sub("short")
        compared = value.get("compared") or ()
        if not isinstance(compared, Sequence):
            raise InvalidError("facts: compared is no list")
        return cls(
            opened_at=opened_at,
            exposed=spec.whole("exposed"),
            in_flight=spec.whole("in_flight"),
            committed=spec.whole("committed"),
            offline=spec.whole("offline"),
            rolled_back=_read_troubles(spec.sub("rolled_back")),
            failed=_read_troubles(spec.sub("failed")),
            starved=_read_troubles(spec.sub("starved")),
            before=Side.from_json(spec.sub("before").body),
            same=Side.from_json(spec.sub("same").body),
            after=Side.from_json(spec.sub("after").body),
            control=Side.from_json(spec.sub("control").body),
            samples=spec.whole("samples"),
            short=(short.text("first", ""),) * short.whole("count"),
            last_evidence_at=_moment(spec, "last_evidence_at"),
            last_change_at=_moment(spec, "last_change_at"),
            acknowledged_at=_moment(spec, "acknowledged_at"),
            passed=spec.flag("passed"),
            unreadable=spec.text("unreadable", ""),
            soak=Soak(spec.number("soaked_s"), _moment(spec, "counted_until")),
            compared=tuple(Comparison.from_json(one) for one in compared),
        )


class Worse(StrEnum):
    """What becomes of a version that is proven worse than a relative limit allows."""

    ROLL_BACK = "roll_back"
    HOLD = "hold"


class OnInconclusive(StrEnum):
    """What becomes of a wave whose figures cannot tell."""

    PAUSE = "pause"  # a person decides
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rollout demands. None: no limit of that kind, only the absolute ones."""

    soak_s: float
    min_samples: int
    deadline_s: float
    slow_threshold_ms: float
    p95_budget_ms: float
    slower_pct: float | None = None
    stepped_down_pts: float | None = None
    worse: Worse = Worse.ROLL_BACK
    on_inconclusive: OnInconclusive = OnInconclusive.PAUSE

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {
            "soak_s": self.soak_s,
            "min_samples": self.min_samples,
            "deadline_s": self.deadline_s,
            "slow_threshold_ms": self.slow_threshold_ms,
            "p95_budget_ms": self.p95_budget_ms,
            "slower_pct": self.slower_pct,
            "stepped_down_pts": self.stepped_down_pts,
            "worse": self.worse.value,
            "on_inconclusive": self.on_inconclusive.value,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Rules":
        """Read :meth:`to_json`; InvalidError names what is wrong."""
        spec = Spec(value, "rules")
        return cls(
            soak_s=spec.number("soak_s"),
            min_samples=spec.whole("min_samples"),
            deadline_s=spec.number("deadline_s"),
            slow_threshold_ms=spec.number("slow_threshold_ms"),
            p95_budget_ms=spec.number("p95_budget_ms"),
            slower_pct=spec.optional("slower_pct"),
            stepped_down_pts=spec.optional("stepped_down_pts"),
            worse=Worse(spec.text("worse", Worse.ROLL_BACK.value)),
            on_inconclusive=OnInconclusive(
                spec.text("on_inconclusive", OnInconclusive.PAUSE.value)
            ),
        )


def _troubles(listed: Sequence[Trouble]) -> dict[str, object]:
    if not listed:
        return {"count": 0}
    first = listed[0]
    return {
        "count": len(listed),
        "device_id": first.device_id,
        "reason": first.reason,
        "last_service_s": list(first.last_service_s),
        "returned_in_s": first.returned_in_s,
    }


def _read_troubles(spec: Spec) -> tuple[Trouble, ...]:
    count = spec.whole("count")
    if not count:
        return ()
    times = spec.body.get("last_service_s") or ()
    if not isinstance(times, Sequence):
        raise InvalidError("facts: last_service_s is no list")
    first = Trouble(
        spec.text("device_id"),
        spec.text("reason", ""),
        tuple(float(time) for time in times),
        spec.optional("returned_in_s"),
    )
    return (first,) * count


def _text(at: datetime | None) -> str:
    return "" if at is None else at.isoformat()


def _moment(spec: Spec, key: str) -> datetime | None:
    text = spec.text(key, "")
    return datetime.fromisoformat(text) if text else None
