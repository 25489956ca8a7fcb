"""TVM on the build side: machine code for one architecture, for this one or compiled across.

The library is imported only inside the functions. Where the worker is of another architecture, ONNX
Runtime answers for the same graph. Refuses dynamic axes but the first.
"""

import platform
import shutil
import tempfile
import threading
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from controller.domain.build import Precision, Recipe
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import LackingError, Order, Runner, Source
from controller.optimize.packed import pack, unpack
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array
from controller.optimize.stand_in import NAME, keep_graph, open_graph

KIND = "apache-tvm"
MEDIA_TYPE = "application/vnd.lighterman.tvm"
EXTRA = "tvm"
NEEDS: Mapping[Precision, tuple[str, ...]] = {Precision.FP32: ("tvm",)}
# What links for an architecture that is not the worker's own.
LINKERS = {"aarch64": "aarch64-linux-gnu-gcc", "x86_64": "x86_64-linux-gnu-gcc"}


def STAND_IN(recipe: Recipe) -> str:  # noqa: N802 - of a module it is a name, here it depends
    """Who answers on this worker for a build of the recipe; empty: it does itself."""
    return NAME if _arch(recipe) != platform.machine() else ""


def _arch(recipe: Recipe) -> str:
    return str(recipe.quantization.get("arch", platform.machine()))


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the container that ships. Its ``quantization`` may name ``arch`` and ``cpu``."""
    wanted = order.recipe.quantization
    arch = _arch(order.recipe)
    if arch not in LINKERS:
        raise InvalidError(f"TVM's builds are for {' and '.join(LINKERS)}, not {arch!r}")
    if any(isinstance(axis, str) for spec in source.signature.inputs for axis in spec.shape[1:]):
        raise InvalidError("TVM's builds have a dynamic first axis alone")
    payload = _compile(source, arch, str(wanted.get("cpu", "")))
    target.write_bytes(pack(KIND, source.signature, {"arch": arch}, payload))
    if arch != platform.machine():
        keep_graph(target, source.onnx().read_bytes())


def _compile(source: Source, arch: str, cpu: str) -> bytes:
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    linker = "gcc" if arch == platform.machine() else LINKERS[arch]
    if shutil.which(linker) is None:
        raise LackingError(f"this worker has no {linker}", f"install it to link for {arch}")
    inputs = source.signature.inputs
    rows = {s.name: [1 if isinstance(a, str) else a for a in s.shape] for s in inputs}
    try:
        graph = from_onnx(onnx.load(source.onnx()), rows, keep_params_in_input=False)
        kind: dict[str, Any] = {"kind": "llvm", "mtriple": f"{arch}-linux-gnu"}
        made = tvm.compile(graph, target=tvm.target.Target(kind | ({"mcpu": cpu} if cpu else {})))
        with tempfile.TemporaryDirectory() as folder:
            # Without a build id the same program gives the same bytes.
            options = ["-shared", "-fPIC", "-Wl,--build-id=none", "-s"]
            made.export_library(f"{folder}/build.so", cc=linker, options=options)
            return Path(folder, "build.so").read_bytes()
    except Exception as error:
        keep_raw(error)
        raise InvalidError(f"TVM cannot compile the model{first_words(str(error))}") from error


def open_build(path: Path, signature: Signature) -> Runner:
    """Load a container as a device would, or what stands in for it."""
    about, payload = unpack(path, KIND)
    if about["arch"] != platform.machine():
        return open_graph(path, signature)
    return TvmSession(payload)


def versions() -> Mapping[str, str]:
    """What was used."""
    return {name: metadata.version(name) for name in ("apache-tvm", "onnx")}


class TvmSession:
    """A loaded program; calls are row by row, as on a device."""

    def __init__(self, payload: bytes) -> None:
        import tvm
        from tvm import relax

        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(payload)
            file.flush()
            module = tvm.runtime.load_module(file.name)
        self._tvm, self._machine = tvm, relax.VirtualMachine(module, tvm.cpu())
        self._lock = threading.Lock()  # a machine runs one call at a time

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call. Raises InvalidError when the program fails."""
        try:
            with self._lock:
                count = range(len(inputs[0]))
                rows = [self._row([one[i : i + 1] for one in inputs]) for i in count]
        except Exception as error:
            keep_raw(error)
            raise InvalidError(f"TVM fails{first_words(str(error))}") from error
        return [np.concatenate(those) for those in zip(*rows, strict=True)]

    def _row(self, inputs: list[Array]) -> list[Array]:
        found = self._machine["main"](*(self._tvm.runtime.tensor(one.copy()) for one in inputs))
        several = [found] if hasattr(found, "numpy") else list(found)
        return [np.asarray(one.numpy()) for one in several]
