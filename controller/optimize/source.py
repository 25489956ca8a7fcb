"""The pushed variant: loaded, exported when a builder asks for it, and asked for its own answers.

What the version's spec puts around its graph is part of it for everyone who asks. Judges nothing. A
form that it cannot take is told to whoever asks for it; the other runtimes go on.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import assert_never, cast

from controller.domain.model import ModelFormat, Signature
from controller.domain.preparation import class_places, prepare
from controller.errors import InvalidError
from controller.intake.models import check_one_signature, parse_model
from controller.optimize import evaluate
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.builder import Runner
from controller.optimize.export_onnx import MAX_BYTES, check_exported, export_onnx
from controller.optimize.import_entry import make_by_entry
from controller.optimize.import_torch import TorchModel
from controller.optimize.import_torch import versions as torch_versions
from controller.optimize.import_torchscript import ScriptModel, export_script
from controller.optimize.outputs import differing
from controller.optimize.passes.aware import LearnedRange
from controller.optimize.prepare_numpy import PreparedRows, PreparedRunner
from controller.optimize.prepare_onnx import fold_onnx
from controller.optimize.raise_opset import raise_opset
from controller.optimize.rows import Array, Feed, Rows, numpy_type, sample_feeds, sample_inputs
from controller.optimize.spec import JobSpec
from controller.optimize.stopwatch import Stopwatch

EAGER_S = 1.5
MIN_EAGER_CALLS = 6  # fewer have no interval of their median
# The float file beside the program it came from: a wrong export is wrong on most rows.
LIKENESS_ROWS = 32

Tell = Callable[[float, str], None]


class _Limits:
    """Of a file that the controller took already."""

    artifact_bytes = MAX_BYTES


class LoadedSource:
    """Satisfies `builder.Source`. Holds PyTorch's program until `forget`."""

    def __init__(
        self, spec: JobSpec, path: Path, work: Path, tell: Tell, core: Signature | None = None
    ) -> None:
        """Load it; ``core`` is the file's own signature where the file need not be asked.

        Raises InvalidError when it does not load.
        """
        self.signature: Signature = spec.signature
        self.versions: dict[str, str] = {}
        self.ranges: tuple[LearnedRange, ...] = ()  # where passes learned them
        self.notes: tuple[str, ...] = ()  # what was done to the source, for each build's findings
        self.preparation = prepare(core or _core(spec, path), spec.around.wishes)
        check_one_signature({"version": spec.signature, "source": self.preparation.outer})
        self._format, self._seed = spec.source_format, spec.seed
        self._folded, self._core = work / "fp32.onnx", work / "core.onnx"
        self._pushed = path
        self._why_not = ""
        self._tell = tell
        self._program: TorchModel | None = None
        tell(2, "loading")
        self._load(spec, path)
        if self.preparation.text():
            self.notes = (*self.notes, f"in the graph: {self.preparation.text()}")

    def _load(self, spec: JobSpec, path: Path) -> None:
        core = self.preparation.core
        match spec.source_format:
            case ModelFormat.TORCH_EXPORT:
                self._program = TorchModel(path, core, self.preparation)
            case ModelFormat.TORCHSCRIPT:
                self._program = ScriptModel(path, core, self.preparation)
            case ModelFormat.PYTHON:
                program = make_by_entry(spec.around.entry, path, core)
                self._program = TorchModel.of(program, core, self.preparation)
                self.notes = (f"made by {spec.around.entry} with the pushed weights",)
            case ModelFormat.ONNX:
                check_exported(path, core)
                note = raise_opset(path, self._core, core)
                self.notes = (note,) if note else ()
            case _:
                assert_never(spec.source_format)
        if self._program is not None:
            self.versions |= torch_versions()

    def onnx(self) -> Path:
        """See `builder.Source`: exported once, also where that fails."""
        if self._why_not:
            raise InvalidError(*self._why_not.splitlines())
        if not self._folded.exists():
            try:
                self._export()
            except InvalidError as error:
                self._why_not = error.text()
                self._folded.unlink(missing_ok=True)
                raise
        return self._folded

    def _export(self) -> None:
        if self._format is not ModelFormat.ONNX:
            self._tell(10, "exporting")
            model = self.torch()
            if isinstance(model, ScriptModel):
                export_script(model, self._core)
            else:
                export_onnx(model, self._core)
        if self.preparation.is_empty:
            self._core.replace(self._folded)
            return
        fold_onnx(self._core, self._folded, self.preparation)
        check_exported(self._folded, self.signature)

    def torch(self) -> TorchModel:
        """See `builder.Source`."""
        if self._program is None and self._format is ModelFormat.TORCH_EXPORT:
            # It was freed. One of its own for who quantises it, which frees it again.
            return TorchModel(self._pushed, self.preparation.core, self.preparation)
        if self._program is None and self._format is not ModelFormat.ONNX:
            raise InvalidError("PyTorch's program was freed: a builder has to take it at once")
        if self._program is None:
            raise InvalidError(
                "the source is an ONNX file, and this runtime builds from PyTorch's program",
                "push the .pt2 of torch.export.save",
            )
        return self._program

    def is_float_of(self, runtime: str) -> bool:
        """Whether the source itself is what this runtime's float build consists of."""
        as_pushed = self._format is ModelFormat.ONNX and not self.notes
        return as_pushed and runtime == "onnxruntime"

    def forget(self) -> None:
        """Free PyTorch's program: quantising takes memory of its own."""
        self._program = None

    def runner(self) -> Runner:
        """What answers for the source itself."""
        if self._program is not None:
            return self._program
        pushed = OnnxSession(self._pushed, self.preparation.core)
        return pushed if self.preparation.is_empty else PreparedRunner(pushed, self.preparation)

    def likeness(
        self, built: Runner, rows: Rows | None, go_on: Callable[[int], bool]
    ) -> evaluate.Likeness:
        """How a float build answers beside the source."""
        # Of nearly equal scores the smallest may change places: they are compared by value alone.
        hidden = set(class_places(self.signature).values())
        return evaluate.compare_runs(
            _Without(self.runner(), hidden),
            _Without(built, hidden),
            # Row by row: both are loaded here, and large inputs take memory by the batch.
            self.feeds(rows, LIKENESS_ROWS, size=1),
            lambda done: done < LIKENESS_ROWS and go_on(done),
        )

    def answers_twice(self, rows: Rows | None) -> bool:
        """Whether it gives the same again for the same row: figures are worth nothing otherwise."""
        runner = self.runner()
        inputs, real = next(iter(self.feeds(rows, 1, size=1)))
        first, second = runner.run(inputs), runner.run(inputs)
        return not differing(second, first, real).any()

    def feeds(self, rows: Rows | None, count: int, size: int = 0) -> Iterator[Feed]:
        """Calls over a dataset's rows, or over generated ones where there is none."""
        if rows is not None:
            return rows.feeds(size)
        return sample_feeds(self.signature, count, self._seed)

    def core_rows(self, rows: Rows | None) -> Rows | None:
        """A dataset's rows as the file itself takes them, for passes over its program."""
        step = self.preparation.inputs[0]
        if rows is None or step.is_plain:
            return rows
        prepared = cast("Array", PreparedRows(rows.x, step))
        return replace(rows, x=prepared, dtype=numpy_type(step.core))

    def time_eager(self) -> evaluate.Timing | None:
        """PyTorch's single calls on one thread, as a device without us would run it.

        None where the source is no program of PyTorch.
        """
        if self._program is None:
            return None
        inputs = sample_inputs(self.signature, batch=1, seed=self._seed)
        self._program.run(inputs)
        times: list[float] = []
        whole = Stopwatch()
        while len(times) < MIN_EAGER_CALLS or whole.elapsed_s() < EAGER_S:
            one = Stopwatch()
            self._program.run(inputs)
            times.append(one.elapsed_s())
        return evaluate.summarise(times)


class _Without:
    """A runner without some of its outputs."""

    def __init__(self, runner: Runner, hidden: set[int]) -> None:
        self._runner, self._hidden = runner, hidden

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `builder.Runner`."""
        found = self._runner.run(inputs)
        return [one for place, one in enumerate(found) if place not in self._hidden]


def _core(spec: JobSpec, path: Path) -> Signature:
    """The file's own signature."""
    if spec.around.body is None and spec.source_format is not ModelFormat.TORCHSCRIPT:
        return spec.signature
    if spec.source_format is ModelFormat.PYTHON and spec.around.signature is not None:
        return spec.around.signature
    return parse_model(path, _Limits(), "the source", spec.around.signature).signature
