"""What goes around a file's graph, folded into it as ONNX operators.

Their names begin with `PREFIX`: quantisers leave them in float, so INT8 sees the graph that it sees
without them. Refuses graphs that already use such names.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, ValueInfoProto, helper, numpy_helper

from controller.domain.model import TensorSpec
from controller.domain.preparation import CLASSES, InputStep, OutputStep, Preparation
from controller.errors import InvalidError
from controller.intake.onnx_model import DTYPES
from controller.optimize.export_onnx import OPSET
from controller.optimize.rows import NUMPY_TYPES, Array

PREFIX = "lighterman."
_TYPES = {name: number for number, name in DTYPES.items()}


def fold_onnx(core: Path, target: Path, preparation: Preparation) -> None:
    """Write ``core`` with all steps in its graph and the version's signature.

    Raises InvalidError where the graph is of an opset that has not what the steps need.
    """
    model = onnx.load(core)
    opset = max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if opset < OPSET:
        raise InvalidError(
            f"the file is of ONNX opset {opset} and cannot be raised to {OPSET}",
            "what goes around its graph needs that; export it with opset_version=18",
        )
    used = {name for node in _all_nodes(model.graph) for name in (*node.input, *node.output)}
    if any(name.startswith(PREFIX) for name in used):
        raise InvalidError(f"the graph uses names that begin with {PREFIX}")
    graph = model.graph
    begins = [step for step in preparation.inputs if not step.is_plain]
    ends = [step for step in preparation.outputs if step.softmax or step.top_k]
    names = [step.core.name for step in begins] + [step.core.name for step in ends]
    _rename(graph, {name: _inner(name) for name in names})
    before, after = _Nodes(graph), _Nodes(graph)
    for step in begins:
        before.enter(step)
    for ending in ends:
        after.leave(ending)
    body = [*before.made, *graph.node, *after.made]
    del graph.node[:]
    graph.node.extend(body)
    _put_values(graph, preparation)
    onnx.save(model, target)


class _Nodes:
    """Operators one after another, with what they need of constants in the graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.made: list[NodeProto] = []
        self._graph = graph
        self._at = ""

    def enter(self, step: InputStep) -> None:
        """From the version's input to the file's."""
        name, self._at = step.core.name, step.core.name
        if step.channels_last:
            self._add("Transpose", name, perm=[0, 3, 1, 2])
        if step.sent.dtype != step.core.dtype:
            self._add("Cast", name, to=_TYPES[step.core.dtype])
        if step.resize_to is not None:
            self._resize(step, name)
        kind = NUMPY_TYPES[step.core.dtype]
        for operator, numbers in (("Sub", step.mean), ("Mul", step.scale)):
            if numbers:
                value = np.asarray(numbers, kind).reshape(1, -1, 1, 1)
                self._add(operator, name, self._constant(f"{name}.{operator}", value))
        self.made.append(
            helper.make_node("Identity", [self._at], [_inner(name)], f"{PREFIX}{name}.enter")
        )

    def leave(self, step: OutputStep) -> None:
        """From the file's output to the version's."""
        name, self._at = step.core.name, _inner(step.core.name)
        if step.softmax:
            self._add("Softmax", name, axis=-1)
        if step.top_k:
            count = self._constant(f"{name}.best", np.asarray([step.top_k], np.int64))
            node = helper.make_node(
                "TopK", [self._at, count], [name, name + CLASSES], f"{PREFIX}{name}.TopK", axis=-1
            )
        else:
            node = helper.make_node("Identity", [self._at], [name], f"{PREFIX}{name}.leave")
        self.made.append(node)

    def _resize(self, step: InputStep, name: str) -> None:
        # Not by the attribute `axes`: of such a node behind a transposition ONNX Runtime 1.32 loses
        # the sizes when it lays out a quantised graph anew.
        own = f"{PREFIX}{name}.own"
        size = self._constant(f"{name}.size", np.asarray(step.resize_to, np.int64))
        sizes = f"{PREFIX}{name}.sizes"
        self.made.append(helper.make_node("Shape", [self._at], [own], own, start=0, end=2))
        self.made.append(helper.make_node("Concat", [own, size], [sizes], sizes, axis=0))
        bilinear = step.resize == "bilinear"
        how: dict[str, str] = {
            "mode": "linear" if bilinear else "nearest",
            "coordinate_transformation_mode": "half_pixel" if bilinear else "asymmetric",
        }
        if not bilinear:
            how["nearest_mode"] = "floor"
        self._add("Resize", name, "", "", sizes, **how)

    def _add(self, operator: str, name: str, *others: str, **attributes: Any) -> None:
        output = f"{PREFIX}{name}.{operator}"
        node = helper.make_node(operator, [self._at, *others], [output], output, **attributes)
        self.made.append(node)
        self._at = output

    def _constant(self, name: str, value: Array) -> str:
        full = f"{PREFIX}{name}.value"
        self._graph.initializer.append(numpy_helper.from_array(value, full))
        return full


def _inner(name: str) -> str:
    return f"{PREFIX}core.{name}"


def _all_nodes(graph: GraphProto) -> Iterable[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + [*attribute.graphs]:
                yield from _all_nodes(inner)


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Everywhere, in subgraphs too: ONNX lets no inner name hide an outer one."""
    for node in _all_nodes(graph):
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                if name in names:
                    side[place] = names[name]
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + [*attribute.graphs]:
                for value in inner.output:
                    value.name = names.get(value.name, value.name)


def _put_values(graph: GraphProto, preparation: Preparation) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    listed = [value for value in graph.input if value.name in weights]
    del graph.input[:]
    del graph.output[:]
    del graph.value_info[:]  # axes have new names; shape inference makes it again
    graph.input.extend([*map(_value, preparation.outer.inputs), *listed])
    graph.output.extend(map(_value, preparation.outer.outputs))


def _value(spec: TensorSpec) -> ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], list(spec.shape))


def is_folded(name: str) -> bool:
    """Whether an operator of this name is one of ours."""
    return name.startswith(PREFIX)
