"""A model that answers no more once a certain picture came, and all others at once.

It is inside one node then, for many minutes: a loop of nodes would be called off.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A value that no dataset holds; a picture with it begins a loop that outlives everybody.
POISON = 1.0e6
_BOXES = 1_000_000
_MANY = 2**62


def hanging(row: tuple[int, ...], classes: int, seed: int, poisoned: bool = True) -> bytes:
    """`image[batch,*row]` in, `scores[batch,classes]` out; other weights for another seed."""
    random = np.random.default_rng(seed)
    features = int(np.prod(row))
    weights = random.normal(size=(features, classes)).astype(np.float32)
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([-1, features], np.int64), "flat_shape"),
        numpy_helper.from_array(np.array(POISON / 2, np.float32), "limit"),
        numpy_helper.from_array(np.array(_BOXES if poisoned else 1, np.float32), "many"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
        numpy_helper.from_array(np.array(0, np.float32), "nil"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
        numpy_helper.from_array(np.array(_MANY, np.int64), "most"),
        numpy_helper.from_array(np.array([1, -1, 1], np.int64), "as_column"),
        numpy_helper.from_array(np.array([1, 1, -1], np.int64), "as_scores"),
    ]
    nodes = [
        helper.make_node("Reshape", ["image", "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["first"]),
        helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "limit"], ["is_poison"]),
        helper.make_node("Where", ["is_poison", "many", "one"], ["boxes_end"]),
        helper.make_node("Range", ["nil", "boxes_end", "one"], ["line"]),
        helper.make_node("Reshape", ["line", "as_column"], ["left"]),
        helper.make_node("Add", ["left", "half"], ["right"]),
        helper.make_node("Concat", ["left", "left", "right", "right"], ["boxes"], axis=2),
        helper.make_node("Reshape", ["line", "as_scores"], ["weighed"]),
        helper.make_node("NonMaxSuppression", ["boxes", "weighed", "most", "half"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["kept_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["kept_f"], ["end"], keepdims=0),
        helper.make_node("Mul", ["end", "nil"], ["nothing"]),
        helper.make_node("Add", ["first", "nothing"], ["scores"]),
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
