"""Real ONNX models of one given signature that behave in a named way. Nothing is faked in them.

Each takes what the digits models take and gives class scores, so that it can follow them in a
rollout. The weights are random but the same for the same seed.
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from agent.clock import thread_cpu_s
from tests.support.poison import loop_body

# Large enough that one product of two such matrices takes tens of milliseconds on one thread.
SLOW_SIDE = 768
# What no row of a dataset shows: `raising` fails on it, and only on it.
GLARE = 1.0e6
_LARGE_ROW = 50_000


@dataclass(frozen=True, slots=True)
class Shape:
    """Names and sizes of the only input and the only output; the first axis is the batch."""

    input: str
    output: str
    row: tuple[int, ...]
    classes: int

    @classmethod
    def of(cls, signature: dict[str, Any]) -> "Shape":
        """From the signature as `fleetctl model show` prints it; both tensors are FP32."""
        (given,), (found,) = signature["inputs"], signature["outputs"]
        assert given["dtype"] == found["dtype"] == "FP32", signature
        row = tuple(int(axis) for axis in given["shape"][1:])
        return cls(given["name"], found["name"], row, int(found["shape"][1]))


def wide(shape: Shape, seed: int, hidden: int = 4096) -> bytes:
    """Two dense layers: fast, but a megabyte or more to download."""
    return _model(shape, *_dense(shape, seed, hidden))


def slow(shape: Shape, products: int) -> bytes:
    """The same scores after so many honest products of large matrices."""
    nodes, constants = _dense(shape, 1, 32)
    side = np.array([SLOW_SIDE, SLOW_SIDE], np.int64)
    constants += [
        numpy_helper.from_array(np.array([0, 1], np.int64), "axes"),
        numpy_helper.from_array(side, "side"),
        numpy_helper.from_array(np.array([0.0], np.float32), "zero"),
    ]
    nodes += [
        helper.make_node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=1),
        helper.make_node("Expand", ["mean", "side"], ["m0"]),
    ]
    for i in range(products):
        nodes.append(helper.make_node("MatMul", [f"m{i}", "m0"], [f"n{i}"]))
        nodes.append(helper.make_node("Tanh", [f"n{i}"], [f"m{i + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"m{products}", "axes"], ["end"], keepdims=1),
        helper.make_node("Mul", ["end", "zero"], ["nothing"]),
        helper.make_node("Add", ["raw_scores", "nothing"], ["raw_answer"]),
    ]
    return _model(shape, nodes, constants, "raw_answer")


def not_a_number(shape: Shape) -> bytes:
    """Finite scores for zeros, NaN for everything else: weights of a training that diverged."""
    nodes, constants = _dense(shape, 2, 32)
    constants.append(numpy_helper.from_array(np.array([0.0], np.float32), "zero"))
    nodes += [
        helper.make_node("Abs", ["raw_scores"], ["absolute"]),
        helper.make_node("Sub", ["zero", "absolute"], ["negative"]),
        helper.make_node("Sqrt", ["negative"], ["raw_answer"]),
    ]
    constants = [c for c in constants if c.name != "bias"]
    constants.append(numpy_helper.from_array(np.zeros(shape.classes, np.float32), "bias"))
    return _model(shape, nodes, constants, "raw_answer")


def raising(shape: Shape) -> bytes:
    """Good scores, but a pixel brighter than `GLARE` makes the runtime raise."""
    nodes, constants = _dense(shape, 3, 32)
    constants.append(numpy_helper.from_array(np.array([GLARE], np.float32), "glare"))
    nodes += [
        helper.make_node("ReduceMax", ["flat"], ["brightest"], keepdims=0),
        helper.make_node("Div", ["brightest", "glare"], ["share"]),
        *_gather("share", "added"),
        helper.make_node("Add", ["raw_scores", "added"], ["raw_answer"]),
    ]
    return _model(shape, nodes, [*constants, _table()], "raw_answer")


def endless(shape: Shape) -> bytes:
    """Good scores, but a pixel brighter than `GLARE` begins a loop that nobody lives to see end."""
    nodes, constants = _dense(shape, 5, 32)
    for name, value in (
        ("glare", np.float32(GLARE)), ("one", np.float32(1)), ("nil", np.float32(0)),
        ("many", np.int64(1 << 60)), ("go", np.bool_(True)),
    ):  # fmt: skip
        constants.append(numpy_helper.from_array(np.array(value), name))
    nodes += [
        helper.make_node("ReduceMax", ["flat"], ["brightest"], keepdims=0),
        helper.make_node("Div", ["brightest", "glare"], ["share"]),
        helper.make_node("Floor", ["share"], ["whole"]),
        helper.make_node("Clip", ["whole", "nil", "one"], ["trigger"]),
        helper.make_node("Cast", ["trigger"], ["trigger_i"], to=TensorProto.INT64),
        helper.make_node("Mul", ["trigger_i", "many"], ["turns"]),
        helper.make_node("Loop", ["turns", "go", "nil"], ["end"], body=loop_body()),
        helper.make_node("Mul", ["end", "nil"], ["nothing"]),
        helper.make_node("Add", ["raw_scores", "nothing"], ["raw_answer"]),
    ]
    return _model(shape, nodes, constants, "raw_answer")


def greedy(shape: Shape, eaten_bytes: int) -> bytes:
    """Good scores, but a pixel brighter than `GLARE` makes it want so much memory at once."""
    nodes, constants = _dense(shape, 6, 32)
    for name, value in (
        ("glare", np.float32(GLARE)), ("one", np.float32(1)), ("nil", np.float32(0)),
        ("many", np.int64(eaten_bytes // 4)), ("as_one", np.array([1], np.int64)),
    ):  # fmt: skip
        constants.append(numpy_helper.from_array(np.array(value), name))
    nodes += [
        helper.make_node("ReduceMax", ["flat"], ["brightest"], keepdims=0),
        helper.make_node("Div", ["brightest", "glare"], ["share"]),
        helper.make_node("Floor", ["share"], ["whole"]),
        helper.make_node("Clip", ["whole", "nil", "one"], ["trigger"]),
        helper.make_node("Cast", ["trigger"], ["trigger_i"], to=TensorProto.INT64),
        helper.make_node("Mul", ["trigger_i", "many"], ["size_0"]),
        helper.make_node("Reshape", ["size_0", "as_one"], ["size_1"]),
        helper.make_node("Max", ["size_1", "as_one"], ["size"]),
        helper.make_node("Expand", ["one", "size"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["end"], keepdims=0),
        helper.make_node("Mul", ["end", "nil"], ["nothing"]),
        helper.make_node("Add", ["raw_scores", "nothing"], ["raw_answer"]),
    ]
    return _model(shape, nodes, constants, "raw_answer")


def not_loading(shape: Shape) -> bytes:
    """Good scores for pictures, but a black one makes the runtime raise: it cannot be warmed."""
    nodes, constants = _dense(shape, 4, 32)
    constants.append(numpy_helper.from_array(np.array([0.0], np.float32), "zero"))
    nodes += [
        helper.make_node("Abs", ["flat"], ["absolute"]),
        helper.make_node("ReduceSum", ["absolute"], ["light"], keepdims=0),
        helper.make_node("Equal", ["light", "zero"], ["black"]),
        helper.make_node("Cast", ["black"], ["share"], to=TensorProto.FLOAT),
        *_gather("share", "added"),
        helper.make_node("Add", ["raw_scores", "added"], ["raw_answer"]),
    ]
    return _model(shape, nodes, [*constants, _table()], "raw_answer")


@cache
def products_for(seconds: float, shape: Shape) -> int:
    """How many products make `slow` take at least so much CPU time here, by measuring.

    CPU time: on a busy machine the clock on the wall would make the model too fast to be slow.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(slow(shape, 4), options)
    feed = {shape.input: np.ones((1, *shape.row), np.float32)}
    best = float("inf")
    for _ in range(4):
        began = thread_cpu_s()
        session.run(None, feed)
        best = min(best, thread_cpu_s() - began)
    return int(seconds / (best / 4)) + 1


