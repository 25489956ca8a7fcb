"""Runs an engine of TensorRT, or of a library with its interface, on CUDA buffers.

Imports neither: the runtime's file brings the library. One inference at a time, as an execution
context wants it. Refuses shapes outside of the engine's profile, and outputs whose size depends on
data. In the syntax of Python 3.8.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NUMPY = {"FLOAT": "<f4", "HALF": "<f2", "INT8": "i1", "INT32": "<i4", "INT64": "<i8",
    "BOOL": "?", "UINT8": "u1", "BF16": "<u2"}  # fmt: skip
_WANTED = {"BOOL": "?", "UINT8": "u1", "INT8": "i1", "INT32": "<i4", "INT64": "<i8", "FP16": "<f2",
    "FP32": "<f4", "BF16": "<u2"}  # fmt: skip


class EngineError(RuntimeError):
    """It cannot be loaded or run here; the words are for people."""


class Engine:
    """Satisfies `plain.Plain`."""

    def __init__(
        self, library: Any, cuda: Any, plan: bytes, inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        self._library, self._cuda = library, cuda
        self._lock = threading.Lock()
        self._logger = library.Logger(library.Logger.ERROR)
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("the library does not take the engine: it is of another version")
        self._dtypes = self._check_names()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError("no memory for the engine on the device")
        self._stream = cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}  # name: address, bytes

    def _check_names(self) -> dict[str, str]:
        """The types of its tensors, whose names have to be those that were signed."""
        engine = self._engine
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        signed = [name for name, _, _ in (*self.inputs, *self.outputs)]
        if sorted(names) != sorted(signed):
            raise EngineError(f"the engine has {sorted(names)}, signed are {sorted(signed)}")
        found = {}
        for name in names:
            kind = engine.get_tensor_dtype(name).name
            if kind not in _NUMPY:
                raise EngineError(f"{name} is {kind}, which has no buffer form here")
            found[name] = _NUMPY[kind]
        return found

    def run(self, arrays: Mapping[str, Any]) -> list[Any]:
        """Infer once."""
        with self._lock:
            self._cuda.use()
            # What is copied asynchronously has to live until the stream is done.
            held = [self._bring(name, arrays[name]) for name, _, _ in self.inputs]
            places = [self._place(name) for name, _, _ in self.outputs]
            if not self._context.execute_async_v3(self._stream):
                raise EngineError("the engine does not run")
            for (name, _, _), array in zip(self.outputs, places):
                address = self._buffers[name][0]
                self._cuda.copy_out(array.ctypes.data, address, array.nbytes, self._stream)
            self._cuda.wait(self._stream)
            del held
        wanted = (_WANTED.get(dtype, "<f4") for _, dtype, _ in self.outputs)
        return [array.astype(dtype, copy=False) for array, dtype in zip(places, wanted)]

    def _bring(self, name: str, array: Any) -> Any:
        import numpy

        given = numpy.ascontiguousarray(array.astype(self._dtypes[name], copy=False))
        if not self._context.set_input_shape(name, tuple(given.shape)):
            raise EngineError(
                f"{name} of {list(given.shape)} is outside of what the engine was made for:"
                " max_batch and max_side of the profile's runtime_options say that"
            )
        address = self._room(name, given.nbytes)
        self._cuda.copy_in(address, given.ctypes.data, given.nbytes, self._stream)
        self._context.set_tensor_address(name, address)
        return given

    def _place(self, name: str) -> Any:
        import numpy

        shape = tuple(self._context.get_tensor_shape(name))
        if any(axis < 0 for axis in shape):
            raise EngineError(f"the size of {name} depends on data, which is not offered")
        array = numpy.empty(shape, self._dtypes[name])
        self._context.set_tensor_address(name, self._room(name, array.nbytes))
        return array

    def _room(self, name: str, size: int) -> int:
        """Memory of the device for a tensor; it grows and stays."""
        address, held = self._buffers.get(name, (0, 0))
        if held < size or not address:
            if address:
                self._cuda.give(address)
            address, held = self._cuda.take(size), size
            self._buffers[name] = (address, held)
        return address

    def spent_s(self, thread: int) -> float:
        """What the accelerator computes is work for as long as it takes."""
        return float("inf")

    def rest(self) -> None:
        """Give the buffers back; the next inference takes them again."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._cuda.use()
        buffers, self._buffers = self._buffers, {}
        for address, _ in buffers.values():
            self._cuda.give(address)

    def close(self) -> None:
        """Free it, in the order that the library wants."""
        with self._lock:
            self._drop()
            self._cuda.end_stream(self._stream)
            self._context = self._engine = self._runtime = None
