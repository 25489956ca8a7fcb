"""ONNX Runtime behind the backend door. Imported library: only inside `open_plain`.

On the CPU, or by the execution providers that options name: what is asked for and is not there is
said, and computed on the CPU. Refuses custom operators (none are registered) and element types that
have no buffer form. One intra-op thread: several requests beat one wide one on small devices, and
the CPU time of the calling thread then tells whether it was starved.

In the syntax of Python 3.8 and without imports of the agent: a child under another Python runs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.runtime.backend import Backend, Options

_DTYPES = {
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64", "tensor(int8)": "INT8",
    "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16", "tensor(string)": "BYTES",
}  # fmt: skip
_NUMPY = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2", "BYTES": "O"}
# What ONNX calls bfloat16: numpy has no word for it, so those travel as the library's own values.
_BFLOAT16 = 16
CPU = "CPUExecutionProvider"
_PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def load(path: str, options: Options) -> Backend:
    """Open a build; options as of `open_plain`. LoadError says why not."""
    from agent.runtime.plain import open_as_backend

    return open_as_backend("onnxruntime", open_plain, path, options)


def open_plain(path: str, options: Mapping[str, Any]) -> OnnxRuntime:
    """Open a build. Options: `intra_op_threads` (1); `providers` (cpu), of cpu, cuda and tensorrt
    in the order of preference; `device_id` (0); `gpu_memory_bytes`, `fp16` and `int8` of these;
    `cpu_fallback` (true): whether single nodes may run on the CPU where the accelerator cannot.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(options.get("intra_op_threads", 1))
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle workers must not burn what other processes of a small device need.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    wanted = _wanted(str(options.get("providers", "cpu")))
    there = onnxruntime.get_available_providers()
    chosen = [name for name in wanted if name in there]
    if chosen and not options.get("cpu_fallback", True):
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    else:
        chosen = [*(name for name in chosen if name != CPU), CPU]
    session = onnxruntime.InferenceSession(
        path, sess_options=settings, providers=[(name, _settings(name, options)) for name in chosen]
    )
    # A provider whose libraries are missing is left out by the library without a word.
    absent = [name for name in wanted if name not in session.get_providers()]
    return OnnxRuntime(onnxruntime, session, absent)


def _wanted(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(_PROVIDERS))
    if unknown or not names:
        raise ValueError(f"providers is {text!r}: known are {', '.join(sorted(_PROVIDERS))}")
    return [_PROVIDERS[name] for name in names]


def _settings(provider: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Of a provider, in the library's words; what it compiles is kept with what else is."""
    if provider == CPU:
        return {}
    found = {"device_id": str(int(options.get("device_id", 0)))}
    memory = int(options.get("gpu_memory_bytes", 0))
    if provider == _PROVIDERS["cuda"]:
        # Twice as much each time is what a board with shared memory has not.
        found["arena_extend_strategy"] = "kSameAsRequested"
        if memory:
            found["gpu_mem_limit"] = str(memory)
        return found
    if memory:
        found["trt_max_workspace_size"] = str(memory)
    for key in ("fp16", "int8"):
        if options.get(key, False):
            found[f"trt_{key}_enable"] = "1"
    folder, digest = str(options.get("cache_dir", "")), str(options.get("digest", ""))
    if folder and digest:
        kept = os.path.join(folder, "onnxruntime-tensorrt", digest.rpartition(":")[2][:16])
        os.makedirs(kept, mode=0o700, exist_ok=True)
        for what in ("engine", "timing"):
            found[f"trt_{what}_cache_enable"] = "1"
            found[f"trt_{what}_cache_path"] = kept
    return found


class OnnxRuntime:
    """One inference session; satisfies `plain.Plain`. Inputs are read in place."""

    def __init__(self, library: Any, session: Any, absent: list[str]) -> None:
        self._library, self._session, self._absent = library, session, absent
        self._on_cpu = session.get_providers()[0] == CPU
        # By thread: what stops its run, between two nodes of the graph.
        self._running: dict[int, Any] = {}
        self.inputs = [_spec(node) for node in session.get_inputs()]
        self.outputs = [_spec(node) for node in session.get_outputs()]
        self._names = [name for name, _, _ in self.outputs]
        self._bf16 = {name for name, dtype, _ in (*self.inputs, *self.outputs) if dtype == "BF16"}

    def run(self, arrays: Mapping[str, Any]) -> list[Any]:
        """Infer once; the session itself is safe for many threads."""
        thread = threading.get_ident()
        options = self._running[thread] = self._library.RunOptions()
        try:
            return self._run(arrays, options)
        finally:
            del self._running[thread]

    def _run(self, arrays: Mapping[str, Any], options: Any) -> list[Any]:
        if not self._bf16:
            return self._session.run(self._names, arrays, options)  # type: ignore[no-any-return]
        feed = {name: self._value(name, array) for name, array in arrays.items()}
        found = self._session.run_with_ort_values(self._names, feed, options)
        return [self._array(name, value) for name, value in zip(self._names, found)]

    def _value(self, name: str, array: Any) -> Any:
        """An input as a value of the library: it takes bfloat16 only so."""
        make = self._library.OrtValue
        if name in self._bf16:
            return make.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
        return make.ortvalue_from_numpy(array)

    def _array(self, name: str, value: Any) -> Any:
        """An output; bfloat16 is copied out of the library's memory."""
        import numpy

        if name not in self._bf16:
            return value.numpy()
        shape = tuple(value.shape())
        data = ctypes.string_at(value.data_ptr(), prod(shape) * 2)
        return numpy.frombuffer(data, "<u2").reshape(shape)

    def spent_s(self, thread: int) -> float:
        """What runs on an accelerator is work for as long as it takes."""
        return 0.0 if self._on_cpu else float("inf")

    def remarks(self) -> list[str]:
        """What was asked for and is not there."""
        if not self._absent:
            return []
        used = self._session.get_providers()[0]
        return [f"{' and '.join(self._absent)} not there: {used} computes"]

    def rest(self) -> None:
        """Empty the pool: only a run can do it, when it ends."""
        import numpy

        options = self._library.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        zeros = {
            name: numpy.zeros(
                [axis if isinstance(axis, int) else 1 for axis in axes],
                _NUMPY.get(dtype, dtype.lower()),
            )
            for name, dtype, axes in self.inputs
        }
        # A model that does not take zeros keeps its pool; one that was closed has none.
        with contextlib.suppress(Exception):
            self._run(zeros, options)

    def call_off(self, thread: int) -> None:
        """The run ends at its next node; one that never leaves a node goes on."""
        options = self._running.get(thread)
        if options is not None:
            options.terminate = True

    def close(self) -> None:
        """Drop the session; its memory goes when the last output is dropped."""
        self._session = None


def _spec(node: Any) -> tuple[str, str, tuple[Any, ...]]:
    axes = tuple(axis if isinstance(axis, (int, str)) else None for axis in node.shape)
    return node.name, _DTYPES.get(node.type, node.type), axes
