"""Real ONNX models and real hosts that serve them, for tests. Nothing of a runtime is faked.

Every model takes `x[batch,4]` FP32 and gives `y[batch,4]` FP32; a name says how it behaves.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.clock import SystemClock, thread_cpu_s
from agent.domain.desired import DesiredModel
from agent.domain.ports import Clock, Decision, InferResult
from agent.domain.probation import RowState, Trial, begin
from agent.domain.tensor import DType, Tensor
from agent.runtime.backend import Backend, Options
from agent.runtime.host import ModelHost
from agent.runtime.registry import open_backend
from tests.support.releases import POLICY, digest_of, local_rung, other_rung, release

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "FP32", "shape": ["batch", 4]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": ["batch", 4]}],
}
# Large enough that one product of two such matrices takes tens of milliseconds on one thread.
_SLOW_SIDE = 1024


def scaled(factor: float) -> bytes:
    """y = factor · x."""
    k = numpy_helper.from_array(np.array([factor], np.float32), "k")
    return _model([helper.make_node("Mul", ["x", "k"], ["y"])], [k])


def heavy_file(factor: float, size_bytes: int, seed: int) -> bytes:
    """y = factor · x, in a file of at least so many bytes that cannot be compressed."""
    k = numpy_helper.from_array(np.array([factor], np.float32), "k")
    ballast = np.random.default_rng(seed).bytes(size_bytes)
    unused = numpy_helper.from_array(np.frombuffer(ballast, np.uint8), "ballast")
    return _model([helper.make_node("Mul", ["x", "k"], ["y"])], [k, unused])


def slow(factor: float, products: int) -> bytes:
    """y = factor · x after so many honest products of 1024 x 1024 matrices."""
    k = numpy_helper.from_array(np.array([factor], np.float32), "k")
    axes = numpy_helper.from_array(np.array([0, 1], np.int64), "axes")
    side = numpy_helper.from_array(np.array([_SLOW_SIDE, _SLOW_SIDE], np.int64), "side")
    zero = numpy_helper.from_array(np.array([0.0], np.float32), "zero")
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Expand", ["mean", "side"], ["m0"]),
    ]
    for i in range(products):
        nodes.append(helper.make_node("MatMul", [f"m{i}", "m0"], [f"n{i}"]))
        nodes.append(helper.make_node("Tanh", [f"n{i}"], [f"m{i + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"m{products}", "axes"], ["end"], keepdims=1),
        helper.make_node("Mul", ["end", "zero"], ["nothing"]),
        helper.make_node("Mul", ["x", "k"], ["scaled"]),
        helper.make_node("Add", ["scaled", "nothing"], ["y"]),
    ]
    return _model(nodes, [k, axes, side, zero])


def hungry(factor: float, wanted_bytes: int) -> bytes:
    """y = factor · x, with so much memory in between."""
    constants = [
        numpy_helper.from_array(np.array([factor], np.float32), "k"),
        numpy_helper.from_array(np.array([wanted_bytes // 4], np.int64), "many"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "many"], ["wide"]),
        helper.make_node("ReduceMean", ["wide"], ["narrow"], keepdims=0),
        helper.make_node("Sub", ["narrow", "narrow"], ["nothing"]),
        helper.make_node("Mul", ["x", "k"], ["scaled"]),
        helper.make_node("Add", ["scaled", "nothing"], ["y"]),
    ]
    return _model(nodes, constants)


def not_a_number() -> bytes:
    """y = NaN, but 0 for an input of zeros."""
    zero = numpy_helper.from_array(np.array([0.0], np.float32), "zero")
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Sub", ["zero", "a"], ["negative"]),
        helper.make_node("Sqrt", ["negative"], ["y"]),
    ]
    return _model(nodes, [zero])


def crashing() -> bytes:
    """Zeros for zeros; any other input makes the runtime raise (an index out of range)."""
    table = numpy_helper.from_array(np.zeros((1,), np.float32), "table")
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    return _model(nodes, [table])


def _model(nodes: list[Any], constants: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@cache
def products_for(seconds: float) -> int:
    """How many products make `slow` take at least so much CPU time on this machine, by measuring.

    CPU time: on a busy machine the clock on the wall would make the model too fast to be slow.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(slow(1.0, 4), options)
    feed = {"x": np.ones((1, 4), np.float32)}
    best = float("inf")
    for _ in range(4):
        began = thread_cpu_s()
        session.run(None, feed)
        best = min(best, thread_cpu_s() - began)
    return int(seconds / (best / 4)) + 1


