"""A TorchScript program compiled for one row by `torch.compile`, taken where that pays.

Imports no library: the runtime's file brings it. Compiles before the build serves and never again:
a request of another size is the program's own. Refuses what answers otherwise.
"""

import os
import statistics
import warnings
from pathlib import Path
from typing import Any

from agent.clock import thread_cpu_s
from agent.domain.tensor import DType, Signature
from agent.errors import LoadError
from agent.runtime.arrays import numpy_type
from agent.runtime.backend import Options

WARM_UP_CALLS, MEASURED_CALLS = 3, 11
# Less is within the noise, and the program as it is needs no compiler.
QUICKER = 0.95


class OneRow:
    """What was compiled, or why nothing was taken."""

    def __init__(self) -> None:
        self.remarks: tuple[str, ...] = ()
        self.compiled: Any = None
        self._shapes: list[tuple[int, ...]] = []

    def quickest(self, given: list[Any], program: Any) -> Any:
        """What answers a request of these tensors."""
        if self.compiled is None or [tuple(one.shape) for one in given] != self._shapes:
            return program
        return self.compiled

    def try_it(
        self, torch: Any, converter: Any, program: Any, signature: Signature, options: Options
    ) -> None:
        """Compile and measure; whatever goes wrong is a remark."""
        try:
            said = self._try(torch, converter, program, signature, options)
        # A compiler may fail in any way: the program as it is serves all the same.
        except Exception as error:  # noqa: BLE001
            words = " ".join(str(error).split())[:200] or type(error).__name__
            said = f"torch.compile fails, the program runs as it is: {words}"
        self.remarks = (said,) if said else ()

    def _try(
        self, torch: Any, converter: Any, program: Any, signature: Signature, options: Options
    ) -> str:
        given = _one_row(torch, signature)
        if isinstance(options.get("cache_dir"), str):
            # What it makes is code of this process: kept where nobody else may write.
            kept = Path(str(options["cache_dir"])) / "torch"
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        compiled = _compile(torch, converter, program, given)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            if not _alike(torch, compiled(*given), program(*given)):
                return "torch.compile answers otherwise: the program runs as it is"
            quick, plain = _medians_ms(compiled, program, given)
        if quick > QUICKER * plain:
            return f"torch.compile is not quicker ({quick:.2f} ms, the program {plain:.2f} ms)"
        self._shapes = [tuple(one.shape) for one in given]
        self.compiled = compiled
        return ""


def _one_row(torch: Any, signature: Signature) -> list[Any]:
    """Inputs of one row, of numbers that are no special case. LoadError where axes are open."""
    found = []
    for spec in signature.inputs:
        if any(not isinstance(axis, int) for axis in spec.shape[1:]):
            raise LoadError(f"{spec.name} has more dynamic axes than the first")
        shape = [axis if isinstance(axis, int) else 1 for axis in spec.shape]
        dtype = torch.from_numpy(_empty(spec.dtype)).dtype
        found.append((torch.rand(shape) * 4).to(dtype))
    return found


def _empty(dtype: DType) -> Any:
    import numpy

    return numpy.empty(0, numpy_type(dtype))


def _alike(torch: Any, found: Any, wanted: Any) -> bool:
    return len(found) == len(wanted) and all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-4)
        for one, other in zip(found, wanted, strict=True)
    )


def _medians_ms(first: Any, second: Any, given: list[Any]) -> tuple[float, float]:
    """Of calls in turn, so that what else the device does meets both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(MEASURED_CALLS):
        for call, noted in zip((first, second), times, strict=True):
            began = thread_cpu_s()
            call(*given)
            noted.append(1000 * (thread_cpu_s() - began))
    return statistics.median(times[0]), statistics.median(times[1])


def _compile(torch: Any, converter: Any, module: Any, given: list[Any]) -> Any:
    """The program as a graph again, compiled; what was compiled is never so again while serving."""
    torch.compiler.set_stance("default")
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            graph = converter(module, tuple(given), None).convert().module()
            compiled = torch.compile(graph, dynamic=False)
            for _ in range(WARM_UP_CALLS):
                compiled(*given)
    finally:
        torch.compiler.set_stance("eager_on_recompile")
    return compiled
