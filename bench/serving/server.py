"""`python -m bench.serving.server CORE`: a tiny model behind the agent's host and both roads.

The agent's own model host and servers without the rest of the agent. Prints its addresses as JSON.
For each line on stdin, a number, it swaps so many versions (loads, warms, swaps in, frees the one
before, heavy and light in turn) and prints what came of it.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from agent.clock import SystemClock
from agent.domain.desired import Activation, DesiredModel, RungKind, RungSpec, Target
from agent.domain.policy import Policy
from agent.domain.ports import Decision
from agent.domain.probation import Trial, begin
from agent.domain.tensor import DType, Signature, TensorSpec
from agent.process import rss_bytes, tune_memory
from agent.runtime.host import ModelHost
from agent.serve.http_server import HttpServer
from agent.serve.server import InferenceServer

MODEL = "tiny"
SIDE = 4
# Load on one core makes samples slow; a version that steps back would stop the count.
_PATIENT = Policy(slow_threshold_s=60.0)
# Hidden units: some microseconds, and some tens.
WIDTHS = (("heavy", 512), ("light", 32))


def write_mlp(path: Path, width: int) -> None:
    """A perceptron of two layers, x[batch,4] to y[batch,4]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(width)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w0", (SIDE, width)), ("w1", (width, SIDE)))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w1"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIDE])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


class Server:
    """One model, of which there is always one version more."""

    def __init__(self, folder: Path) -> None:
        self.decisions: list[Decision] = []
        self._clock = SystemClock()
        self._host = ModelHost(self._clock, self.decisions.append, lambda: None)
        self._files: dict[str, Path] = {}
        self._rungs: list[RungSpec] = []
        for name, width in WIDTHS:
            path = folder / name
            write_mlp(path, width)
            self._add(name, path)
        self._number = 0
        self._slot = ""
        self.swap()
        self._grpc = InferenceServer(self._host, self._clock, "bench", "127.0.0.1:0")
        self._http = HttpServer(self._grpc.desk, "127.0.0.1:0")
        self.addresses = {"grpc": self._grpc.start(), "http": self._http.start()}

    def _add(self, name: str, path: Path) -> None:
        data = path.read_bytes()
        target = Target("sha256:" + hashlib.sha256(data).hexdigest(), len(data), "application/onnx")
        self._files[target.digest] = path
        self._rungs.append(
            RungSpec(
                name=name, kind=RungKind.LOCAL, variant=name, runtime="onnxruntime",
                recipe="onnxruntime-fp32", memory_bytes=1_000_000, target=target,
            )
        )  # fmt: skip

    def swap(self) -> None:
        """Bring the next version, with the other rung alone, and free the one before."""
        self._number += 1
        release = self._release(f"1.0.{self._number}", self._rungs[self._number % 2])
        paths = {digest: str(path) for digest, path in self._files.items()}
        self._host.load(release, paths)
        self._host.warm(MODEL, release.slot_id)
        now = self._clock.monotonic()
        self._host.swap(MODEL, release.slot_id, Trial.COMMITTED, begin(now), None)
        if self._slot:
            self._host.unload(MODEL, self._slot)
        self._slot = release.slot_id

    def _release(self, version: str, rung: RungSpec) -> DesiredModel:
        return DesiredModel(
            model=MODEL,
            version=version,
            rollout="r-bench",
            activation=Activation.SERVE,
            signature=Signature(
                (TensorSpec("x", DType.FP32, ("batch", SIDE)),),
                (TensorSpec("y", DType.FP32, ("batch", SIDE)),),
            ),
            labels=(),
            params={},
            policy=_PATIENT,
            rungs=(rung,),
        )

    def swaps(self, count: int) -> dict[str, Any]:
        """So many, and what went wrong."""
        failures = []
        began = perf_counter()
        for _ in range(count):
            try:
                self.swap()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed swap
                failures.append(f"{type(error).__name__}: {error}")
        took_s = perf_counter() - began
        return {
            "failures": failures,
            "decisions": len(self.decisions),
            "took_s": took_s,
            "rss_mb": (rss_bytes() or 0) / 1e6,
        }

    def stop(self) -> None:
        """End it."""
        self._http.stop()
        self._grpc.stop()
        self._host.close()


def main() -> int:
    """See the module."""
    tune_memory()
    os.sched_setaffinity(0, {int(sys.argv[1])})
    with tempfile.TemporaryDirectory(prefix="lighterman-bench-") as folder:
        server = Server(Path(folder))
        print(json.dumps({"pid": os.getpid(), **server.addresses}), flush=True)
        for line in sys.stdin:
            print(json.dumps(server.swaps(int(line))), flush=True)
        server.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