def make_release(
    version: str,
    rungs: Mapping[str, bytes],
    *,
    model: str = "photo",
    memory_bytes: int = 1_000_000,
    remote: str | None = None,
    off: bool = False,
    runtime: str = "onnxruntime",
    **policy: Any,
) -> DesiredModel:
    """A release with these local rungs, heavy to light; `remote` is an endpoint put first."""
    ladder = [
        {**local_rung(name, data), "memory_bytes": memory_bytes, "runtime": runtime}
        for name, data in rungs.items()
    ]
    if runtime != "onnxruntime":
        for rung in ladder:
            rung["target"]["media_type"] = f"application/vnd.lighterman.{runtime}"
    if remote is not None:
        ladder.insert(0, other_rung("edge", "remote", remote))
    if off:
        ladder.append(other_rung("off", "off"))
    return release(
        version, model=model, signature=SIGNATURE, ladder=ladder, policy={**POLICY, **policy}
    )


def tensor(*values: float) -> Tensor:
    """One row of input."""
    data = np.array([values or (1.0, 2.0, 3.0, 4.0)], np.float32)
    return Tensor("x", DType.FP32, (1, 4), data.tobytes())


def values(result: InferResult) -> list[float]:
    """The numbers of the only output."""
    return [float(v) for v in np.frombuffer(result.outputs[0].data, np.float32)]


class ScriptedClock:
    """Time that moves only when it is told to; the thread's CPU time moves with it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.cpu_s = 0.0

    def now(self) -> datetime:
        """Wall time."""
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        """Seconds."""
        return self.seconds

    def thread_cpu(self) -> float:
        """CPU seconds."""
        return self.cpu_s

    def wait(self, seconds: float) -> None:
        """Let time pass without using the CPU."""
        self.seconds += seconds

    def work(self, seconds: float, cpu_share: float = 1.0) -> None:
        """Let time pass while a share of a CPU is used."""
        self.seconds += seconds
        self.cpu_s += seconds * cpu_share


class ScriptedRuntime:
    """A runtime whose files say how long they take: `b"0.150"`, and with what share of a CPU.

    Only for traces of many cases; that real models behave so is tested with real ones.
    """

    def __init__(self, clock: ScriptedClock) -> None:
        self.clock = clock
        self.cpu_share = 1.0
        self.service_s: dict[str, float] = {}

    def open(self, runtime: str, path: str, options: Options) -> Backend:
        """Load a file; its text is `NAME SECONDS`."""
        name, seconds = Path(path).read_text().split()
        self.service_s.setdefault(name, float(seconds))
        return _Scripted(self, name)


class _Scripted:
    def __init__(self, runtime: ScriptedRuntime, name: str) -> None:
        self._runtime = runtime
        self._name = name

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        runtime = self._runtime
        runtime.clock.work(runtime.service_s[self._name], runtime.cpu_share)
        return {"y": replace(inputs["x"], name="y")}

    def signature(self) -> None:
        return None

    def call_off(self, thread: int) -> None:
        return None

    def close(self) -> None:
        return None


class Bench:
    """A host whose releases lie in a folder, and everything it decided."""

    def __init__(
        self,
        folder: Path,
        *,
        memory_available: Callable[[], int | None] = lambda: 1 << 40,
        clock: Clock | None = None,
        open_backend: Callable[[str, str, Options], Backend] = open_backend,
        thread_cpu: Callable[[], float] = thread_cpu_s,
        batching: bool = False,
    ) -> None:
        self.folder = folder
        self.clock = clock or SystemClock()
        self.decisions: list[Decision] = []
        self._lock = threading.Lock()
        self.host = ModelHost(
            self.clock,
            self._decided,
            memory_available,
            open_backend=open_backend,
            thread_cpu=thread_cpu,
            batching=batching,
        )

    def _decided(self, decision: Decision) -> None:
        with self._lock:
            self.decisions.append(decision)

    def paths(self, rungs: Mapping[str, bytes]) -> dict[str, str]:
        """Write the files of some rungs; gives them by digest."""
        found = {}
        for data in rungs.values():
            digest = digest_of(data)
            path = self.folder / digest.removeprefix("sha256:")
            path.write_bytes(data)
            found[digest] = str(path)
        return found

    def load(self, version: str, rungs: Mapping[str, bytes], **options: Any) -> DesiredModel:
        """Load and warm a release beside what serves."""
        made = make_release(version, rungs, **options)
        self.host.load(made, self.paths(rungs))
        self.host.warm(made.model, made.slot_id)
        return made

    def serve(
        self,
        version: str,
        rungs: Mapping[str, bytes],
        trial: Trial = Trial.COMMITTED,
        fallback: DesiredModel | None = None,
        row: RowState | None = None,
        **options: Any,
    ) -> DesiredModel:
        """Load, warm and swap to a release."""
        made = self.load(version, rungs, **options)
        back = None if fallback is None else fallback.slot_id
        start = row or begin(self.clock.monotonic())
        self.host.swap(made.model, made.slot_id, trial, start, back)
        return made

    def infer(self, *numbers: float, model: str = "photo") -> InferResult:
        """One request."""
        return self.host.infer(model, [tensor(*numbers)])
