"""A model that never answers one picture, and all others at once: a real loop in the graph."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A value that no dataset holds; a picture with it begins a loop that outlives everybody.
POISON = 1.0e6
_FOREVER = 2**62


def hanging(row: tuple[int, ...], classes: int, seed: int, poisoned: bool = True) -> bytes:
    """`image[batch,*row]` in, `scores[batch,classes]` out; other weights for another seed."""
    random = np.random.default_rng(seed)
    features = int(np.prod(row))
    weights = random.normal(size=(features, classes)).astype(np.float32)
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([-1, features], np.int64), "flat_shape"),
        numpy_helper.from_array(np.array(POISON / 2, np.float32), "limit"),
        numpy_helper.from_array(np.array(_FOREVER if poisoned else 1, np.int64), "forever"),
        numpy_helper.from_array(np.array(1, np.int64), "once"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    nodes = [
        helper.make_node("Reshape", ["image", "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["first"]),
        helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "limit"], ["is_poison"]),
        helper.make_node("Where", ["is_poison", "forever", "once"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "go", "first"], ["scores"], body=_body(classes)),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, _axes(*row))
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, _axes(classes))
    graph = helper.make_graph(nodes, "hanging", [image], [scores], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _axes(*sizes: int) -> list[str | int | None]:
    return ["batch", *sizes]


def _body(classes: int) -> onnx.GraphProto:
    """One round: the scores, unchanged."""
    kept = _axes(classes)
    return helper.make_graph(
        [
            helper.make_node("Identity", ["goes_on"], ["still_goes_on"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, kept),
        ],
        [
            helper.make_tensor_value_info("still_goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, kept),
        ],
    )
