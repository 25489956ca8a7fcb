"""Versions with a task: declared when pushed, held against data, judged by bounds of their own."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from controller.domain.interval import Interval, metric_change_pts
from controller.domain.quality import ClassChange, MetricFigure
from controller.errors import ConflictError, InvalidError, RefusedError
from controller.services.builds import BuildView, list_builds, start_build
from controller.services.models import get_model
from tests.support.catalogue import World, interval, open_world

DETECTION = {"kind": "detection", "post": "db"}
FILLED = {"threshold": 0.4, "box_threshold": 0.6, "unclip": 1.5, "least_side": 3, "most": 1000}
PROFILE, RECIPE = "intel-n100", "onnxruntime-int8"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def text_onnx(side: int = 32) -> bytes:
    """A map of a picture."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["map"], axes=[1], keepdims=1)],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1, side, side])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def boxed_npz(rows: int = 24, side: int = 32, **more: Any) -> bytes:
    out = io.BytesIO()
    np.savez(
        out,
        x=np.zeros((rows, 3, side, side), np.uint8),
        boxes=np.tile([[2.0, 2, 9, 9]], (rows, 1)),
        box_count=np.ones(rows, int),
        **more,
    )
    return out.getvalue()


def push(world: World, ref: str = "text:1.0.0", **more: Any) -> Any:
    named: dict[str, Any] = {"task": DETECTION, "params": {"threshold": 0.4}}
    return world.push(ref, [("heavy", text_onnx())], **(named | more))


def run(world: World, version: str = "1.0.0") -> Sequence[BuildView]:
    asked: dict[str, Any] = {"model": "text", "version": version, "profiles": [PROFILE]}
    start_build(world.deps, world.ctx, **asked, recipes=[RECIPE])
    return list_builds(world.deps, world.ctx, model="text", version=version)


def test_a_task_is_stored_with_every_number_of_its_post_processing(world: World) -> None:
    push(world)
    view = get_model(world.deps, world.ctx, "text")
    assert view.params == FILLED
    assert view.task.text().startswith("detection, db threshold 0.4 box_threshold 0.6")
    assert push(world, params=FILLED).existed, "the same, written in full"
    with pytest.raises(ConflictError, match=r"text:1\.0\.0 exists with other content") as caught:
        push(world, params={"threshold": 0.5})
    assert "params differ" in caught.value.text()


@pytest.mark.parametrize(
    ("task", "params", "said"),
    [
        ({"kind": "detektion"}, {}, "task 'detektion' is unknown\nknown are classification, det"),
        ({"kind": "detection"}, {}, "a detector needs post-processing that makes boxes"),
        ({"kind": "detection", "post": "softmax"}, {}, "known are boxes, yolo, db"),
        (DETECTION, {"treshold": 0.4}, "did you mean threshold ?"),
        (DETECTION, {"threshold": 1.5}, "params of db.threshold is 1.5, a number from 0 to 1"),
        (DETECTION, {"most": 2.5}, "params of db.most is 2.5, a whole number from 1"),
        (DETECTION, {"unclip": "wide"}, "params of db.unclip is 'wide'"),
        (
            {"kind": "detection", "post": "yolo"},
            {},
            "post-processing yolo does not fit the model's",
        ),
        ({"kind": "other"}, {}, "a task of another kind needs a metric of yours"),
        ({"metric": "A b"}, {}, "'A b' is no name of a metric"),
        ({"kind": "detection", "post": "db", "extra": 1}, {}, "task has unknown keys: extra"),
    ],
)
def test_what_nobody_knows_is_refused_at_the_push(
    world: World, task: dict[str, Any], params: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        push(world, task=task, params=params)
    assert said in caught.value.text()


def test_the_job_learns_the_task_and_other_params_make_other_evidence(world: World) -> None:
    world.push_data("text", boxed_npz())
    push(world)
    (first,) = run(world)
    spec = world.claim().spec
    assert (spec["task"], spec["params"]) == ({**DETECTION, "metric": ""}, FILLED)
    push(world, "text:1.1.0", params={"threshold": 0.4, "unclip": 2.0})
    (second,) = run(world, "1.1.0")
    assert first.source_digest == second.source_digest
    assert first.target_key != second.target_key, "its boxes are others"
    push(world, "text:1.2.0", licence="MIT")
    assert run(world, "1.2.0")[0].target_key == first.target_key


def test_truth_of_another_kind_is_refused(world: World) -> None:
    push(world)
    rows: dict[str, Any] = {"x": np.zeros((24, 3, 32, 32), np.uint8), "y": np.zeros(24, int)}
    out = io.BytesIO()
    np.savez(out, **rows)
    world.push_data("text", out.getvalue())
    with pytest.raises(RefusedError) as caught:
        run(world)
    assert "its rows have labels, the version finds boxes" in caught.value.text()
    push(world, "text:2.0.0", task=None, params=None)
    world.at(60).push_data("text", boxed_npz())
    with pytest.raises(RefusedError) as caught:
        run(world, "2.0.0")
    assert "a detector says so when it is pushed: --task detection" in caught.value.text()
    push(world, "text:3.0.0", labels=("word",))
    world.at(120).push_data("text", boxed_npz(box_class=np.full(24, 3)))
    with pytest.raises(RefusedError) as caught:
        run(world, "3.0.0")
    assert "its boxes have classes up to 3, labels 1" in caught.value.text()


def evidence(drop: float, n: int) -> dict[str, Any]:
    share = Interval(90.0, 88.0, 92.0, n)
    change = metric_change_pts(-drop / 100, 0.0, n)
    return {
        "task": "detection",
        **dict.fromkeys(("accuracy", "source_accuracy", "accuracy_delta_pts")),
        "agreement": interval(98.0, n),
        "metrics": [MetricFigure("f1", share, share, change).to_json()],
        "classes": [ClassChange(0, 90.0, 90.5, change, False).to_json()],
        "classes_judged": 1,
    }


@pytest.mark.parametrize(
    ("drop", "n", "state", "said"),
    [
        (0.5, 400, "passed", "F1 at IoU 0.5 −0.5 points (95 % interval −1.2 to +0.2) against the"),
        (0.0, 20, "refused", "the lower end has to reach −3 points: that takes about 91 rows"),
        (4.0, 400, "refused", "more rows would not help"),
    ],
)
def test_a_detector_is_let_out_by_the_end_of_its_interval(
    world: World, drop: float, n: int, state: str, said: str
) -> None:
    world.push_data("text", boxed_npz())
    push(world)
    run(world)
    world.finish_all(**evidence(drop, n))
    (build,) = list_builds(world.deps, world.ctx, model="text")
    assert build.state == state
    assert said in build.reason
    assert "accuracy" not in build.reason
    assert build.evidence is not None
    assert build.evidence.classes[0].delta_pts.n == n
