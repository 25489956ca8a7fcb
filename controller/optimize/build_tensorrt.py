"""TensorRT on the build side: the graph that devices make their engines of, with explicit Q/DQ in
signed INT8, or half floats, or as it is.

A worker has no GPU: ONNX Runtime answers for the same graph, so accuracy is that of what ships and
of its quantisation; times are not the device's and gate nothing. Refuses to ship an engine: it
would hold for one kind of device and one version of the library, and nobody could read it.
"""

from collections.abc import Mapping
from pathlib import Path

from controller.domain.build import Precision
from controller.domain.model import Signature
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.build_onnxruntime import compile_build as compile_graph
from controller.optimize.build_onnxruntime import versions as versions
from controller.optimize.builder import Order, Source
from controller.optimize.packed import pack, unpack

KIND = "tensorrt"
MEDIA_TYPE = "application/vnd.lighterman.tensorrt"
EXTRA = "optimize"
CAUTION_MOST = 5  # see `quantize_onnx`
STAND_IN = "onnxruntime"
NEEDS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP32: ("onnxruntime",),
    Precision.FP16: ("onnxruntime",),
    Precision.INT8: ("onnxruntime",),
}


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the container that ships. InvalidError in plain words."""
    graph = graph_of(source, order, target.with_suffix(".graph.onnx"))
    about = {"precision": order.recipe.precision.value}
    target.write_bytes(pack(KIND, source.signature, about, graph))


def graph_of(source: Source, order: Order, work: Path) -> bytes:
    """The graph of a recipe in the form that TensorRT takes. ``work`` is a file to work in."""
    compile_graph(source, order, work)
    graph = work.read_bytes()
    work.unlink()
    return graph


def open_build(path: Path, signature: Signature) -> OnnxSession:
    """The same graph on ONNX Runtime. InvalidError in plain words."""
    _, graph = unpack(path, KIND)
    work = path.with_suffix(".opened.onnx")
    work.write_bytes(graph)
    try:
        return OnnxSession(work, signature)
    finally:
        work.unlink()
