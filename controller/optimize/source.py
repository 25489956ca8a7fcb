"""The pushed variant: loaded, exported when a builder asks for it, and asked for its own answers.

Judges nothing. A form that it cannot take is told to whoever asks for it; the other runtimes go on.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from controller.domain.model import ModelFormat, Signature
from controller.errors import InvalidError
from controller.optimize import evaluate
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.builder import Runner
from controller.optimize.export_onnx import check_exported, export_onnx
from controller.optimize.import_torch import TorchModel
from controller.optimize.import_torch import versions as torch_versions
from controller.optimize.passes.aware import LearnedRange
from controller.optimize.raise_opset import raise_opset
from controller.optimize.rows import Feed, Rows, sample_feeds, sample_inputs
from controller.optimize.spec import JobSpec
from controller.optimize.stopwatch import Stopwatch

EAGER_S = 1.5
MIN_EAGER_CALLS = 6  # fewer have no interval of their median
# The float file beside the program it came from: a wrong export is wrong on most rows.
LIKENESS_ROWS = 32

Tell = Callable[[float, str], None]


class LoadedSource:
    """Satisfies `builder.Source`. Holds PyTorch's program until `forget`."""

    def __init__(self, spec: JobSpec, path: Path, work: Path, tell: Tell) -> None:
        """Load it. Raises InvalidError when it does not load."""
        self.signature: Signature = spec.signature
        self.versions: dict[str, str] = {}
        self.ranges: tuple[LearnedRange, ...] = ()  # where passes learned them
        self.notes: tuple[str, ...] = ()  # what was done to the source, for each build's findings
        self._format, self._seed = spec.source_format, spec.seed
        self._onnx = self._pushed = work / "fp32.onnx"
        self._why_not = ""
        self._path = path
        self._tell = tell
        self._program: TorchModel | None = None
        match spec.source_format:
            case ModelFormat.TORCH_EXPORT:
                tell(2, "loading")
                self._program = TorchModel(path, spec.signature)
                self.versions |= torch_versions()
            case ModelFormat.ONNX:
                tell(5, "loading")
                check_exported(path, spec.signature)
                self._pushed = path
                note = raise_opset(path, self._onnx, spec.signature)
                self.notes = (note,) if note else ()

    def onnx(self) -> Path:
        """See `builder.Source`: exported once, also where that fails."""
        if self._why_not:
            raise InvalidError(*self._why_not.splitlines())
        if not self._onnx.exists():
            self._tell(10, "exporting")
            try:
                export_onnx(self.torch(), self._onnx)
            except InvalidError as error:
                self._why_not = error.text()
                self._onnx.unlink(missing_ok=True)
                raise
        return self._onnx

    def torch(self) -> TorchModel:
        """See `builder.Source`."""
        if self._program is None and self._format is ModelFormat.TORCH_EXPORT:
            # It was freed. One of its own for who quantises it, which frees it again.
            return TorchModel(self._path, self.signature)
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
        return self._program or OnnxSession(self._pushed, self.signature)

    def likeness(
        self, built: Runner, rows: Rows | None, go_on: Callable[[int], bool]
    ) -> evaluate.Likeness:
        """How a float build answers beside the source."""
        return evaluate.compare_runs(
            self.runner(),
            built,
            # Row by row: both are loaded here, and large inputs take memory by the batch.
            self.feeds(rows, LIKENESS_ROWS, size=1),
            lambda done: done < LIKENESS_ROWS and go_on(done),
        )

    def feeds(self, rows: Rows | None, count: int, size: int = 0) -> Iterator[Feed]:
        """Calls over a dataset's rows, or over generated ones where there is none."""
        if rows is not None:
            return rows.feeds(size)
        return sample_feeds(self.signature, count, self._seed)

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
