"""OpenVINO behind the backend door, on the CPU. Imported library: only inside `load`.

Refuses containers that are not whole, and compiled models that it did not keep itself. Infers in
the thread that asks, whose CPU time then tells whether it was starved; such a call cannot be called
off.
"""

import sys
from collections.abc import Mapping
from typing import Any

from agent.domain.tensor import DType, Signature, Tensor, TensorSpec
from agent.errors import LoadError
from agent.runtime.arrays import arrays_of, tensor_of
from agent.runtime.backend import Backend, Options
from agent.runtime.compiled import CompiledCache, instructions
from agent.runtime.openvino_ir import open_container

_DTYPES = {"boolean": DType.BOOL, "u8": DType.UINT8, "u16": DType.UINT16, "u32": DType.UINT32,
    "u64": DType.UINT64, "i8": DType.INT8, "i16": DType.INT16, "i32": DType.INT32,
    "i64": DType.INT64, "f16": DType.FP16, "f32": DType.FP32, "f64": DType.FP64}  # fmt: skip


def load(path: str, options: Options) -> Backend:
    """Open a build; options: `intra_op_threads` (1), `cache_dir`, `digest`. LoadError says why."""
    # Without what reports its use to its makers, and the converters, nine megabytes.
    for name in ("openvino_telemetry", "openvino.tools.ovc"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        hint = "pip install 'lighterman[openvino]'"
        raise LoadError(f"runtime 'openvino' is not installed ({error})", hint) from error
    return OpenVinoBackend(openvino, path, options)


class OpenVinoBackend:
    """One compiled model. Inputs that can be written are read in place; outputs are copies."""

    def __init__(self, library: Any, path: str, options: Options) -> None:
        # The library reads the weights where they lie: they have to live as long as the model.
        precision, graph, self._weights = open_container(path)
        wanted = {"INFERENCE_NUM_THREADS": int(options.get("intra_op_threads", 1)),
            "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": precision}  # fmt: skip
        key = {"openvino": library.get_version(), "cpu": instructions(), "wanted": str(wanted)}
        cache, core = CompiledCache(options), library.Core()

        def compile_here() -> Any:
            weights = library.Tensor(self._weights, shared_memory=True)
            model = core.compile_model(core.read_model(graph, weights), "CPU", wanted)
            cache.keep(key, model.export_model().getvalue())
            return model

        try:
            self._model: Any = cache.bring(key, lambda kept: core.import_model(kept, "CPU", wanted))
            self._model = self._model or compile_here()
        # Its exceptions have no common base below Exception.
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise LoadError(f"openvino cannot load {path}: {words}") from error
        self._signature = Signature(_specs(self._model.inputs), _specs(self._model.outputs))
        self._idle: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; each call that runs beside others has a request of its own."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        found = request.infer(arrays_of(inputs), share_inputs=True).to_tuple()
        self._idle.append(request)
        specs = zip(self._signature.outputs, found, strict=True)
        return {spec.name: tensor_of(spec.name, spec.dtype, array) for spec, array in specs}

    def signature(self) -> Signature:
        """Inputs and outputs as the file names them."""
        return self._signature

    def rest(self) -> None:
        """Free what only inferences need."""
        self._idle.clear()
        self._model.release_memory()

    def call_off(self, thread: int) -> None:
        """Not offered: only a call in a thread of the library's own could be cancelled."""

    def close(self) -> None:
        """Drop the model and then the weights that it reads."""
        self._idle.clear()
        self._model = self._weights = None


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    def one(port: Any) -> TensorSpec:
        kind = port.get_element_type().get_type_name()
        if kind not in _DTYPES:
            raise LoadError(f"{port.get_any_name()} is {kind}, which has no buffer form here")
        axes = tuple(a.get_length() if a.is_static else None for a in port.get_partial_shape())
        return TensorSpec(port.get_any_name(), _DTYPES[kind], axes)

    return tuple(one(port) for port in ports)
