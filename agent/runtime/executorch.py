"""ExecuTorch behind the backend door, by XNNPACK on the CPU. Imported library: only inside `load`.

Its program is data: a graph and weights, no code. Refuses what is no container of our builders.
"""

import threading
from collections.abc import Mapping
from typing import Any

from agent.runtime.backend import Backend, Options
from agent.runtime.packed import Packed, unpack
from agent.runtime.parts import in_parts
from agent.runtime.plain import open_as_backend

KIND = "executorch"


def load(path: str, options: Options) -> Backend:
    """Open a build. LoadError says why not."""
    return open_as_backend(KIND, open_plain, path, options)


def open_plain(path: str, options: Options) -> "ExecuTorch":
    """Open a build; it takes no options."""
    packed = unpack(path, KIND)
    import torch
    from executorch.runtime import Runtime

    return ExecuTorch(torch, Runtime.get().load_program(packed.payload), packed)


class ExecuTorch:
    """One loaded method; it answers one call at a time."""

    def __init__(self, torch: Any, program: Any, packed: Packed) -> None:
        self.inputs, self.outputs = packed.inputs, packed.outputs
        self._most = int(packed.about["max_batch"])
        self._lock = threading.Lock()
        # The method reads from the program, which has to live as long.
        self._torch, self._program = torch, program
        self._method: Any = program.load_method("forward")

    def run(self, arrays: Mapping[str, Any]) -> list[Any]:
        """Infer once; more rows than the method was planned for in parts."""
        return in_parts(self.inputs, arrays, self._most, self._infer)

    def _infer(self, arrays: Mapping[str, Any]) -> list[Any]:
        given = [self._torch.from_numpy(arrays[name].copy()) for name, _, _ in self.inputs]
        with self._lock:
            # Answers lie in memory of the method that the next call overwrites.
            return [one.numpy().copy() for one in self._method.execute(given)]

    def close(self) -> None:
        """Free it."""
        self._method = self._program = None
