"""What became of each build of a job, and the row that the job answers with. Compiles nothing."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.domain.build import Evidence
from controller.domain.task import Task
from controller.errors import LightermanError
from controller.optimize import evaluate
from controller.optimize.builder import Builder, LackingError
from controller.optimize.spec import BuildSpec
from controller.optimize.tasks.figures import Figures

READ_BYTES = 1024**2


@dataclass(slots=True)
class Outcome:
    """What became of one build. `lacking`: this worker has not what its recipe needs."""

    build: BuildSpec
    builder: Builder | None = None
    file: Path | None = None
    error: str = ""
    lacking: bool = False
    figures: Figures | None = None
    answers: evaluate.Answers | None = None
    notes: tuple[str, ...] = ()

    def fail(self, error: LightermanError) -> None:
        """This build is lost, the others go on."""
        self.error, self.file, self.builder = error.text(), None, None
        self.lacking = isinstance(error, LackingError)


@dataclass(frozen=True, slots=True)
class Float:
    """A runtime's float build, and how it answers beside the source; None: it is the source."""

    file: Path
    likeness: evaluate.Likeness | None


@dataclass(frozen=True, slots=True)
class Base:
    """What all builds of one runtime share: its float build, the source, the machine."""

    timing: evaluate.Timing
    likeness: evaluate.Likeness | None
    eager: evaluate.Timing | None
    measured_on: str
    versions: Mapping[str, str]
    generated: bool  # there was no dataset
    task: Task


def evidence_of(
    outcome: Outcome, file: Path, timing: evaluate.Timing, base: Base, demand: evaluate.Demand
) -> Evidence:
    """The figures of one build beside those of its runtime's float build."""
    figures, answers = outcome.figures or Figures(), outcome.answers
    likeness = base.likeness
    floating = timing if outcome.build.recipe.is_plain else base.timing
    eager, stand_in = base.eager, _stand_in(outcome)
    return Evidence(
        size_bytes=file.stat().st_size,
        p50_ms=timing.p50_ms,
        p95_ms=timing.p95_ms,
        latency_n=timing.n,
        measured_on=base.measured_on,
        accuracy=figures.accuracy,
        source_accuracy=figures.source_accuracy,
        accuracy_delta_pts=figures.accuracy_delta_pts,
        top5_accuracy=figures.top5_accuracy,
        top5_delta_pts=figures.top5_delta_pts,
        agreement=figures.agreement,
        fp32_p50_ms=floating.p50_ms,
        eager_p50_ms=eager.p50_ms if eager else None,
        # What the stand-in took says nothing of the device either.
        peak_rss_bytes=None if stand_in else demand.peak_rss_bytes,
        tool_versions=base.versions,
        rows_checked=answers.rows if answers else None,
        rows_not_finite=answers.not_finite if answers else None,
        rows_generated=base.generated,
        rows_compared=likeness.rows if likeness else None,
        rows_differing=likeness.differing if likeness else None,
        p50_interval_ms=timing.p50,
        p95_interval_ms=timing.p95,
        fp32_p50_interval_ms=floating.p50,
        eager_p50_interval_ms=eager.p50 if eager else None,
        notes=outcome.notes,
        batch_p50_ms=demand.batch_p50_ms,
        task=base.task.kind,
        metric=base.task.metric,
        metrics=figures.metrics,
        classes=figures.classes,
        classes_judged=figures.classes_judged,
        stand_in=stand_in,
    )


def _stand_in(outcome: Outcome) -> str:
    """Who answered for the build on this worker: a text of the builder's, or a function's."""
    found = getattr(outcome.builder, "STAND_IN", "")
    return str(found(outcome.build.recipe) if callable(found) else found)


@contextmanager
def failing(*outcomes: Outcome) -> Iterator[None]:
    """What goes wrong inside is the result of these builds."""
    try:
        yield
    except LightermanError as error:
        for outcome in outcomes:
            outcome.fail(error)


def row_of(outcome: Outcome, evidence: dict[str, Evidence]) -> dict[str, object]:
    build, file = outcome.build, outcome.file
    row: dict[str, object] = {"build_id": build.build_id, "recipe": build.recipe.name}
    if file is None or build.build_id not in evidence:
        error = outcome.error or "it was not measured"
        return {**row, "ok": False, "error": error, "lacking": outcome.lacking}
    found = evidence[build.build_id]
    return {
        **row,
        "ok": True,
        "error": "",
        "digest": digest_of(file),
        "length": file.stat().st_size,
        "media_type": outcome.builder.MEDIA_TYPE if outcome.builder else "",
        "peak_rss_bytes": found.peak_rss_bytes,
        "evidence": found.to_json(),
    }


def digest_of(path: Path) -> str:
    """``sha256:<64 hex>`` of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(READ_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"