def rows(shape: Shape, count: int, seed: int = 7) -> NDArray[np.float32]:
    """Pictures for the cameras: random, none of them black."""
    random = np.random.default_rng(seed)
    return (random.random((count, *shape.row)) + 0.1).astype(np.float32)


def _dense(shape: Shape, seed: int, hidden: int) -> tuple[list[Any], list[Any]]:
    random = np.random.default_rng(seed)
    size = prod(shape.row)
    if size > _LARGE_ROW:
        hidden = min(hidden, 4)  # a megabyte or more as it is

    def weights(name: str, *sides: int) -> Any:
        values = (random.standard_normal(sides) / np.sqrt(sides[0])).astype(np.float32)
        return numpy_helper.from_array(values, name)

    constants = [
        numpy_helper.from_array(np.array([0, size], np.int64), "as_rows"),
        weights("first", size, hidden),
        weights("second", hidden, shape.classes),
        weights("bias", shape.classes),
    ]
    nodes = [
        helper.make_node("Reshape", [shape.input, "as_rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["plain"]),
        helper.make_node("Add", ["plain", "bias"], ["raw_scores"]),
    ]
    return nodes, constants


def _table() -> Any:
    return numpy_helper.from_array(np.zeros((1,), np.float32), "table")


def _gather(share: str, target: str) -> list[Any]:
    """The table has one row: a share of 1 and more is an index out of range."""
    return [
        helper.make_node("Floor", [share], ["floor"]),
        helper.make_node("Cast", ["floor"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], [target]),
    ]


def _model(shape: Shape, nodes: list[Any], constants: list[Any], last: str = "raw_scores") -> bytes:
    nodes = [*nodes, helper.make_node("Identity", [last], [shape.output])]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(shape.input, TensorProto.FLOAT, ["batch", *shape.row])],
        [helper.make_tensor_value_info(shape.output, TensorProto.FLOAT, ["batch", shape.classes])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()
