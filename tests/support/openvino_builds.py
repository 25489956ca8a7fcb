"""Containers for OpenVINO, made by the product's own builder from small ONNX files."""

from collections.abc import Callable
from pathlib import Path

from controller.domain.build import Precision, Recipe
from controller.domain.model import Signature
from controller.intake.onnx_model import parse_onnx
from controller.optimize import build_openvino
from controller.optimize.builder import Order
from controller.optimize.import_torch import TorchModel
from controller.optimize.openvino_ir import ALIGN, HEADER

FLOAT = Recipe("openvino-fp32", "openvino", Precision.FP32)


class OnnxSource:
    """Satisfies `controller.optimize.builder.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.signature: Signature = parse_onnx(path, 2**30, "the test's model")

    def onnx(self) -> Path:
        """The file itself."""
        return self._path

    def torch(self) -> TorchModel:
        """Never asked for here."""
        raise NotImplementedError


def container_of(onnx: bytes, folder: Path, recipe: Recipe = FLOAT) -> bytes:
    """The bytes that ship for an ONNX model."""
    file, target = folder / "source.onnx", folder / "made.openvino"
    file.write_bytes(onnx)
    build_openvino.compile_build(OnnxSource(file), Order(recipe), target)
    return target.read_bytes()


def _header(data: bytes, **changes: object) -> bytes:
    names = ("magic", "precision", "graph", "weights")
    fields = dict(zip(names, HEADER.unpack(data[: HEADER.size]), strict=True)) | changes
    return HEADER.pack(*(fields[name] for name in names)) + data[HEADER.size :]


def _without_padding(data: bytes) -> bytes:
    _, _, graph, _ = HEADER.unpack(data[: HEADER.size])
    end = HEADER.size + graph
    return data[:end] + data[end + -end % ALIGN :]


# What neither side may take for a container.
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "an ONNX file": lambda data: b"\x08\x0a\x12\x07pytorch" * 9,
    "a zip": lambda data: b"PK\x03\x04" + data[4:],
    "half a header": lambda data: data[: HEADER.size // 2],
    "only a header": lambda data: data[: HEADER.size],
    "cut in the graph": lambda data: data[:200],
    "the last byte missing": lambda data: data[:-1],
    "a byte too many": lambda data: data + b"\0",
    "no padding": _without_padding,
    "another precision": lambda data: _header(data, precision=b"f64"),
    "a precision of no letters": lambda data: _header(data, precision=b"\xff" * 8),
    "a graph of 2^63 bytes": lambda data: _header(data, graph=2**63),
    "a graph longer than allowed": lambda data: _header(data, graph=2**26 + 1),
    "weights of 2^64 - 1 bytes": lambda data: _header(data, weights=2**64 - 1),
    "lengths that wrap around": lambda data: _header(data, graph=2**64 - 64, weights=len(data)),
    "a graph that is no XML": lambda data: data[: HEADER.size] + bytes(len(data) - HEADER.size),
    "a graph of nothing": lambda data: (
        HEADER.pack(*HEADER.unpack(data[: HEADER.size])[:2], 0, 0) + bytes(-HEADER.size % ALIGN)
    ),
}
