"""`python -m bench.agent.swapper FILE CORE`: serves a file and swaps versions of it while asked.

The agent's own model host and inference server, without the rest of the agent: what a swap does to
requests in flight is theirs alone. Each swap loads, warms, swaps and frees, as an update does.
Reads numbers of swaps, one a line; answers each with a line of JSON.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from agent.clock import SystemClock
from agent.domain.desired import Activation, DesiredModel, RungKind, RungSpec, Target
from agent.domain.policy import Policy
from agent.domain.ports import Decision
from agent.domain.probation import Trial, begin
from agent.domain.tensor import DType, Signature, TensorSpec
from agent.process import tune_memory
from agent.runtime.host import ModelHost
from agent.serve.server import InferenceServer
from bench.agent.lite0 import INPUT, SHAPE
from bench.agent.world import MODEL

# Load on one core makes samples slow; a version that steps back would stop the count.
_PATIENT = Policy(slow_threshold_s=60.0)


class Swapper:
    """A host with one model of which there is always one version more."""

    def __init__(self, file: Path) -> None:
        self.decisions: list[Decision] = []
        self._clock = SystemClock()
        self._file = file
        self._digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
        self._host = ModelHost(self._clock, self.decisions.append, lambda: None)
        self._number = 0
        self._slot = ""
        self._server = InferenceServer(self._host, self._clock, "bench", "127.0.0.1:0")
        self.swap()
        self.address = self._server.start()

    def swap(self) -> None:
        """Bring the next version and free the one before."""
        self._number += 1
        release = self._release(f"1.0.{self._number}")
        self._host.load(release, {self._digest: str(self._file)})
        self._host.warm(MODEL, release.slot_id)
        now = self._clock.monotonic()
        self._host.swap(MODEL, release.slot_id, Trial.COMMITTED, begin(now), None)
        if self._slot:
            self._host.unload(MODEL, self._slot)
        self._slot = release.slot_id

    def _release(self, version: str) -> DesiredModel:
        target = Target(self._digest, self._file.stat().st_size, "application/onnx")
        shape = ("batch", *SHAPE[1:])
        return DesiredModel(
            model=MODEL,
            version=version,
            rollout="r-bench",
            activation=Activation.SERVE,
            signature=Signature(
                (TensorSpec(INPUT, DType.FP32, shape),),
                (TensorSpec("scores", DType.FP32, ("batch", 1000)),),
            ),
            labels=(),
            params={},
            rungs=(
                RungSpec("light", RungKind.LOCAL, "light", "onnxruntime", "int8", target=target),
            ),
            policy=_PATIENT,
        )

    def stop(self) -> None:
        """Answer what is in flight, then end."""
        self._server.stop()
        self._host.close()


def main() -> int:
    """Serve and swap until the input ends."""
    file, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    tune_memory()
    swapper = Swapper(Path(file))
    print(json.dumps({"address": swapper.address, "pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        began, failures = time.perf_counter(), []
        for _ in range(int(line)):
            try:
                swapper.swap()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a failed swap
                failures.append(f"{type(error).__name__}: {error}")
        took_s = time.perf_counter() - began
        answer = {"failures": failures, "took_s": took_s, "decisions": len(swapper.decisions)}
        print(json.dumps(answer), flush=True)
    swapper.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
