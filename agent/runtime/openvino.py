"""OpenVINO behind the backend door: CPU, GPU or NPU. Imported library: only inside `load`.

Refuses containers that are not whole, and compiled models of any other key than this device's. A
device that is asked for and is not there is said, and the next one taken. On the CPU it infers in
the thread that asks, whose CPU time then tells whether it was starved; no call can be called off.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from agent.domain.tensor import DType, Signature, Tensor, TensorSpec
from agent.errors import LoadError
from agent.runtime.arrays import arrays_of, tensor_of
from agent.runtime.backend import Backend, Options
from agent.runtime.compiled import CompiledCache, instructions
from agent.runtime.openvino_devices import (
    CPU,
    NPU,
    choose,
    facts_of,
    one_row,
    properties_of,
    said_of,
)
from agent.runtime.openvino_ir import open_container
from agent.runtime.parts import in_parts

_DTYPES = {"boolean": DType.BOOL, "u8": DType.UINT8, "u16": DType.UINT16, "u32": DType.UINT32,
    "u64": DType.UINT64, "i8": DType.INT8, "i16": DType.INT16, "i32": DType.INT32,
    "i64": DType.INT64, "f16": DType.FP16, "f32": DType.FP32, "f64": DType.FP64}  # fmt: skip


def load(path: str, options: Options) -> Backend:
    """Open a build; LoadError says why not.

    Options: `intra_op_threads` (1), `cache_dir`, `digest`; `device` (CPU), of CPU, GPU and NPU in
    the order of preference; `static` (false): compile for one row and give rows one by one, which
    an NPU always wants.
    """
    return OpenVinoBackend(_library(), path, options)


def shared_key(path: str, options: Options) -> dict[str, str]:
    """All that the compiled build depends on beside its digest: see `registry.Sharing`."""
    precision, _, _ = open_container(path)
    library = _library()
    return _how(library, library.Core(), precision, options).key


def _library() -> Any:
    # Without what reports its use to its makers, and the converters, nine megabytes.
    for name in ("openvino_telemetry", "openvino.tools.ovc"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        hint = "pip install 'lighterman[openvino]'"
        raise LoadError(f"runtime 'openvino' is not installed ({error})", hint) from error
    return openvino


class _How(NamedTuple):
    """How a build is compiled here, and the key of what comes of it."""

    device: str
    absent: list[str]
    wanted: dict[str, Any]
    static: bool
    key: dict[str, str]


def _how(library: Any, core: Any, precision: str, options: Options) -> _How:
    device, absent = choose(core, str(options.get("device", CPU)))
    wanted = properties_of(device, precision, int(options.get("intra_op_threads", 1)))
    static = device == NPU or bool(options.get("static", False))
    key = {"openvino": library.get_version(), "cpu": instructions(), "wanted": str(wanted),
        **facts_of(core, device, static)}  # fmt: skip
    return _How(device, absent, wanted, static, key)


class OpenVinoBackend:
    """One compiled model. Inputs that can be written are read in place; outputs are copies."""

    def __init__(self, library: Any, path: str, options: Options) -> None:
        # The library reads the weights where they lie: they have to live as long as the model.
        precision, graph, self._weights = open_container(path)
        cache, core = CompiledCache(options), library.Core()
        how = _how(library, core, precision, options)
        self._device, self._absent, wanted, static, key = how
        found: dict[str, Any] = {}

        def compile_here() -> Any:
            weights = library.Tensor(self._weights, shared_memory=True)
            read = core.read_model(graph, weights)
            if static:
                read.reshape({port: one_row(port.get_partial_shape()) for port in read.inputs})
            model = core.compile_model(read, self._device, wanted)
            found["blob"] = model.export_model().getvalue()
            return model

        try:
            self._model: Any = cache.bring(
                key, lambda kept: core.import_model(kept, self._device, wanted)
            )
            self._model = self._model or compile_here()
            signature = Signature(_specs(self._model.inputs), _specs(self._model.outputs))
            self._signature = (
                _of_graph(core, graph, self._weights, library) if static else signature
            )
        except LoadError:
            raise
        # Its exceptions have no common base below Exception.
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise LoadError(f"openvino cannot load {path}: {words}") from error
        if "blob" in found:
            cache.keep(key, found["blob"])
        self._by_row = static
        self._idle: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; each call that runs beside others has a request of its own."""
        arrays = arrays_of(inputs)
        if self._by_row:
            specs_of = [(spec.name, spec.dtype, spec.shape) for spec in self._signature.inputs]
            found = in_parts(specs_of, arrays, 1, self._infer)
        else:
            found = self._infer(arrays)
        specs = zip(self._signature.outputs, found, strict=True)
        return {spec.name: tensor_of(spec.name, spec.dtype, array) for spec, array in specs}

    def _infer(self, arrays: Mapping[str, Any]) -> list[Any]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        found = request.infer(arrays, share_inputs=True).to_tuple()
        self._idle.append(request)
        return list(found)

    def signature(self) -> Signature:
        """Inputs and outputs as the file names them."""
        return self._signature

    def spent_s(self, thread: int) -> float:
        """What an accelerator computes is work for as long as it takes."""
        return 0.0 if self._device == CPU else float("inf")

    def remarks(self) -> tuple[str, ...]:
        """Devices that were asked for and are not there."""
        return said_of(self._absent, self._device)

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


def _of_graph(core: Any, graph: Any, weights: Any, library: Any) -> Signature:
    """The signature as the file has it, before it was made static."""
    read = core.read_model(graph, library.Tensor(weights, shared_memory=True))
    return Signature(_specs(read.inputs), _specs(read.outputs))


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    def one(port: Any) -> TensorSpec:
        kind = port.get_element_type().get_type_name()
        if kind not in _DTYPES:
            raise LoadError(f"{port.get_any_name()} is {kind}, which has no buffer form here")
        axes = tuple(a.get_length() if a.is_static else None for a in port.get_partial_shape())
        return TensorSpec(port.get_any_name(), _DTYPES[kind], axes)

    return tuple(one(port) for port in ports)
