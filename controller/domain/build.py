"""Builds and their gate: what a build has to show before it may be released.

Refuses silence: a figure that a recipe demands and nobody measured is a refusal with its reason.
Shares are percent (0–100), accuracy differences are points, latencies milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controller.domain.device import Profile
from controller.domain.interval import Interval
from controller.domain.spec import Spec
from controller.domain.words import ms
from controller.errors import InvalidError


class BuildState(StrEnum):
    """The compile of one target."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPILED = "COMPILED"
    FAILED = "FAILED"


class GateVerdict(StrEnum):
    """What the gate of one profile says of a build."""

    PENDING = "PENDING"
    PASSED = "PASSED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    OVERRIDDEN = "OVERRIDDEN"


# Of the float file with the program it was exported from. One row may sit on an edge (a tie).
MIN_LIKENESS_PCT = 95.0
RELEASABLE = frozenset({GateVerdict.PASSED, GateVerdict.OVERRIDDEN})


class Precision(StrEnum):
    """Number format of the weights and activations."""

    FP32 = "fp32"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class GateRule:
    """What a recipe demands. None: not demanded."""

    max_accuracy_drop_pts: float | None = None
    min_agreement_pct: float | None = None
    not_slower_than_fp32: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant is compiled, and what its gate demands."""

    name: str
    runtime: str
    precision: Precision
    quantization: Mapping[str, object] = field(default_factory=dict)
    gate: GateRule = GateRule()

    @property
    def needs_dataset(self) -> bool:
        """Quantising needs calibration rows."""
        return self.precision is Precision.INT8


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured on the shipped file. None: not measured."""

    size_bytes: int
    p50_ms: float
    p95_ms: float
    latency_n: int
    measured_on: str
    accuracy: Interval | None = None
    source_accuracy: Interval | None = None
    accuracy_delta_pts: Interval | None = None  # build minus source, paired row by row
    agreement: Interval | None = None
    fp32_p50_ms: float | None = None  # fp32 of the same runtime, same run
    eager_p50_ms: float | None = None
    peak_rss_bytes: int | None = None
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    rows_checked: int | None = None  # whose outputs were looked at
    rows_not_finite: int | None = None  # of these: NaN or infinity in any output
    rows_generated: bool = False  # there was no dataset to take them from
    rows_compared: int | None = None  # float file beside the program it was exported from
    rows_differing: int | None = None  # of these: beyond rounding
    dataset_digest: str = ""  # the content that accuracy and agreement speak of

    def to_json(self) -> dict[str, object]:
        """The form stored with the build."""
        intervals = {
            "accuracy": self.accuracy,
            "source_accuracy": self.source_accuracy,
            "accuracy_delta_pts": self.accuracy_delta_pts,
            "agreement": self.agreement,
        }
        return {
            "size_bytes": self.size_bytes,
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
            "latency_n": self.latency_n,
            "measured_on": self.measured_on,
            **{name: None if i is None else i.to_json() for name, i in intervals.items()},
            "fp32_p50_ms": self.fp32_p50_ms,
            "eager_p50_ms": self.eager_p50_ms,
            "peak_rss_bytes": self.peak_rss_bytes,
            "tool_versions": dict(self.tool_versions),
            "rows_checked": self.rows_checked,
            "rows_not_finite": self.rows_not_finite,
            "rows_generated": self.rows_generated,
            "rows_compared": self.rows_compared,
            "rows_differing": self.rows_differing,
            "dataset_digest": self.dataset_digest,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Evidence":
        """Read :meth:`to_json`; InvalidError names what is missing."""
        spec = Spec(value, "evidence")
        versions = spec.sub("tool_versions").body
        return cls(
            size_bytes=spec.whole("size_bytes"),
            p50_ms=spec.number("p50_ms"),
            p95_ms=spec.number("p95_ms"),
            latency_n=spec.whole("latency_n"),
            measured_on=spec.text("measured_on", ""),
            accuracy=_interval(value, "accuracy"),
            source_accuracy=_interval(value, "source_accuracy"),
            accuracy_delta_pts=_interval(value, "accuracy_delta_pts"),
            agreement=_interval(value, "agreement"),
            fp32_p50_ms=spec.optional("fp32_p50_ms"),
            eager_p50_ms=spec.optional("eager_p50_ms"),
            peak_rss_bytes=_count(spec, "peak_rss_bytes"),
            tool_versions={str(name): str(version) for name, version in versions.items()},
            rows_checked=_count(spec, "rows_checked"),
            rows_not_finite=_count(spec, "rows_not_finite"),
            rows_generated=spec.flag("rows_generated"),
            rows_compared=_count(spec, "rows_compared"),
            rows_differing=_count(spec, "rows_differing"),
            dataset_digest=spec.text("dataset_digest", ""),
        )


@dataclass(frozen=True, slots=True)
class GateResult:
    """PASSED or REFUSED, and why: every figure with its n."""

    verdict: GateVerdict
    reason: str


@dataclass(frozen=True, slots=True)
class PassedBuild:
    """A build that may be released to the devices of one profile."""

    build_id: str
    variant: str
    recipe: str
    runtime: str
    digest: str
    length: int
    media_type: str
    p50_ms: float | None
    peak_rss_bytes: int | None
    overridden: bool = False


def parse_recipe(name: str, spec: Mapping[str, object]) -> Recipe:
    """The ``spec`` of ``kind: Recipe``; InvalidError names the key that is wrong."""
    top = Spec(spec, f"Recipe {name}: spec").only("runtime", "precision", "quantization", "gate")
    rule = top.sub("gate").only(
        "max_accuracy_drop_pts", "min_agreement_pct", "not_slower_than_fp32"
    )
    precision = top.text("precision")
    if precision not in tuple(Precision):
        raise InvalidError(
            f"{top.where}.precision {precision!r} is unknown", f"known are {', '.join(Precision)}"
        )
    return Recipe(
        name=name,
        runtime=top.text("runtime"),
        precision=Precision(precision),
        quantization=dict(top.sub("quantization").body),
        gate=GateRule(
            max_accuracy_drop_pts=rule.optional("max_accuracy_drop_pts"),
            min_agreement_pct=rule.optional("min_agreement_pct"),
            not_slower_than_fp32=rule.flag("not_slower_than_fp32"),
        ),
    )


def refuse_early(
    recipe: Recipe, profile: Profile, dataset: str | None, wanted: str
) -> GateResult | None:
    """A refusal that needs no compile, or None.

    ``dataset`` is the one found, ``wanted`` the name that was looked for.
    """
    if profile.recipes and recipe.name not in profile.recipes:
        return _refused(f"recipe {recipe.name} is not one of profile {profile.name}")
    if recipe.runtime not in profile.runtimes:
        return _refused(f"profile {profile.name} has no runtime {recipe.runtime}")
    if recipe.needs_dataset and dataset is None:
        return _refused(
            f"no dataset {wanted}: {recipe.precision} needs calibration and evaluation rows;"
            f" fleetctl admin dataset push {wanted} FILE.npz"
        )
    return None


def gate(evidence: Evidence, profile: Profile, recipe: Recipe, host_matches: bool) -> GateResult:
    """Judge one build for one profile.

    Agreement has to be proven: the lower end of its interval meets the bound. The accuracy drop
    is judged on the paired difference itself, since its interval on some hundred rows is wider
    than any useful bound; the reason says n and interval, so that nobody takes it for more.
    The latency budget binds only where the measuring host is of the profile's class.
    """
    notes: list[str] = []
    refusals: list[str] = []
    for ok, text in (
        *_numbers(evidence),
        *_export(evidence),
        *_accuracy(evidence, recipe),
        *_agreement(evidence, recipe),
        *_speed(evidence, recipe),
        *_memory(evidence, profile),
        *_latency(evidence, profile, host_matches),
    ):
        (notes if ok else refusals).append(text)
    if refusals:
        return _refused("; ".join(refusals))
    return GateResult(GateVerdict.PASSED, "; ".join(notes))


_Finding = tuple[bool, str]


def _numbers(evidence: Evidence) -> list[_Finding]:
    """No recipe may switch this off: a device could make nothing of such answers."""
    rows, wrong = evidence.rows_checked, evidence.rows_not_finite
    if not rows or wrong is None:
        return [(False, "no row's outputs were looked at: build it again")]
    of = f"{rows:,} generated rows" if evidence.rows_generated else f"{rows:,} rows"
    if wrong:
        return [(False, f"{wrong:,} of {of} gave NaN or infinity")]
    return [(True, f"{of} gave numbers")]


def _export(evidence: Evidence) -> list[_Finding]:
    rows, wrong = evidence.rows_compared, evidence.rows_differing
    if not rows or wrong is None:
        return []  # the source is the float file itself
    like_pct = 100 * (rows - wrong) / rows
    if like_pct < MIN_LIKENESS_PCT:
        return [
            (
                False,
                f"the export is wrong: {wrong:,} of {rows:,} rows differ from the source's"
                f" outputs beyond rounding, at least {MIN_LIKENESS_PCT:g} % have to agree",
            )
        ]
    return []


def _accuracy(evidence: Evidence, recipe: Recipe) -> list[_Finding]:
    bound, delta = recipe.gate.max_accuracy_drop_pts, evidence.accuracy_delta_pts
    if bound is None:
        return []
    if delta is None:
        if evidence.agreement is not None:
            return [(True, "accuracy not measured: the dataset has no labels")]
        return [(False, "no dataset to measure accuracy on")]
    text = f"accuracy {_signed(delta)} pt against the source, n={delta.n}"
    if delta.value < -bound:
        return [(False, f"{text}, allowed −{bound:g} pt")]
    return [(True, text)]


def _agreement(evidence: Evidence, recipe: Recipe) -> list[_Finding]:
    bound, found = recipe.gate.min_agreement_pct, evidence.agreement
    if bound is None:
        return []
    if found is None:
        return [(False, "no dataset to measure agreement on")]
    text = (
        f"agreement {found.value:.1f} % with the source"
        f" (95 % interval {found.low:.1f}–{found.high:.1f}, n={found.n})"
    )
    if found.low < bound:
        return [(False, f"{text}, the lower end has to reach {bound:g} %")]
    return [(True, text)]


def _speed(evidence: Evidence, recipe: Recipe) -> list[_Finding]:
    if not recipe.gate.not_slower_than_fp32 or recipe.precision is Precision.FP32:
        return []
    if evidence.fp32_p50_ms is None:
        return [(False, f"fp32 of {recipe.runtime} was not measured beside it")]
    pair = (
        f"p50 {ms(evidence.p50_ms)} ms, fp32 {ms(evidence.fp32_p50_ms)} ms, n={evidence.latency_n}"
    )
    if evidence.p50_ms > evidence.fp32_p50_ms:
        return [(False, f"slower than fp32 of {recipe.runtime}: {pair}")]
    return [(True, pair)]


def _memory(evidence: Evidence, profile: Profile) -> list[_Finding]:
    budget = profile.memory_budget_bytes
    if budget is None:
        return []
    needs = max(evidence.size_bytes, evidence.peak_rss_bytes or 0)
    if needs > budget:
        return [(False, f"needs {_mib(needs)}, budget of {profile.name} {_mib(budget)}")]
    return []


def _latency(evidence: Evidence, profile: Profile, host_matches: bool) -> list[_Finding]:
    budget = profile.latency_budget_ms
    if budget is None:
        return []
    if not host_matches:
        return [(True, f"latency not measured on this class (measured on {evidence.measured_on})")]
    text = f"p95 {ms(evidence.p95_ms)} ms, budget {budget:g} ms, n={evidence.latency_n}"
    return [(evidence.p95_ms <= budget, text)]


def _refused(reason: str) -> GateResult:
    return GateResult(GateVerdict.REFUSED, reason)


def _count(spec: Spec, key: str) -> int | None:
    return None if spec.body.get(key) is None else spec.whole(key)


def _interval(value: Mapping[str, object], key: str) -> Interval | None:
    found = value.get(key)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise InvalidError(f"evidence.{key} is no interval")
    return Interval.from_json(found)


def _signed(delta: Interval) -> str:
    def one(number: float) -> str:
        return f"{number:+.1f}".replace("-", "−")

    return f"{one(delta.value)} ({one(delta.low)}…{one(delta.high)})"


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.1f} MiB"
