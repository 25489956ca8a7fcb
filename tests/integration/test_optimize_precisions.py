"""ONNX Runtime's other forms: INT8 whose ranges come from each call, and FP16."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from controller.domain.build import parse_recipe
from controller.errors import InvalidError
from controller.optimize import build_onnxruntime
from controller.optimize.builder import Order
from controller.optimize.fallback import cautions
from tests.support.openvino_builds import OnnxSource

WIDE = 64


@pytest.fixture
def products(tmp_path: Path) -> OnnxSource:
    """Two matrix products and an LSTM."""
    random = np.random.default_rng(0)
    sizes = {"w": (WIDE, WIDE), "i": (1, 4 * WIDE, WIDE), "r": (1, 4 * WIDE, WIDE), "o": (WIDE, 8)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m0"),
        helper.make_node("Transpose", ["a"], ["b"], "t", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["b", "i", "r"], ["", "h"], "l", hidden_size=WIDE),
        helper.make_node("Squeeze", ["h", "first"], ["c"], "s"),
        helper.make_node("MatMul", ["c", "o"], ["y"], "m1"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, WIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])
    stored = [
        numpy_helper.from_array(random.normal(size=size).astype(np.float32) / 8, name)
        for name, size in sizes.items()
    ]
    stored.append(numpy_helper.from_array(np.array([0]), "first"))
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "float.onnx")
    return OnnxSource(tmp_path / "float.onnx")


def _answers(source: OnnxSource, target: Path, **spec: object) -> NDArray[np.float32]:
    recipe = parse_recipe("r", {"runtime": "onnxruntime", **spec})
    build_onnxruntime.compile_build(source, Order(recipe), target)
    rows = np.random.default_rng(1).normal(size=(4, 16, WIDE)).astype(np.float32)
    found = build_onnxruntime.open_build(target, source.signature).run([rows])[0]
    return found.astype(np.float32)


def test_dynamic_int8_and_fp16_are_smaller_and_answer_alike(
    products: OnnxSource, tmp_path: Path
) -> None:
    wanted = _answers(products, tmp_path / "fp32.onnx", precision="fp32")
    dynamic = {"precision": "int8", "quantization": {"kind": "dynamic"}}
    for name, spec, most, error in (
        ("int8", dynamic, 0.3, 0.05), ("fp16", {"precision": "fp16"}, 0.6, 5e-3),
    ):  # fmt: skip
        found = _answers(products, tmp_path / f"{name}.onnx", **spec)
        size = (tmp_path / f"{name}.onnx").stat().st_size
        assert size < most * (tmp_path / "fp32.onnx").stat().st_size
        assert found.dtype == wanted.dtype
        assert 0 < np.abs(found - wanted).max() < error, name
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert kinds >= {"MatMulInteger", "DynamicQuantizeLSTM"}
    recipe = parse_recipe("r", {"runtime": "onnxruntime", **dynamic})
    assert not recipe.needs_dataset, "nothing is calibrated"
    assert list(cautions(recipe, 5, judged=True)) == [0], "no layer can be spared"


def test_dynamic_int8_of_nothing_but_a_sum_is_refused(tmp_path: Path) -> None:
    batch = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", batch[:1], batch[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "float.onnx")
    with pytest.raises(InvalidError, match="no matrix product or LSTM"):
        _answers(
            OnnxSource(tmp_path / "float.onnx"), tmp_path / "int8.onnx",
            precision="int8", quantization={"kind": "dynamic"},
        )  # fmt: skip
