"""Real ONNX models that are well until a number comes, and then hang, eat memory or err.

Takes `x[batch,4]` and gives `y[batch,4]`, as `tests.support.serving` does. A warm-up of zeros
passes each of them. Nothing of a runtime is faked in them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MANY = 1 << 62
# Boxes whose overlap is looked at pair by pair inside one node: many minutes of it.
_BOXES = 1_000_000
_EATEN_BYTES = 800_000_000


def loop_body() -> onnx.GraphProto:
    """One turn of a loop: go on, with the sum as it was plus `one` of the graph around."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["sum_in", "one"], ["sum_out"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn_number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, []),
        ],
    )


def endless(*, at_once: bool = False) -> bytes:
    """A loop of 2^62 turns: between two of them the runtime listens. `at_once`: for zeros too."""
    nodes = [helper.make_node("Loop", ["count", "go", "nil"], ["end"], body=loop_body())]
    return _triggered(_MANY, nodes, [_constant("go", True, np.bool_)], always=at_once)


def stuck() -> bytes:
    """Minutes inside one node: nothing can call that off."""
    nodes = [
        helper.make_node("Cast", ["count"], ["count_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["count_f", "one"], ["boxes_end"]),
        helper.make_node("Range", ["nil", "boxes_end", "one"], ["line"]),
        helper.make_node("Reshape", ["line", "as_column"], ["left"]),
        helper.make_node("Add", ["left", "half"], ["right"]),
        helper.make_node("Concat", ["left", "left", "right", "right"], ["boxes"], axis=2),
        helper.make_node("Reshape", ["line", "as_scores"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["kept_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["kept_f"], ["end"], keepdims=0),
    ]
    constants = [
        _constant("half", 0.5, np.float32),
        _constant("overlap", 0.5, np.float32),
        _constant("most", _MANY, np.int64),
        _constant("as_column", [1, -1, 1], np.int64),
        _constant("as_scores", [1, 1, -1], np.int64),
    ]
    return _triggered(_BOXES, nodes, constants)


def greedy() -> bytes:
    """One inference wants 800 MB."""
    nodes = [
        helper.make_node("Reshape", ["count", "as_one"], ["size_0"]),
        helper.make_node("Max", ["size_0", "least"], ["size"]),
        helper.make_node("Expand", ["one", "size"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["end"], keepdims=0),
    ]
    constants = [_constant("as_one", [1], np.int64), _constant("least", [1], np.int64)]
    return _triggered(_EATEN_BYTES // 4, nodes, constants)


def empty() -> bytes:
    """No row at all comes out."""
    nodes = [
        helper.make_node("Reshape", ["count", "as_one"], ["from"]),
        helper.make_node("Slice", ["x", "from", "end_of_all"], ["y"]),
    ]
    constants = [_constant("as_one", [1], np.int64), _constant("end_of_all", [_MANY], np.int64)]
    return _triggered(_MANY // 2, nodes, constants, answer=None)


def misshapen() -> bytes:
    """Twice as many rows as went in come out."""
    nodes = [
        helper.make_node("Reshape", ["count", "as_one"], ["times_0"]),
        helper.make_node("Add", ["times_0", "least"], ["times_1"]),
        helper.make_node("Concat", ["times_1", "least"], ["times"], axis=0),
        helper.make_node("Tile", ["x", "times"], ["y"]),
    ]
    constants = [_constant("as_one", [1], np.int64), _constant("least", [1], np.int64)]
    return _triggered(1, nodes, constants, answer=None)


POISONS: dict[str, Callable[[], bytes]] = {
    "endless": endless, "stuck": stuck, "greedy": greedy, "empty": empty, "misshapen": misshapen,
}  # fmt: skip


def _constant(name: str, value: Any, dtype: Any) -> Any:
    return numpy_helper.from_array(np.array(value, dtype), name)


def _triggered(
    scale: int,
    nodes: list[Any],
    constants: list[Any],
    answer: str | None = "end",
    *,
    always: bool = False,
) -> bytes:
    """`count` is `scale` once any number of x reaches 1, else 0; y is x, or what `nodes` make."""
    before = [
        helper.make_node("ReduceMax", ["x"], ["highest"], keepdims=0),
        helper.make_node("Clip", ["highest", "floor", "one"], ["share"]),
        helper.make_node("Floor", ["share"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["whole_i"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole_i", "scale"], ["count"]),
    ]
    after = [] if answer is None else [
        helper.make_node("Mul", [answer, "nil"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]  # fmt: skip
    shared = [
        _constant("nil", 0.0, np.float32),
        _constant("one", 1.0, np.float32),
        _constant("floor", 1.0 if always else 0.0, np.float32),
        _constant("scale", scale, np.int64),
    ]
    graph = helper.make_graph(
        [*before, *nodes, *after],
        "poison",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [*shared, *constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
