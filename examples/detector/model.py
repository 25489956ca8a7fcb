"""The detector as a version takes it: pictures of 0-255 in one size, normalisation in the graph."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from examples.detector.pages import SIDE

# PP-OCR's own: shares of 255, less the mean, by the deviation, channel by channel.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 4


def wrap(weights: Path, target: Path) -> None:
    """Write `image[batch,3,320,320]` to `map[batch,1,320,320]`; the weights stay as they are."""
    model = onnx.load(weights)
    graph = model.graph
    inner, outer = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.output[:] = ["map" if name == outer else name for name in node.output]
        node.input[:] = ["map" if name == outer else name for name in node.input]
    scale = np.array([1 / (255 * one) for one in DEVIATION], np.float32)
    shift = np.array([-m / d for m, d in zip(MEAN, DEVIATION, strict=True)], np.float32)
    for name, values in (("by", scale), ("less", shift)):
        graph.initializer.append(numpy_helper.from_array(values.reshape(1, 3, 1, 1), name))
    graph.node.insert(0, helper.make_node("Mul", ["image", "by"], ["scaled"], "scale"))
    graph.node.insert(1, helper.make_node("Add", ["scaled", "less"], [inner], "normalise"))
    del graph.input[:], graph.output[:], graph.value_info[:]
    for side, name, channels in ((graph.input, "image", 3), (graph.output, "map", 1)):
        shape: list[str | int | None] = ["batch", channels, SIDE, SIDE]
        side.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    onnx.save(model, target)


def found_words(
    file: Path, pages: Path, task: Mapping[str, str], params: Mapping[str, float]
) -> float:
    """F1 at IoU 0.5 of the file over the pages, 0 to 1."""
    from controller.domain.task import parse_task
    from controller.intake.dataset import load_dataset
    from controller.intake.models import parse_model
    from controller.optimize.build_onnxruntime import OnnxSession
    from controller.optimize.rows import Array
    from controller.optimize.tasks.boxes import Found
    from controller.optimize.tasks.detection import DetectionJudge, match
    from controller.services.context import Limits

    judge = DetectionJudge(parse_task(task, params))
    session = OnnxSession(file, parse_model(file, Limits()).signature)
    data = load_dataset(pages)
    truth = data.boxes.per_row() if data.boxes is not None else []
    found: list[Found] = []
    for start in range(0, len(data.x), BATCH):
        inputs: list[Array] = [data.x[start : start + BATCH].astype(np.float32)]
        found += judge.read(session.run(inputs), inputs) or []
    hits = sum(
        match(mine, Found(corners, np.ones(len(corners)), classes))
        for mine, (corners, classes) in zip(found, truth, strict=True)
    )
    both = sum(len(one.corners) for one in found) + sum(len(corners) for corners, _ in truth)
    return 2 * hits / both if both else 0.0
