"""A detector through the whole job process, and the example's real one on its pages."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from controller.domain.build import Evidence, GateVerdict, parse_recipe
from controller.domain.device import parse_profile
from controller.domain.gate import gate
from controller.domain.task import TaskKind
from controller.intake.models import parse_model
from controller.services.context import Limits
from controller.services.shipped import shipped_objects
from examples.detector import PARAMS, TASK, DetectorError, find_weights
from examples.detector.model import found_words, wrap
from examples.detector.pages import SIDE, draw_pages

FP32, INT8 = "onnxruntime-fp32", "onnxruntime-int8"
ROWS, EDGE = 160, 48


def contrast(path: Path) -> Path:
    """Likely text is what is dark: a convolution over the picture, and its share."""
    kernel = np.full((1, 3, 3, 3), -1 / 27 / 16, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel", "bias"], ["dark"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["dark"], ["map"]),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, EDGE, EDGE])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1, EDGE, EDGE])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array([6], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def dark_boxes(path: Path, rows: int, seed: int) -> Path:
    """White pictures with dark boxes; one row in ten has one that nothing shows."""
    random = np.random.default_rng(seed)
    x = np.full((rows, 3, EDGE, EDGE), 255, np.uint8)
    boxes, counts = [], []
    for row in range(rows):
        left, top = (int(one) for one in random.integers(2, 20, 2))
        drawn = [(left, top, left + 16, top + 8), (left, top + 16, left + 12, top + 24)]
        for one in drawn[: 1 if row % 10 == 0 else 2]:
            x[row, :, one[1] : one[3], one[0] : one[2]] = 0
        boxes += drawn
        counts.append(2)
    np.savez(path, x=x, boxes=np.array(boxes, float), box_count=np.array(counts))
    return path


def run_job(folder: Path, source: Path, names: tuple[str, ...], **more: Any) -> dict[str, Any]:
    recipes = {name: spec for kind, name, spec in shipped_objects() if kind == "Recipe"}
    (folder / "inputs").mkdir(parents=True)
    (folder / "inputs" / "source").write_bytes(source.read_bytes())
    for seed, role in enumerate(("calibration", "evaluation")):
        dark_boxes(folder / f"{role}.npz", ROWS, seed).rename(folder / "inputs" / role)
    parsed = parse_model(source, Limits())
    spec = {
        "schema": 1, "job_id": "j-1", "source": {"role": "source", "format": parsed.format.value},
        "signature": parsed.signature.to_json(), "calibration": True, "evaluation": True,
        "builds": [{"build_id": f"b-{n}", "recipe": name, "spec": recipes[name]}
                   for n, name in enumerate(names)],
        "limits": {"memory_bytes": 2**32, "time_s": 120}, "seed": 1, **more,
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {row["recipe"]: row for row in result["builds"]}


def test_a_detector_is_built_and_judged_by_its_boxes(tmp_path: Path) -> None:
    source = contrast(tmp_path / "text.onnx")
    rows = run_job(tmp_path / "job", source, (FP32, INT8), task=TASK, params={"unclip": 0})
    for name, row in rows.items():
        assert row["ok"], row["error"]
        evidence = Evidence.from_json(row["evidence"])
        assert evidence.task is TaskKind.DETECTION
        f1 = evidence.metrics[0]
        assert (f1.name, f1.value.n) == ("f1", ROWS)
        assert f1.source.value == pytest.approx(100 * 2 * 304 / (304 + 320)), "what nothing shows"
        assert f1.delta_pts.low < -1 < f1.delta_pts.value < 1
        assert evidence.accuracy_delta_pts is None
        profile = parse_profile("any", {"runtimes": ["onnxruntime"], "recipes": [name]})
        body = next(spec for _, one, spec in shipped_objects() if one == name)
        body = {**body, "gate": {**body["gate"], "not_slower_than_fp32": False}}
        found = gate(evidence, profile, parse_recipe(name, body), host_matches=False)
        assert found.verdict is GateVerdict.PASSED, found.reason
        assert ("F1 at IoU 0.5" in found.reason) == (name == INT8)


def test_a_metric_that_is_not_installed_refuses_the_builds_by_name(tmp_path: Path) -> None:
    source = contrast(tmp_path / "text.onnx")
    task = {"kind": "other", "metric": "nobody-has-it"}
    (row,) = run_job(tmp_path / "job", source, (FP32,), task=task).values()
    assert (row["ok"], row["lacking"]) == (False, True)
    assert row["error"].startswith("this worker has no metric nobody-has-it\n")


def test_the_example_finds_the_words_of_its_pages(tmp_path: Path) -> None:
    try:
        weights = find_weights()
    except DetectorError as error:
        pytest.skip(str(error))
    pages = draw_pages(6)
    again = draw_pages(6)
    assert (pages.pictures == again.pictures).all()
    assert pages.boxes.tolist() == again.boxes.tolist()
    assert pages.boxes.min() >= 0
    assert pages.boxes.max() <= SIDE
    np.savez(tmp_path / "pages.npz", x=pages.pictures, boxes=pages.boxes, box_count=pages.counts)
    wrap(weights, tmp_path / "text.onnx")
    signature = parse_model(tmp_path / "text.onnx", Limits()).signature
    assert signature.text() == "image[batch,3,320,320] FP32 → map[batch,1,320,320] FP32"
    f1 = found_words(tmp_path / "text.onnx", tmp_path / "pages.npz", TASK, PARAMS)
    assert f1 > 0.9
    wide = found_words(tmp_path / "text.onnx", tmp_path / "pages.npz", TASK, {"unclip": 2.0})
    assert wide < 0.7, "params alone change what a version is worth"
