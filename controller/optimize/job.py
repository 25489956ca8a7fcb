"""The job process: `python -m controller.optimize.job DIR`.

Reads spec.json and inputs/, writes outputs/ and result.json. Progress is one JSON object per line
on stdout; everything else goes to stderr.

It opens what authors push, so it is given no network, certificate or database, and asks for none.
"""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from controller.domain.build import Evidence, Precision, Recipe
from controller.domain.model import ModelFormat
from controller.domain.passes import Pass, PassName
from controller.errors import InvalidError, LightermanError
from controller.optimize import evaluate
from controller.optimize.builder import Order, Runner, require_builder
from controller.optimize.fallback import cautions, is_worth_more
from controller.optimize.host import build_host, measured_on
from controller.optimize.outcome import Base, Float, Outcome, evidence_of, failing, row_of
from controller.optimize.passes.checkpoint import FOLDER
from controller.optimize.passes.run import Material, run_passes
from controller.optimize.rows import Feed, Rows, load_rows
from controller.optimize.source import LIKENESS_ROWS, LoadedSource
from controller.optimize.spec import SCHEMA, JobSpec, read_spec
from controller.optimize.stopwatch import Stopwatch
from controller.optimize.tasks.judge import Judge, judge_of, require_figures

# A model of ordinary size is evaluated on every row. One that is much too slow is not worth
# minutes: it is evaluated on the rows that fit in here, and its figures say on how many. Seconds of
# computing, of all threads together: neither what else the machine does nor how many cores it has
# may decide on how many rows a gate judges.
EVALUATION_CPU_S = 30.0
CALIBRATION_CPU_S = 15.0
LATENCY_S = 2.5
BATCHES_S = 1.5
MIN_ROWS = 8
# Without a dataset there are no figures, but a model that answers NaN is found all the same.
GENERATED_ROWS, GENERATED_CPU_S = 64, 8.0
LIKENESS_CPU_S = 5.0
PASSES_SHARE = 0.4  # of a job's time
UNSTEADY = "asked twice for the same row, the source answers otherwise: figures beside it are luck"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

Report = Callable[[float, str, str], None]


