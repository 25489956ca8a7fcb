"""Builds: recipes, what was measured on the shipped file, and what may be released.

Judges nothing: the gate does. Shares are percent (0–100), accuracy differences are points,
latencies milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controller.domain.batch import parse_curve
from controller.domain.interval import Interval
from controller.domain.passes import Pass, PassName, parse_passes
from controller.domain.quality import (
    ClassChange,
    MetricFigure,
    classes_from_json,
    metrics_from_json,
)
from controller.domain.spec import Spec
from controller.domain.task import TaskKind
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


RELEASABLE = frozenset({GateVerdict.PASSED, GateVerdict.OVERRIDDEN})


class Precision(StrEnum):
    """Number format of the weights and activations."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


FALLBACK_MOST = 5
_QDQ = (
    *("kind", "format", "activation", "weight"),
    *("calibration", "calibration_rows", "fallback_steps"),
)
_QUANTIZATION: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": _QDQ,
    "openvino": (
        *("kind", "by", "preset"),
        *("calibration", "calibration_rows", "fallback_steps"),
    ),
    "tensorrt": _QDQ,
    "tensorrt-rtx": _QDQ,
}
DYNAMIC = "dynamic"


@dataclass(frozen=True, slots=True)
class GateRule:
    """What a recipe demands. None: not demanded."""

    max_accuracy_drop_pts: float | None = None
    max_top5_drop_pts: float | None = None
    max_f1_drop_pts: float | None = None
    max_map_drop_pts: float | None = None
    max_metric_drop_pts: float | None = None  # of the metric that the version names
    min_agreement_pct: float | None = None
    not_slower_than_fp32: bool = True


_BOUNDS = (
    *("max_accuracy_drop_pts", "max_top5_drop_pts", "max_f1_drop_pts", "max_map_drop_pts"),
    *("max_metric_drop_pts", "min_agreement_pct"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant is compiled, and what its gate demands."""

    name: str
    runtime: str
    precision: Precision
    quantization: Mapping[str, object] = field(default_factory=dict)
    gate: GateRule = GateRule()
    passes: tuple[Pass, ...] = ()  # over the program, before it is compiled

    @property
    def needs_dataset(self) -> bool:
        """Quantising needs calibration rows, training needs something to learn from.

        Dynamic quantisation takes its ranges from each call.
        """
        trains = any(one.name is PassName.TRAIN for one in self.passes)
        calibrates = self.quantization.get("kind") != DYNAMIC
        return trains or (self.precision is Precision.INT8 and calibrates)

    @property
    def fallback_steps(self) -> int:
        """How often more layers may stay float where the bounds on accuracy are not met."""
        wanted = self.quantization.get("fallback_steps", 1)
        return wanted if isinstance(wanted, int) else 1

    @property
    def is_plain(self) -> bool:
        """Whether it gives the runtime's float build, against which the others are held."""
        return self.precision is Precision.FP32 and not self.passes and not self.quantization


_INTERVALS = (
    "accuracy",
    "source_accuracy",
    "accuracy_delta_pts",
    "top5_accuracy",
    "top5_delta_pts",
    "agreement",
    "p50_interval_ms",
    "p95_interval_ms",
    "fp32_p50_interval_ms",
    "eager_p50_interval_ms",
)


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
    # The same where any of the five best scores counts; None where there are five classes or fewer.
    top5_accuracy: Interval | None = None
    top5_delta_pts: Interval | None = None
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
    notes: tuple[str, ...] = ()  # what the passes did, in their words
    # What answered on the worker for a runtime that cannot run there, as TensorRT without a GPU:
    # accuracy is that of the same graph, times say nothing of the build.
    stand_in: str = ""
    # The same quantiles with n and a 95 % interval. None: too few calls for one, or an older build.
    p50_interval_ms: Interval | None = None
    p95_interval_ms: Interval | None = None
    fp32_p50_interval_ms: Interval | None = None
    eager_p50_interval_ms: Interval | None = None
    # Batch, and the median of a call in ms; empty where the model takes one number of rows only.
    batch_p50_ms: tuple[tuple[int, float], ...] = ()
    # Of tasks other than classification, or where the version names a metric of its own.
    task: TaskKind = TaskKind.CLASSIFICATION
    metric: str = ""  # the one that the version names
    metrics: tuple[MetricFigure, ...] = ()
    # Those that lose most, at most `CLASSES_MOST` of the `classes_judged` that the rows have.
    classes: tuple[ClassChange, ...] = ()
    classes_judged: int = 0

    def to_json(self) -> dict[str, object]:
        """The form stored with the build."""
        intervals: dict[str, Interval | None] = {name: getattr(self, name) for name in _INTERVALS}
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
            "notes": list(self.notes),
            "batch_p50_ms": [list(one) for one in self.batch_p50_ms],
            "task": self.task.value,
            "metric": self.metric,
            "metrics": [one.to_json() for one in self.metrics],
            "classes": [one.to_json() for one in self.classes],
            "classes_judged": self.classes_judged,
            "stand_in": self.stand_in,
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
            **{name: _interval(value, name) for name in _INTERVALS},
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
            notes=spec.texts("notes", ()),
            batch_p50_ms=parse_curve(value.get("batch_p50_ms")),
            task=_task(spec),
            metric=spec.text("metric", ""),
            metrics=metrics_from_json(value.get("metrics")),
            classes=classes_from_json(value.get("classes")),
            classes_judged=spec.whole("classes_judged", 0),
            stand_in=spec.text("stand_in", ""),
        )


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
    top = Spec(spec, f"Recipe {name}: spec").only(
        "runtime", "precision", "passes", "quantization", "gate"
    )
    rule = top.sub("gate").only(*_BOUNDS, "not_slower_than_fp32")
    precision = top.text("precision")
    if precision not in tuple(Precision):
        raise InvalidError(
            f"{top.where}.precision {precision!r} is unknown", f"known are {', '.join(Precision)}"
        )
    return Recipe(
        name=name,
        runtime=top.text("runtime"),
        precision=Precision(precision),
        quantization=dict(_quantization(top).body),
        gate=GateRule(
            **{name: rule.optional(name) for name in _BOUNDS},
            not_slower_than_fp32=rule.flag("not_slower_than_fp32", True),
        ),
        passes=parse_passes(top.body.get("passes"), f"{top.where}.passes"),
    )


def _quantization(top: Spec) -> Spec:
    """Of the runtimes here every key is known; a runtime of others has its own and checks them."""
    spec = top.sub("quantization")
    known = _QUANTIZATION.get(top.text("runtime"))
    if known is not None:
        spec.only(*known)
        if spec.whole("fallback_steps", 0) > FALLBACK_MOST:
            raise InvalidError(f"{spec.where}.fallback_steps is above {FALLBACK_MOST}")
    return spec


def _task(spec: Spec) -> TaskKind:
    kind = spec.text("task", TaskKind.CLASSIFICATION)
    if kind not in tuple(TaskKind):
        raise InvalidError(f"evidence.task {kind!r} is unknown", f"known are {', '.join(TaskKind)}")
    return TaskKind(kind)


def _count(spec: Spec, key: str) -> int | None:
    return None if spec.body.get(key) is None else spec.whole(key)


def _interval(value: Mapping[str, object], key: str) -> Interval | None:
    found = value.get(key)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise InvalidError(f"evidence.{key} is no interval")
    return Interval.from_json(found)
