"""TensorRT behind the backend door. Imported library: only inside functions.

What ships is the graph (explicit Q/DQ for INT8, half floats for FP16); the engine is made on the
device, in a process of its own, and kept under all that it depends on. The timings that the maker
takes are kept for the device, too. Refuses engines of any other key than this device's.

In the syntax of Python 3.8: a child under the system's Python runs it where TensorRT is bound to
that, as on a Jetson.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from agent.runtime.compiled import CompiledCache
from agent.runtime.compiling import Limits, compile_apart
from agent.runtime.cuda import Cuda
from agent.runtime.engine import Engine
from agent.runtime.packed import Packed, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.runtime.backend import Backend, Options

    Tell = Callable[[str, float], None]

KIND = "tensorrt"
MIB = 1024 * 1024
# What the library, CUDA's context and the graph take beside the workspace, as its makers say of a
# Jetson; not measured by us.
_BASE_BYTES, _GRAPH_TIMES = 768 * MIB, 4
_DEFAULTS = {"workspace_bytes": 256 * MIB, "max_batch": 8, "opt_batch": 1, "level": 3}


def load(path: str, options: Options) -> Backend:
    """Open a build; options as of `open_plain`. LoadError says why not."""
    from agent.runtime.plain import open_as_backend

    return open_as_backend(KIND, open_plain, path, options)


def open_plain(path: str, options: Mapping[str, Any]) -> Engine:
    """Open a build: its engine as it was kept, else made first.

    Options: `device_id` (0); `fp16` (false): half floats beside INT8 where the library chooses;
    `workspace_bytes` (256 MiB), `headroom_bytes` (what has to be free to make an engine), `level`
    (0 to 5: how long it looks for the best kernels, 3); of dynamic axes `max_batch` (8),
    `opt_batch` (1) and, beyond the first axis, `min_side`, `opt_side` and `max_side`.
    """
    import tensorrt

    packed = unpack(path, KIND)
    cuda = Cuda(int(options.get("device_id", 0)))
    key = engine_key(tensorrt.__version__, cuda, packed, options)
    cache = CompiledCache(options)

    def take(plan: bytes) -> Engine:
        return Engine(tensorrt, cuda, plan, packed.inputs, packed.outputs)

    found = cache.bring(key, take)
    if found is not None:
        return found
    plan = compile_apart(os.path.abspath(__file__), path, options, limits_of(packed, cuda, options))
    made = take(plan)
    cache.keep(key, plan)
    return made


def shared_key(path: str, options: Mapping[str, Any]) -> dict[str, str]:
    """See `registry.Sharing`; any error where the library is not this Python's."""
    import tensorrt

    cuda = Cuda(int(options.get("device_id", 0)))
    return engine_key(tensorrt.__version__, cuda, unpack(path, KIND), options)


def engine_key(
    version: str, cuda: Any, packed: Packed, options: Mapping[str, Any]
) -> dict[str, str]:
    """All that an engine depends on beside the build's digest, which the cache adds."""
    return {
        "tensorrt": version,
        "gpu": cuda.name(),
        "capability": cuda.capability(),
        "shapes": json.dumps(profile_of(packed, options), sort_keys=True),
        "options": json.dumps(_settings(options), sort_keys=True),
    }


def _settings(options: Mapping[str, Any]) -> dict[str, int]:
    """What of the options changes the engine itself."""
    return {
        "workspace_bytes": int(options.get("workspace_bytes", _DEFAULTS["workspace_bytes"])),
        "level": int(options.get("level", _DEFAULTS["level"])),
        "fp16": int(bool(options.get("fp16", False))),
    }


def limits_of(packed: Packed, cuda: Any, options: Mapping[str, Any]) -> Limits:
    """What has to be free before an engine is made. RuntimeError where the GPU itself is full."""
    workspace = _settings(options)["workspace_bytes"]
    graph = _GRAPH_TIMES * len(packed.payload)
    need = int(options.get("headroom_bytes", 0))
    if cuda.is_integrated():
        return Limits(need or _BASE_BYTES + graph + workspace)
    free = cuda.free_bytes()
    if free < graph + workspace:
        raise RuntimeError(
            f"the engine takes {(graph + workspace) // MIB} MiB of the GPU's memory,"
            f" {free // MIB} MiB are free"
        )
    return Limits(need or _BASE_BYTES + graph)


