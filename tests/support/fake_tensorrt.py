"""A fake of the libraries `tensorrt` and libcudart, for what is ours: keys, kept engines, buffers.

It has the interface of TensorRT 10 as `agent.runtime.tensorrt` and `.engine` use it, no more; its
"engine" is the graph itself, which ONNX Runtime computes, and device memory is the host's. Says
nothing of the real library: what of that needs no GPU is tested with TensorRT-RTX, which shares it.
"""

import ctypes
import enum
from typing import Any, ClassVar

import numpy as np
import onnxruntime

__version__ = "10.99.0"
PLAN = b"fake plan 1\n"
_KINDS = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """As of the library."""

    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.IntEnum):
    """As of the library."""

    WORKSPACE = 0


class ILogger:
    """As of the library."""

    class Severity(enum.IntEnum):
        """As of the library."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class Logger(ILogger):
    """As of the library."""

    ERROR = ILogger.Severity.ERROR

    def __init__(self, level: Any = None) -> None:
        self.level = level


class IProgressMonitor:
    """As of the library: is called while an engine is made."""


class _Memory(bytes):
    """IHostMemory: a buffer."""


class Builder:
    """Makes "engines"; counts them for the tests."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> dict[str, Any]:
        """A network is what the parser puts into it."""
        return {"flags": flags}

    def create_builder_config(self) -> "Config":
        """As of the library."""
        return Config()

    def create_optimization_profile(self) -> "Profile":
        """As of the library."""
        return Profile()

    def build_serialized_network(self, network: dict[str, Any], config: "Config") -> Any:
        """The plan: nothing but the graph, and the shapes it holds for."""
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Tactics", "Building engine", 1)
        monitor.phase_finish("Tactics")
        for step in range(2):
            monitor.step_complete("Building engine", step)
        monitor.phase_finish("Building engine")
        self.made.append({"shapes": config.profile.shapes, "timings": config.timings.data})
        if not network["graph"]:
            self._logger.log(ILogger.Severity.ERROR, "no graph\nat all")
            return None
        most = max((shape[2][0] for shape in config.profile.shapes.values()), default=1)
        return _Memory(PLAN + most.to_bytes(4, "little") + network["graph"])


class Profile:
    """IOptimizationProfile."""

    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        """As of the library."""
        self.shapes[name] = [list(least), list(best), list(most)]


class _Timings:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"t"


class Config:
    """IBuilderConfig."""

    builder_optimization_level = 3
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.profile, self.timings = Profile(), _Timings(b"")

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        """As of the library."""

    def add_optimization_profile(self, profile: Profile) -> None:
        """As of the library."""
        self.profile = profile

    def create_timing_cache(self, data: bytes) -> _Timings:
        """As of the library."""
        return _Timings(data)

    def set_timing_cache(self, cache: _Timings, ignore_mismatch: bool) -> None:
        """As of the library."""
        self.timings = cache

    def get_timing_cache(self) -> _Timings:
        """As of the library."""
        return self.timings


class OnnxParser:
    """Takes ONNX bytes."""

    num_errors = 1

    def __init__(self, network: dict[str, Any], logger: Any) -> None:
        self._network = network

    def parse(self, data: bytes) -> bool:
        """As of the library."""
        self._network["graph"] = b"" if data == b"empty" else data
        return data != b"wrong"

    def get_error(self, place: int) -> Any:
        """As of the library."""
        return self

    def desc(self) -> str:
        """Of the only error."""
        return "node Odd is unknown"


class Runtime:
    """Loads plans."""

    def __init__(self, logger: Any) -> None:
        """As of the library."""

    def deserialize_cuda_engine(self, plan: bytes) -> "_Engine | None":
        """None for what it does not know, as the library does."""
        return _Engine(plan.removeprefix(PLAN)) if plan.startswith(PLAN) else None


class _Engine:
    def __init__(self, data: bytes) -> None:
        self.most = int.from_bytes(data[:4], "little")
        self.session = onnxruntime.InferenceSession(data[4:])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, place: int) -> str:
        return str([*self.inputs, *self.outputs][place])

    def get_tensor_dtype(self, name: str) -> Any:
        kind = _KINDS[{**self.inputs, **self.outputs}[name].type]
        return type("DataType", (), {"name": kind})

    def create_execution_context(self) -> "_Context":
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return 1 <= shape[0] <= self._engine.most

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self._shapes.values()))[0]
        axes = self._engine.outputs[name].shape
        return tuple(axis if isinstance(axis, int) else batch for axis in axes)

    def execute_async_v3(self, stream: int) -> bool:
        feed = {}
        for name, shape in self._shapes.items():
            size = int(np.prod(shape)) * 4
            data = ctypes.string_at(self._addresses[name], size)
            feed[name] = np.frombuffer(data, np.float32).reshape(shape)
        for name, found in zip(
            self._engine.outputs, self._engine.session.run(None, feed), strict=True
        ):
            ctypes.memmove(self._addresses[name], found.ctypes.data, found.nbytes)
        return True


class FakeCuda:
    """`agent.runtime.cuda.Cuda` over the host's memory."""

    def __init__(
        self, device: int = 0, *, name: str = "NVIDIA Fake", capability: str = "8.7"
    ) -> None:
        self._name, self._capability = name, capability
        self.held: dict[int, Any] = {}

    def use(self) -> None:
        """As of CUDA."""

    def name(self) -> str:
        """Of the device."""
        return self._name

    def capability(self) -> str:
        """Of the device."""
        return self._capability

    def is_integrated(self) -> bool:
        """As a Jetson's."""
        return True

    def take(self, size: int) -> int:
        """Memory."""
        buffer = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def give(self, address: int) -> None:
        """KeyError where it was not taken."""
        del self.held[address]

    def stream(self) -> int:
        """A queue."""
        return 1

    def end_stream(self, stream: int) -> None:
        """As of CUDA."""

    def copy_in(self, address: int, host: int, size: int, stream: int) -> None:
        """At once."""
        ctypes.memmove(address, host, size)

    def copy_out(self, host: int, address: int, size: int, stream: int) -> None:
        """At once."""
        ctypes.memmove(host, address, size)

    def wait(self, stream: int) -> None:
        """Nothing to wait for."""
