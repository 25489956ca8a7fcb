"""ONNX Runtime behind the backend door. Imported library: only inside `load`.

Refuses custom operators (none are registered) and element types that have no buffer form.
One intra-op thread: several requests beat one wide one on small devices, and the CPU time of the
calling thread then tells whether it was starved.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from agent.domain.tensor import DType, Signature, Tensor, TensorSpec
from agent.errors import LoadError
from agent.runtime.arrays import arrays_of, tensor_of
from agent.runtime.backend import Backend, Options

_DTYPES = {
    "tensor(bool)": DType.BOOL,
    "tensor(uint8)": DType.UINT8,
    "tensor(uint16)": DType.UINT16,
    "tensor(uint32)": DType.UINT32,
    "tensor(uint64)": DType.UINT64,
    "tensor(int8)": DType.INT8,
    "tensor(int16)": DType.INT16,
    "tensor(int32)": DType.INT32,
    "tensor(int64)": DType.INT64,
    "tensor(float16)": DType.FP16,
    "tensor(float)": DType.FP32,
    "tensor(double)": DType.FP64,
    "tensor(bfloat16)": DType.BF16,
    "tensor(string)": DType.BYTES,
}
# What ONNX calls bfloat16: numpy has no word for it, so those travel as the library's own values.
_BFLOAT16 = 16


def load(path: str, options: Options) -> Backend:
    """Open a build; options: `intra_op_threads` (1). LoadError says why not."""
    try:
        import onnxruntime
    except ImportError as error:
        raise LoadError(
            f"runtime 'onnxruntime' is not installed ({error})",
            "pip install 'lighterman[onnxruntime]'",
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(options.get("intra_op_threads", 1))
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle workers must not burn what other processes of a small device need.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            path, sess_options=settings, providers=["CPUExecutionProvider"]
        )
    # Its exceptions have no common base below Exception, by build and version.
    except Exception as error:
        raise LoadError(f"onnxruntime cannot load {path}: {_first_line(error)}") from error
    return OnnxRuntimeBackend(session, onnxruntime.RunOptions, onnxruntime.OrtValue, path)


class OnnxRuntimeBackend:
    """One inference session. Inputs are read in place; outputs are views of its arrays."""

    def __init__(
        self, session: Any, new_options: Callable[[], Any], value_type: Any, path: str
    ) -> None:
        self._session = session
        self._new_options = new_options
        self._ortvalue = value_type
        # By thread: what stops its run, between two nodes of the graph.
        self._running: dict[int, Any] = {}
        self._signature = Signature(
            tuple(_spec(node, path) for node in session.get_inputs()),
            tuple(_spec(node, path) for node in session.get_outputs()),
        )
        self._names = [spec.name for spec in self._signature.outputs]
        specs = (*self._signature.inputs, *self._signature.outputs)
        self._has_bf16 = any(spec.dtype is DType.BF16 for spec in specs)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; the session itself is safe for many threads."""
        if self._has_bf16:
            return self._run_values(inputs)
        feed = arrays_of(inputs)
        thread = threading.get_ident()
        options = self._running[thread] = self._new_options()
        try:
            arrays = self._session.run(self._names, feed, options)
        finally:
            del self._running[thread]
        return {
            spec.name: tensor_of(spec.name, spec.dtype, array)
            for spec, array in zip(self._signature.outputs, arrays, strict=True)
        }

    def _run_values(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`run` for models with bfloat16, which the library takes only so."""
        feed = bf16_values(inputs, self._ortvalue)
        thread = threading.get_ident()
        options = self._running[thread] = self._new_options()
        try:
            values = self._session.run_with_ort_values(self._names, feed, options)
        finally:
            del self._running[thread]
        return {
            spec.name: bf16_tensor(spec, value)
            for spec, value in zip(self._signature.outputs, values, strict=True)
        }

    def signature(self) -> Signature:
        """Inputs and outputs as the file names them."""
        return self._signature

    def rest(self) -> None:
        """Empty the pool: only a run can do it, when it ends."""
        options = self._new_options()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        inputs = {}
        for spec in self._signature.inputs:
            shape = tuple(axis if isinstance(axis, int) else 1 for axis in spec.shape)
            zeros = bytes(prod(shape) * spec.dtype.item_bytes)
            inputs[spec.name] = Tensor(spec.name, spec.dtype, shape, zeros)
        # A model that does not take zeros keeps its pool; one that was closed has none.
        with contextlib.suppress(Exception):
            if self._has_bf16:
                feed = bf16_values(inputs, self._ortvalue)
                self._session.run_with_ort_values(self._names, feed, options)
            else:
                self._session.run(self._names, arrays_of(inputs), options)

    def call_off(self, thread: int) -> None:
        """The run ends at its next node; one that never leaves a node goes on."""
        options = self._running.get(thread)
        if options is not None:
            options.terminate = True

    def close(self) -> None:
        """Drop the session; its memory goes when the last output is dropped."""
        self._session = None


def bf16_values(inputs: Mapping[str, Tensor], value_type: Any) -> dict[str, Any]:
    """Inputs as values of the library, where some of them are bfloat16."""
    import numpy

    found = {}
    for name, tensor in inputs.items():
        if tensor.dtype is DType.BF16:
            bits = numpy.frombuffer(tensor.data, "<u2").reshape(tensor.shape)
            found[name] = value_type.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
        else:
            found[name] = value_type.ortvalue_from_numpy(arrays_of({name: tensor})[name])
    return found


def bf16_tensor(spec: TensorSpec, value: Any) -> Tensor:
    """One output that is a value of the library; bfloat16 is copied out of its memory."""
    if spec.dtype is not DType.BF16:
        return tensor_of(spec.name, spec.dtype, value.numpy())
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), prod(shape) * spec.dtype.item_bytes)
    return Tensor(spec.name, spec.dtype, shape, data)


def _spec(node: Any, path: str) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise LoadError(f"{path}: {node.name} is {node.type}, which has no buffer form here")
    shape = tuple(axis if isinstance(axis, int | str) else None for axis in node.shape)
    return TensorSpec(node.name, dtype, shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
