"""Which layers lose most by INT8: the order in which they go back to float when a gate is not met.

For each layer the float graph and the quantised one are asked for the same tensor on the same rows.
A layer's loss is the error that it adds: how far its output is off, less what came in with its
input. Changes no file.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from controller.domain.model import Signature
from controller.optimize.rows import Array, Rows

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RANKING_ROWS = 4


def rank_layers(floating: Path, quantised: Path, rows: Rows, signature: Signature) -> list[str]:
    """Names of the float graph's layers, the one that adds most error first."""
    graph = onnx.load(floating).graph
    layers = [node for node in graph.node if node.op_type in LAYERS]
    wanted = {name for node in layers for name in (node.input[0], node.output[0])}
    wanted -= {value.name for value in graph.input} | {value.name for value in graph.initializer}
    name = signature.inputs[0].name
    errors: dict[str, list[float]] = {}
    ask = [_Opened(path, wanted) for path in (floating, quantised)]
    for done, (batch, _) in enumerate(rows.batches(1)):
        if done == RANKING_ROWS:
            break
        sides = [session({name: np.ascontiguousarray(batch)}) for session in ask]
        for tensor in sides[0].keys() & sides[1].keys():
            errors.setdefault(tensor, []).append(_error(sides[1][tensor], sides[0][tensor]))
    mean = {tensor: math.fsum(found) / len(found) for tensor, found in errors.items()}

    def added(node: onnx.NodeProto) -> float:
        return mean.get(node.output[0], 0.0) - mean.get(node.input[0], 0.0)

    return [node.name for node in sorted(layers, key=added, reverse=True)]


def _error(found: Array, wanted: Array) -> float:
    """The error's share of the signal, 0 for none."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if a.shape != b.shape:
        return 0.0
    size = float(np.sqrt((b * b).sum()))
    return float(np.sqrt(((a - b) ** 2).sum())) / size if size else 0.0


class _Opened:
    """A session that gives tensors from inside, by name, those that the file has."""

    def __init__(self, path: Path, wanted: set[str]) -> None:
        import onnxruntime

        model = onnx.load(path)
        made = {name for node in model.graph.node for name in node.output}
        self._names: Sequence[str] = sorted(wanted & made)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # Fused, a tensor inside would be another one, or none.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, feed: dict[str, Array]) -> dict[str, Array]:
        found = self._session.run(list(self._names), feed)
        return dict(zip(self._names, found, strict=True))
