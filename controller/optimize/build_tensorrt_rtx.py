"""TensorRT for RTX on the build side: engines made ahead of time, without a GPU.

The library is imported only inside the functions. Nothing here can run them: ONNX Runtime answers
for the same graph, as for TensorRT. Refuses GPUs that the library has no name for.
"""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from controller.domain.build import Precision
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.build_tensorrt import graph_of
from controller.optimize.builder import Order, Source
from controller.optimize.packed import pack
from controller.optimize.stand_in import NAME, keep_graph, open_graph

KIND = "tensorrt-rtx"
MEDIA_TYPE = "application/vnd.lighterman.tensorrt-rtx"
EXTRA = "tensorrt-rtx"
CAUTION_MOST = 5  # see `quantize_onnx`
STAND_IN = NAME
NEEDS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP32: ("tensorrt_rtx",),
    Precision.FP16: ("tensorrt_rtx", "onnxruntime"),
    Precision.INT8: ("tensorrt_rtx", "onnxruntime"),
}
# Ampere to Blackwell. Turing has no float products there; of 80 two runs gave different bytes; 87,
# Orin's, is TensorRT's own.
CAPABILITIES = ("86", "89", "120")
MAX_BATCH = 8


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the container that ships. InvalidError in plain words."""
    import tensorrt_rtx

    graph = graph_of(source, order, target.with_suffix(".graph.onnx"))
    about = {"version": tensorrt_rtx.__version__, "capabilities": list(CAPABILITIES)}
    payload = _engine(tensorrt_rtx, graph, source.signature)
    target.write_bytes(pack(KIND, source.signature, about, payload))
    keep_graph(target, graph)


def _engine(library: Any, graph: bytes, signature: Signature) -> bytes:
    logger = library.Logger(library.Logger.ERROR)
    builder = library.Builder(logger)
    strongly = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        said = "; ".join(parser.get_error(place).desc() for place in range(parser.num_errors))
        raise InvalidError(f"TensorRT-RTX does not take the graph: {said[:300]}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(CAPABILITIES)
    for place, name in enumerate(CAPABILITIES):
        config.set_compute_capability(getattr(library.ComputeCapability, f"SM{name}"), place)
    profile = builder.create_optimization_profile()
    for spec in signature.inputs:
        if any(isinstance(axis, str) for axis in spec.shape[1:]):
            raise InvalidError("TensorRT-RTX's builds have a dynamic first axis alone")
        if isinstance(spec.shape[0], str):
            one, most = (1, *spec.shape[1:]), (MAX_BATCH, *spec.shape[1:])
            profile.set_shape(spec.name, one, one, most)
    config.add_optimization_profile(profile)
    made = builder.build_serialized_network(network, config)
    if made is None:
        raise InvalidError("TensorRT-RTX makes no engine of the model")
    return bytes(memoryview(made))


def open_build(path: Path, signature: Signature) -> OnnxSession:
    """The same graph on ONNX Runtime. LackingError for a container of another worker's."""
    return open_graph(path, signature)


def versions() -> Mapping[str, str]:
    """What was used."""
    return {name: metadata.version(name) for name in ("tensorrt-rtx", "onnxruntime")}