class Job:
    """One run over a directory."""

    def __init__(self, spec: JobSpec, directory: Path, report: Report) -> None:
        self._spec = spec
        self._inputs = directory / "inputs"
        self._outputs = directory / "outputs"
        self._work = directory / "work"
        self._checkpoints = directory / FOLDER
        self._report = report
        # Where builds begin among the percents: training takes most of the time before.
        trains = any(p.name is PassName.TRAIN for b in spec.builds for p in b.recipe.passes)
        self._begin = 75.0 if trains else 50.0
        self._lanes = len(os.sched_getaffinity(0))
        self._versions: dict[str, str] = {}
        self._eager: evaluate.Timing | None = None
        self._floats: dict[str, Float] = {}
        self._host = build_host(directory)
        self._judge: Judge | None = None

    def run(self) -> dict[str, object]:
        """Do all of it; a build that fails is a result, not an exception."""
        self._outputs.mkdir(exist_ok=True)
        self._work.mkdir(exist_ok=True)
        outcomes = [Outcome(build) for build in self._spec.builds]
        with failing(*outcomes):
            self._judge = judge_of(self._spec.task, self._spec.signature)
        for outcome in outcomes if self._judge is not None else ():
            with failing(outcome):
                outcome.builder = require_builder(outcome.build.recipe)
                require_figures(self._spec.task, outcome.build.recipe)
        able = [outcome for outcome in outcomes if outcome.builder is not None]
        with failing(*able):
            if able:
                self._build(able)
        self._report(88, "measuring", "")
        return self._result(outcomes, self._measure(able))

    def _build(self, outcomes: list[Outcome]) -> None:
        calibration, evaluation = self._rows("calibration"), self._rows("evaluation")
        source = self._load()
        for outcome in outcomes:
            outcome.notes = source.notes
            with failing(outcome):
                self._make_float(outcome, source, evaluation)
        self._report(25, "timing the source", "")
        self._eager = source.time_eager()
        if not source.answers_twice(evaluation):
            for outcome in outcomes:
                outcome.notes = (*outcome.notes, UNSTEADY)
        answers = self._answers(source, evaluation)
        derived = self._derive(outcomes, source, calibration)
        source.forget()
        left = [outcome for outcome in outcomes if outcome.builder is not None]
        width = (88 - self._begin) / max(1, len(left))
        for place, outcome in enumerate(left):
            with failing(outcome):
                made_from = derived.get(outcome.build.recipe.passes, source)
                self._make(outcome, made_from, calibration, evaluation, answers, place, width)

    # ---- the source ---------------------------------------------------------------------------

    def _rows(self, role: str) -> Rows | None:
        wanted = self._spec.calibration if role == "calibration" else self._spec.evaluation
        if not wanted:
            return None
        return load_rows(self._inputs / role, self._spec.signature, self._spec.seed)

    def _load(self) -> LoadedSource:
        path = self._inputs / self._spec.source_role
        source = LoadedSource(
            self._spec, path, self._work, lambda pct, step: self._report(pct, step, "")
        )
        self._versions |= source.versions
        return source

    def _answers(self, source: LoadedSource, rows: Rows | None) -> evaluate.Answers | None:
        """What the source itself says of each evaluation row."""
        if rows is None:
            return None
        go_on = self._budget(EVALUATION_CPU_S, 28, 20, len(rows), "evaluating the source", "")
        return self._ask(source.runner(), rows.feeds(), go_on)

    def _ask(
        self, runner: Runner, feeds: Iterator[Feed], go_on: Callable[[int], bool]
    ) -> evaluate.Answers:
        if self._judge is None:
            raise InvalidError("nothing can read the answers")
        read = self._judge.read
        return evaluate.ask(runner, self._spec.signature, feeds, self._lanes, go_on, read)

    # ---- a runtime ----------------------------------------------------------------------------

    def _make_float(self, outcome: Outcome, source: LoadedSource, rows: Rows | None) -> None:
        """The float file of the build's runtime, which the others of it are measured against."""
        recipe, builder = outcome.build.recipe, outcome.builder
        if builder is None or recipe.runtime in self._floats:
            return
        self._versions |= builder.versions()
        plain = Recipe(f"{recipe.runtime} as float", recipe.runtime, Precision.FP32)
        target = self._work / f"float.{recipe.runtime}"
        builder.compile_build(source, Order(plain), target)
        likeness = None
        if not source.is_float_of(recipe.runtime):
            go_on = self._budget(
                LIKENESS_CPU_S, 20, 5, LIKENESS_ROWS, "comparing with the source", ""
            )
            built = builder.open_build(target, self._spec.signature)
            likeness = source.likeness(built, rows, go_on)
        self._floats[recipe.runtime] = Float(target, likeness)

    def _derive(
        self, outcomes: list[Outcome], source: LoadedSource, rows: Rows | None
    ) -> dict[tuple[Pass, ...], LoadedSource]:
        """What the passes of recipes make of the source, once for all builds by the same ones."""
        found: dict[tuple[Pass, ...], LoadedSource] = {}
        by_passes: dict[tuple[Pass, ...], list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.builder is not None and outcome.build.recipe.passes:
                by_passes.setdefault(outcome.build.recipe.passes, []).append(outcome)
        for number, (passes, those) in enumerate(by_passes.items()):
            with failing(*those):
                work = self._work / f"passes-{number}"
                work.mkdir()
                given = Material(
                    source.core_rows(rows), self._spec.seed, self._going(),
                    self._teacher(passes, work), self._checkpoints / f"passes-{number}",
                )  # fmt: skip
                file, core = work / "source.pt2", source.preparation.core
                notes, ranges = run_passes(source.torch().core(), passes, file, given)
                spec = replace(self._spec, source_format=ModelFormat.TORCH_EXPORT)
                made = LoadedSource(spec, file, work, lambda *_: None, core)
                made.ranges, found[passes] = ranges, made
                for outcome in those:
                    outcome.notes = (*outcome.notes, *notes)
        return found

    def _teacher(self, passes: tuple[Pass, ...], work: Path) -> Runner | None:
        """The other variant that a pass learns from. InvalidError where the version has it not."""
        name = next((one.teacher for one in passes if one.teacher), "")
        if not name:
            return None
        teacher = self._spec.teachers.get(name)
        if teacher is None:
            raise InvalidError(f"the version has no variant {name} to learn from")
        if self._spec.around.body is not None:
            # Each file may take another picture than the other: rows of one are not the other's.
            raise InvalidError(
                f"variants around whose files a spec puts something cannot learn from {name}",
                "put resizing and normalisation into the files for this",
            )
        (work / "teacher").mkdir()
        spec = replace(self._spec, source_format=teacher.format)
        file = self._inputs / teacher.role
        return LoadedSource(spec, file, work / "teacher", lambda *_: None).runner()

    def _going(self) -> Callable[[float, str], bool]:
        """Tells how far a pass is, and whether there is time for more."""
        watch = Stopwatch()

        def go_on(share: float, step: str) -> bool:
            self._report(48 + (self._begin - 48) * share, step, "")
            return watch.elapsed_s() < self._spec.time_s * PASSES_SHARE

        return go_on

    # ---- one build ----------------------------------------------------------------------------

    def _make(
        self,
        outcome: Outcome,
        source: LoadedSource,
        calibration: Rows | None,
        evaluation: Rows | None,
        answers: evaluate.Answers | None,
        place: int,
        width: float,
    ) -> None:
        """Compile and evaluate; with more layers in float while the accuracy asks for it."""
        recipe, builder = outcome.build.recipe, outcome.builder
        ranking, notes, base = list[str](), outcome.notes, self._begin + width * place
        judged = answers is not None and answers.said is not None
        for caution in cautions(recipe, getattr(builder, "CAUTION_MOST", 0), judged=judged):
            go_on = self._budget(
                CALIBRATION_CPU_S, base, width / 3, len(calibration or ()), "calibrating",
                outcome.build.build_id,
            )  # fmt: skip
            order = Order(recipe, calibration, go_on, caution, ranking, source.ranges)
            self._compile(outcome, source, order)
            outcome.notes = (*notes, *order.notes)
            self._evaluate(outcome, source, evaluation, answers, base + width / 3, width * 2 / 3)
            figures = outcome.figures
            if figures is None or not is_worth_more(figures, recipe, self._spec.task):
                return

    def _compile(self, outcome: Outcome, source: LoadedSource, order: Order) -> None:
        build, builder = outcome.build, outcome.builder
        if builder is None:
            raise InvalidError("nothing can be compiled")
        target = self._outputs / build.file_name
        if build.recipe.is_plain:
            shutil.copyfile(self._floats[build.recipe.runtime].file, target)
        else:
            builder.compile_build(source, order, target)
        outcome.file = target

    def _evaluate(
        self,
        outcome: Outcome,
        source: LoadedSource,
        rows: Rows | None,
        said: evaluate.Answers | None,
        base: float,
        span: float,
    ) -> None:
        """Look at every output of the file that ships; figures where there is a source to meet."""
        file, builder, signature = outcome.file, outcome.builder, self._spec.signature
        if file is None or builder is None:
            raise InvalidError("nothing was compiled")
        total = GENERATED_ROWS if said is None else said.rows
        go_on = self._budget(
            GENERATED_CPU_S if said is None else EVALUATION_CPU_S,
            base, span, total, "evaluating", outcome.build.build_id,
        )  # fmt: skip
        outcome.answers = found = self._ask(
            builder.open_build(file, signature),
            source.feeds(rows, GENERATED_ROWS),
            lambda done: done < total and go_on(done),
        )
        if rows is None or said is None or said.said is None or self._judge is None:
            return
        if found.said is None:
            kind = self._spec.task.kind
            raise InvalidError(f"the build's results are no answers of {kind}, its source's are")
        outcome.figures = self._judge.figures(found.said, said.said, rows)

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

    def _measure(self, outcomes: list[Outcome]) -> dict[str, Evidence]:
        """Evidence by build id; a build that cannot be run gets its error instead."""
        found: dict[str, Evidence] = {}
        by_runtime: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            if outcome.file is not None:
                by_runtime.setdefault(outcome.build.recipe.runtime, []).append(outcome)
        for runtime, built in by_runtime.items():
            with failing(*built):
                found |= self._measure_of(runtime, built)
        return found

    def _measure_of(self, runtime: str, built: list[Outcome]) -> dict[str, Evidence]:
        """All builds of one runtime, beside its float file."""
        bench = evaluate.Bench(runtime, self._spec.signature)
        files = [outcome.file for outcome in built if outcome.file is not None]
        baseline, *timings = bench.speed([self._floats[runtime].file, *files], LATENCY_S)
        demands = [bench.memory(file, BATCHES_S) for file in files]
        base = Base(
            baseline,
            self._floats[runtime].likeness,
            self._eager,
            measured_on(self._host),
            self._versions,
            generated=not self._spec.evaluation,
            task=self._spec.task,
        )
        return {
            outcome.build.build_id: evidence_of(outcome, file, timing, base, demand)
            for outcome, file, timing, demand in zip(built, files, timings, demands, strict=True)
        }

    def _result(self, outcomes: list[Outcome], evidence: dict[str, Evidence]) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "host": self._host.to_json(),
            "builds": [row_of(outcome, evidence) for outcome in outcomes],
        }


def _progress_writer() -> Report:
    """Keep stdout for progress: libraries print, and their words belong to the log."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    told = 0.0

    def report(progress_pct: float, step: str, build_id: str) -> None:
        nonlocal told
        told = max(told, progress_pct)  # each runtime is exported and compared in its turn
        line = {"progress_pct": round(told, 1), "step": step, "build_id": build_id}
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