def profile_of(packed: Packed, options: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    """Smallest, best and largest shape of each input with a dynamic axis. ValueError names one that
    nobody gave a size.
    """
    most = int(options.get("max_batch", _DEFAULTS["max_batch"]))
    best = min(most, int(options.get("opt_batch", _DEFAULTS["opt_batch"])))
    found: dict[str, list[list[int]]] = {}
    for name, _, axes in packed.inputs:
        sizes = []
        for place, axis in enumerate(axes):
            if isinstance(axis, int):
                sizes.append((axis, axis, axis))
            elif place == 0:
                sizes.append((1, best, most))
            else:
                sizes.append(_side(name, axis, options))
        if any(low != high for low, _, high in sizes):
            found[name] = [[size[kind] for size in sizes] for kind in range(3)]
    return found


def _side(name: str, axis: str, options: Mapping[str, Any]) -> tuple[int, int, int]:
    most = int(options.get("max_side", 0))
    if not most:
        raise ValueError(
            f"axis {axis!r} of {name} is dynamic and TensorRT has to know its sizes: say max_side"
            " (and min_side, opt_side) in the profile's runtime_options.tensorrt"
        )
    return int(options.get("min_side", 1)), int(options.get("opt_side", most)), most


# -- in the process that makes the engine ----------------------------------------------------------


def compile_here(path: str, options: Mapping[str, Any], tell: Tell) -> bytes:
    """The engine of a build, for this device. RuntimeError in the library's words."""
    import tensorrt

    packed = unpack(path, KIND)
    cuda = Cuda(int(options.get("device_id", 0)))
    # Timings are of the device and not of a build: all that is made here learns from them.
    kept = CompiledCache({"cache_dir": options.get("cache_dir", ""), "digest": "timings"})
    key = {
        "tensorrt": tensorrt.__version__,
        "gpu": cuda.name(),
        "capability": cuda.capability(),
    }
    plan, timings = make_engine(tensorrt, packed, options, tell, kept.find(key) or b"")
    if timings:
        kept.keep(key, timings)
    return plan


def make_engine(
    library: Any,
    packed: Packed,
    options: Mapping[str, Any],
    tell: Tell,
    timings: bytes = b"",
    prepare: Callable[[Any], None] = lambda _: None,
) -> tuple[bytes, bytes]:
    """An engine and the timings taken for it, by a library with TensorRT's interface.

    `prepare` may change the builder's configuration.
    """
    logger = _Logger(library)
    builder = library.Builder(logger.logger)
    network = builder.create_network(_network_flags(library))
    parser = library.OnnxParser(network, logger.logger)
    if not parser.parse(packed.payload):
        said = "; ".join(parser.get_error(place).desc() for place in range(parser.num_errors))
        raise RuntimeError(f"TensorRT does not take the graph: {said[:500]}")
    config = builder.create_builder_config()
    wanted = _settings(options)
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, wanted["workspace_bytes"])
    config.builder_optimization_level = wanted["level"]
    _set_precision(library, config, str(packed.about.get("precision", "")), bool(wanted["fp16"]))
    profile = builder.create_optimization_profile()
    shapes = profile_of(packed, options)
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    if shapes:
        config.add_optimization_profile(profile)
    monitor = _monitor(library, tell)
    if monitor is not None:
        config.progress_monitor = monitor
    cache = config.create_timing_cache(timings)
    config.set_timing_cache(cache, ignore_mismatch=False)
    prepare(config)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise RuntimeError(f"TensorRT makes no engine: {logger.last or 'it does not say why'}")
    kept = config.get_timing_cache()
    return bytes(memoryview(made)), b"" if kept is None else bytes(memoryview(kept.serialize()))


def _network_flags(library: Any) -> int:
    """The graph says which type each tensor has; TensorRT 8 cannot be told so."""
    flags = library.NetworkDefinitionCreationFlag
    found = 0
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if hasattr(flags, name):
            found |= 1 << int(getattr(flags, name))
    return found


def _set_precision(library: Any, config: Any, precision: str, fp16: bool) -> None:
    """Only where types are not the graph's own: TensorRT 8 chooses among those allowed."""
    if hasattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return
    allowed = {"int8": ["INT8"], "fp16": ["FP16"]}.get(precision, [])
    for name in [*allowed, *(["FP16"] if fp16 else [])]:
        config.set_flag(getattr(library.BuilderFlag, name))


class _Logger:
    """Keeps the library's last error: its calls only say that they failed."""

    def __init__(self, library: Any) -> None:
        outer, self.last = self, ""

        class Logger(library.ILogger):  # type: ignore[misc]
            """The library calls it, from any thread."""

            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity <= library.ILogger.Severity.ERROR:
                    outer.last = " ".join(text.split())[:300]

        self.logger = Logger()


def _monitor(library: Any, tell: Tell) -> Any:
    """Reports phases as they go on; None before TensorRT 10, which has no such thing."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        """Phases nest: the share is the outermost one's. Called from any thread."""

        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._outer = ""

        def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
            self._steps[phase_name] = max(1, num_steps)
            if parent_phase is None:
                self._outer = phase_name
                tell(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outer:
                tell(phase_name, min(1.0, (step + 1) / self._steps[phase_name]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
