"""The job process: `python -m controller.optimize.job DIR`.

Reads spec.json and inputs/, writes outputs/ and result.json. Progress is one JSON object per line
on stdout; everything else goes to stderr.

It opens what authors push, so it is given no network, certificate or database, and asks for none.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from controller.domain.build import Evidence, Precision
from controller.domain.model import ModelFormat
from controller.errors import InvalidError, LightermanError
from controller.optimize import evaluate_onnxruntime as evaluate
from controller.optimize.export_onnx import check_exported, export_onnx
from controller.optimize.host import build_host, measured_on
from controller.optimize.quantize_onnx import quantize_onnx
from controller.optimize.rows import Feed, Rows, load_rows, sample_feeds, sample_inputs
from controller.optimize.spec import MEDIA_TYPE, SCHEMA, BuildSpec, JobSpec, read_spec
from controller.optimize.stopwatch import Stopwatch

# A model of ordinary size is evaluated on every row. One that is much too slow is not worth
# minutes: it is evaluated on the rows that fit in here, and its figures say on how many. Seconds of
# computing, of all threads together: neither what else the machine does nor how many cores it has
# may decide on how many rows a gate judges.
EVALUATION_CPU_S = 30.0
CALIBRATION_CPU_S = 15.0
LATENCY_S = 2.5
EAGER_S = 1.5
MIN_ROWS = 8
# Without a dataset there are no figures, but a model that answers NaN is found all the same.
GENERATED_ROWS, GENERATED_CPU_S = 64, 8.0
# The exported file beside the program it came from: a wrong export is wrong on most rows.
LIKENESS_ROWS, LIKENESS_CPU_S = 32, 5.0
MIN_EAGER_CALLS = 5
READ_BYTES = 1024**2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

Report = Callable[[float, str, str], None]


@dataclass(slots=True)
class _Outcome:
    """What became of one build."""

    build: BuildSpec
    file: Path | None = None
    error: str = ""
    figures: evaluate.Figures | None = None
    answers: evaluate.Answers | None = None


class Job:
    """One run over a directory."""

    def __init__(self, spec: JobSpec, directory: Path, report: Report) -> None:
        self._spec = spec
        self._inputs = directory / "inputs"
        self._outputs = directory / "outputs"
        self._work = directory / "work"
        self._report = report
        self._lanes = len(os.sched_getaffinity(0))
        self._versions: dict[str, str] = evaluate.versions()
        self._eager_p50_ms: float | None = None
        self._likeness: evaluate.Likeness | None = None
        self._host = build_host(directory)

    def run(self) -> dict[str, object]:
        """Do all of it; a build that fails is a result, not an exception."""
        self._outputs.mkdir(exist_ok=True)
        self._work.mkdir(exist_ok=True)
        outcomes = [_Outcome(build) for build in self._spec.builds]
        try:
            calibration, evaluation = self._rows("calibration"), self._rows("evaluation")
            float_file, source = self._source(evaluation)
        except LightermanError as error:
            for outcome in outcomes:
                outcome.error = error.text()
            return self._result(outcomes, {})
        for place, outcome in enumerate(outcomes):
            width = 38 / len(outcomes)
            base = 50 + width * place
            try:
                outcome.file = self._compile(
                    outcome.build, float_file, calibration, base, width / 3
                )
                self._evaluate(outcome, evaluation, source, base + width / 3, width * 2 / 3)
            except LightermanError as error:
                outcome.error, outcome.file = error.text(), None
        self._report(88, "measuring", "")
        return self._result(outcomes, self._measure(outcomes, float_file))

    # ---- the source ---------------------------------------------------------------------------

    def _rows(self, role: str) -> Rows | None:
        wanted = self._spec.calibration if role == "calibration" else self._spec.evaluation
        if not wanted:
            return None
        return load_rows(self._inputs / role, self._spec.signature, self._spec.seed)

    def _source(self, evaluation: Rows | None) -> tuple[Path, evaluate.Answers | None]:
        """The float build, and what the source itself says of each evaluation row."""
        path = self._inputs / self._spec.source_role
        target = self._work / "fp32.onnx"
        runner: evaluate.Runner
        match self._spec.source_format:
            case ModelFormat.TORCH_EXPORT:
                runner = self._torch_source(path, target, evaluation)
            case ModelFormat.ONNX:
                self._report(5, "loading", "")
                shutil.copyfile(path, target)
                check_exported(target, self._spec.signature)
                runner = evaluate.OnnxSession(target, self._spec.signature)
        if evaluation is None:
            return target, None
        go_on = self._budget(EVALUATION_CPU_S, 28, 20, len(evaluation), "evaluating the source", "")
        signature = self._spec.signature
        return target, evaluate.ask(runner, signature, evaluation.feeds(), self._lanes, go_on)

    def _torch_source(self, path: Path, target: Path, evaluation: Rows | None) -> evaluate.Runner:
        from controller.optimize import import_torch

        self._report(2, "loading", "")
        model = import_torch.TorchModel(path, self._spec.signature)
        self._versions |= import_torch.versions()
        self._report(10, "exporting", "")
        export_onnx(model, target)
        go_on = self._budget(LIKENESS_CPU_S, 20, 5, LIKENESS_ROWS, "comparing with the source", "")
        self._likeness = evaluate.compare_runs(
            model,
            evaluate.OnnxSession(target, self._spec.signature),
            # Row by row: both are loaded here, and large inputs take memory by the batch.
            self._feeds(evaluation, LIKENESS_ROWS, size=1),
            lambda done: done < LIKENESS_ROWS and go_on(done),
        )
        self._report(25, "timing the source", "")
        self._eager_p50_ms = self._time_eager(model)
        return model

    def _feeds(self, evaluation: Rows | None, count: int, size: int = 0) -> Iterator[Feed]:
        if evaluation is not None:
            return evaluation.feeds(size)
        return sample_feeds(self._spec.signature, count, self._spec.seed)

    def _time_eager(self, model: evaluate.Runner) -> float:
        """Median of single calls on one thread, as a device without us would run it."""
        inputs = sample_inputs(self._spec.signature, batch=1, seed=self._spec.seed)
        model.run(inputs)
        times: list[float] = []
        whole = Stopwatch()
        while len(times) < MIN_EAGER_CALLS or whole.elapsed_s() < EAGER_S:
            one = Stopwatch()
            model.run(inputs)
            times.append(one.elapsed_s())
        return evaluate.summarise(times).p50_ms

    # ---- one build ----------------------------------------------------------------------------

    def _compile(
        self,
        build: BuildSpec,
        float_file: Path,
        calibration: Rows | None,
        base: float,
        span: float,
    ) -> Path:
        target = self._outputs / build.file_name
        match build.recipe.precision:
            case Precision.FP32:
                shutil.copyfile(float_file, target)
            case Precision.INT8:
                if calibration is None:
                    raise InvalidError(
                        f"{build.recipe.name} needs calibration rows", "push a dataset first"
                    )
                go_on = self._budget(
                    CALIBRATION_CPU_S, base, span, len(calibration), "calibrating", build.build_id
                )
                quantize_onnx(
                    float_file,
                    target,
                    calibration,
                    self._spec.signature,
                    dict(build.recipe.quantization),
                    go_on,
                )
                check_exported(target, self._spec.signature)
        return target

    def _evaluate(
        self,
        outcome: _Outcome,
        rows: Rows | None,
        source: evaluate.Answers | None,
        base: float,
        span: float,
    ) -> None:
        """Look at every output of the file that ships; figures where there is a source to meet."""
        file, signature = outcome.file, self._spec.signature
        if file is None:
            raise InvalidError("nothing was compiled")
        total = GENERATED_ROWS if source is None else source.rows
        go_on = self._budget(
            GENERATED_CPU_S if source is None else EVALUATION_CPU_S,
            base, span, total, "evaluating", outcome.build.build_id,
        )  # fmt: skip
        outcome.answers = found = evaluate.ask(
            evaluate.OnnxSession(file, signature),
            signature,
            self._feeds(rows, GENERATED_ROWS),
            self._lanes,
            lambda done: done < total and go_on(done),
        )
        if rows is None or source is None or source.classes is None:
            return
        if found.classes is None:
            raise InvalidError("the build's results are no class scores, its source's are")
        outcome.figures = evaluate.compare(found.classes, source.classes, rows.y)

    def _budget(
        self, cpu_s: float, base: float, span: float, total: int, step: str, build_id: str
    ) -> Callable[[int], bool]:
        """Asked before each batch: tells progress, and whether there is time for more."""
        watch = Stopwatch()
        most_s = self._spec.time_s / 10  # on the clock, so that the job ends in time

        def go_on(done: int) -> bool:
            self._report(base + span * min(1.0, done / max(1, total)), step, build_id)
            return done < MIN_ROWS or (watch.cpu_s() < cpu_s and watch.elapsed_s() < most_s)

        return go_on

    # ---- figures ------------------------------------------------------------------------------

    def _measure(self, outcomes: list[_Outcome], float_file: Path) -> dict[str, Evidence]:
        """Evidence by build id; a build that cannot be run gets its error instead."""
        built = [outcome for outcome in outcomes if outcome.file is not None]
        if not built:
            return {}
        files = [outcome.file for outcome in built if outcome.file is not None]
        try:
            baseline, *timings = evaluate.measure_speed([float_file, *files], LATENCY_S)
            memory = [evaluate.measure_memory(file) for file in files]
        except LightermanError as error:
            for outcome in built:
                outcome.error, outcome.file = error.text(), None
            return {}
        return {
            outcome.build.build_id: self._evidence(outcome, file, timing, baseline, peak)
            for outcome, file, timing, peak in zip(built, files, timings, memory, strict=True)
        }

    def _evidence(
        self,
        outcome: _Outcome,
        file: Path,
        timing: evaluate.Timing,
        baseline: evaluate.Timing,
        peak_rss_bytes: int,
    ) -> Evidence:
        figures, answers, likeness = outcome.figures, outcome.answers, self._likeness
        is_float = outcome.build.recipe.precision is Precision.FP32
        return Evidence(
            size_bytes=file.stat().st_size,
            p50_ms=timing.p50_ms,
            p95_ms=timing.p95_ms,
            latency_n=timing.n,
            measured_on=measured_on(self._host),
            accuracy=figures.accuracy if figures else None,
            source_accuracy=figures.source_accuracy if figures else None,
            accuracy_delta_pts=figures.accuracy_delta_pts if figures else None,
            agreement=figures.agreement if figures else None,
            fp32_p50_ms=timing.p50_ms if is_float else baseline.p50_ms,
            eager_p50_ms=self._eager_p50_ms,
            peak_rss_bytes=peak_rss_bytes,
            tool_versions=self._versions,
            rows_checked=answers.rows if answers else None,
            rows_not_finite=answers.not_finite if answers else None,
            rows_generated=not self._spec.evaluation,
            rows_compared=likeness.rows if likeness else None,
            rows_differing=likeness.differing if likeness else None,
        )

    def _result(self, outcomes: list[_Outcome], evidence: dict[str, Evidence]) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "host": self._host.to_json(),
            "builds": [_row(outcome, evidence) for outcome in outcomes],
        }


def _row(outcome: _Outcome, evidence: dict[str, Evidence]) -> dict[str, object]:
    build, file = outcome.build, outcome.file
    row: dict[str, object] = {"build_id": build.build_id, "recipe": build.recipe.name}
    if file is None or build.build_id not in evidence:
        return {**row, "ok": False, "error": outcome.error or "it was not measured"}
    found = evidence[build.build_id]
    return {
        **row,
        "ok": True,
        "error": "",
        "digest": digest_of(file),
        "length": file.stat().st_size,
        "media_type": MEDIA_TYPE,
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


def _progress_writer() -> Report:
    """Keep stdout for progress: libraries print, and their words belong to the log."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def report(progress_pct: float, step: str, build_id: str) -> None:
        line = {"progress_pct": round(progress_pct, 1), "step": step, "build_id": build_id}
        own.write(json.dumps(line) + "\n")

    return report


def _keep_memory() -> None:
    """Keep freed memory: giving back and faulting in each activation halves PyTorch's speed."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; elsewhere it is only slower
        libc.mallopt(_M_MMAP_THRESHOLD, 1024**3)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _do_not_spin() -> None:
    """Threads that wait for each other by spinning take 20 times as long on a busy machine."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")  # read when PyTorch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: list[str]) -> int:
    """Run the job of a directory. 0: result.json was written, 2: the spec itself is wrong."""
    directory = Path(arguments[0])
    report = _progress_writer()
    _keep_memory()
    _do_not_spin()
    try:
        spec = read_spec(directory / "spec.json")
    except LightermanError as error:
        sys.stderr.write(error.text() + "\n")
        return 2
    result = Job(spec, directory, report).run()
    unfinished = directory / "result.json.tmp"
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    unfinished.replace(directory / "result.json")
    report(100, "done", "")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # all is written; PyTorch takes seconds to clean up memory that goes anyway
