"""`lighterman-agent run` in which one number among a model's answers is a segment fault.

    python -m tests.support.fragile_agent

No model makes the runtime crash on purpose; so the crash is made here, in the test's own process,
in the thread and under the call that the runtime has.
"""

import ctypes
from collections.abc import Mapping

import numpy as np

from agent.__main__ import main
from agent.domain.tensor import Tensor
from agent.runtime.onnxruntime import OnnxRuntimeBackend

DEADLY = 666.0


class FragileBackend(OnnxRuntimeBackend):
    """Reads from address 0 once an answer holds the number."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer; then perhaps die."""
        found = super().run(inputs)
        if any((np.frombuffer(t.data, np.float32) == DEADLY).any() for t in found.values()):
            ctypes.string_at(0)
        return found


if __name__ == "__main__":
    import agent.runtime.onnxruntime

    vars(agent.runtime.onnxruntime)["OnnxRuntimeBackend"] = FragileBackend
    raise SystemExit(main(["run"]))
