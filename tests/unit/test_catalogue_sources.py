"""What is pushed beside a version's files: kept, shown, sent to jobs, refused where it slips."""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from controller.errors import ConflictError, InvalidError, RefusedError
from controller.optimize.spec import AROUND_SCHEMA, parse_spec
from controller.services.builds import start_build
from controller.services.context import Limits
from controller.services.models import NewVariant, NewVersion, Pushed, get_model, push_model
from controller.store import events
from tests.support.catalogue import World, make_world, open_world, tiny_onnx

FRAMES: dict[str, Any] = {
    "inputs": {"image": {"dtype": "UINT8", "layout": "NHWC", "size": [8, 8], "scale": 0.1}}
}
WEIGHTS = {
    "entry": "my_models.nets:light",
    "signature": {
        "inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 1, 8, 8]}],
        "outputs": [{"name": "scores", "dtype": "FP32", "shape": ["batch", 10]}],
    },
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def weights() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"


def push(world: World, spec: dict[str, Any], **files: bytes) -> Pushed:
    variants = [NewVariant(name, world.upload(data), f"{name}.bin") for name, data in files.items()]
    return push_model(world.deps, world.ctx, NewVersion("digits", "1.0.0", variants, spec=spec))


def test_variants_of_other_sizes_get_one_signature(world: World) -> None:
    spec = FRAMES | {"variants": {"light": {"inputs": {"image": {"scale": 0.5}}}}}
    pushed = push(world, spec, heavy=tiny_onnx(1, side=12), light=tiny_onnx(2))
    assert pushed.version.signature.text() == "image[batch,8,8,1] UINT8 → scores[batch,10] FP32"
    assert get_model(world.deps, world.ctx, "digits").spec == spec
    assert push(world, spec, heavy=tiny_onnx(1, side=12), light=tiny_onnx(2)).existed
    with pytest.raises(ConflictError, match="exists with other content") as caught:
        push(world, FRAMES, heavy=tiny_onnx(1, side=12), light=tiny_onnx(2))
    assert "the files are the same, spec differ" in caught.value.text()


def test_a_job_is_sent_what_goes_around_its_variant(world: World) -> None:
    push(world, FRAMES | {"variants": {"light": {"inputs": {"image": {"scale": 0.5}}}}},
        heavy=tiny_onnx(1, side=12), light=tiny_onnx(2))  # fmt: skip
    start_build(world.deps, world.ctx, model="digits", version="1.0.0", profiles=["intel-n100"],
        recipes=["onnxruntime-fp32"])  # fmt: skip
    specs = [world.claim().spec for _ in range(2)]
    assert {spec["schema"] for spec in specs} == {AROUND_SCHEMA}
    scales = {}
    for spec in specs:
        parsed = parse_spec(json.dumps(spec))
        scales[spec["variant"]] = parsed.around.wishes.inputs[0].scale
    assert scales == {"heavy": (0.1,), "light": (0.5,)}


def test_other_words_around_the_same_file_are_other_builds(world: World) -> None:
    ids = []
    for number, scale in enumerate((0.1, 0.2, 0.1)):
        spec = {"inputs": {"image": {"scale": scale}}}
        variant = NewVariant("heavy", world.upload(tiny_onnx(1)), "heavy.onnx")
        push_model(world.deps, world.ctx, NewVersion("digits", f"{number}", [variant], spec=spec))
        views = start_build(world.deps, world.ctx, model="digits", version=f"{number}",
            profiles=["intel-n100"], recipes=["onnxruntime-fp32"])  # fmt: skip
        ids.append(views[0].build_id)
    assert ids[0] == ids[2] != ids[1]


def test_a_slip_in_a_spec_is_told_with_what_was_meant(world: World) -> None:
    for spec, says in (
        ({"imputs": {}}, "did you mean inputs"),
        ({"inputs": {"imagee": {"scale": 1}}}, "did you mean image"),
        ({"variants": {"lite": {}}}, "did you mean light"),
        ({"variants": {"light": {"axes": {}}}}, "unknown keys: axes"),
        (WEIGHTS, "heavy.bin is a whole model, and the spec names the function"),
        ({"pad": "x" * 70_000}, "longer than"),
    ):
        with pytest.raises(InvalidError) as caught:
            push(world, spec, heavy=tiny_onnx(1), light=tiny_onnx(2))
        assert says in caught.value.text()


def test_functions_are_off_until_somebody_turns_them_on(tmp_path: Path) -> None:
    for name in ("off", "on"):
        (tmp_path / name).mkdir()
    off = make_world(tmp_path / "off")
    with pytest.raises(RefusedError) as caught:
        push(off, WEIGHTS, heavy=weights())
    said = caught.value.text()
    assert "takes no Python functions (my_models.nets:light)" in said
    assert "python_entry_points = on" in said
    assert "they are code of the build workers" in said
    off.deps.store.close()
    on = make_world(tmp_path / "on", Limits(python_entry_points=True))
    pushed = push(on, WEIGHTS, heavy=weights())
    assert pushed.version.variants[0].format == "python"
    with on.deps.store.read() as conn:
        (told,) = events.list_events(conn, "default")
    assert told.details["heavy.entry"] == "my_models.nets:light", "who ran what is in the events"
    with pytest.raises(InvalidError, match="holds weights alone"):
        push(on, {"signature": WEIGHTS["signature"]}, heavy=weights())
    on.deps.store.close()


def test_a_dataset_has_to_be_what_applications_send(world: World) -> None:
    push(world, FRAMES, heavy=tiny_onnx(1))
    for name, x, says in (
        ("float", np.zeros((40, 8, 8, 1), np.float32), "its rows are [8, 8, 1] FP32"),
        ("planes", np.zeros((40, 1, 8, 8), np.uint8), "its rows are [1, 8, 8] UINT8"),
    ):
        file = io.BytesIO()
        np.savez(file, x=x)
        world.push_data(name, file.getvalue())
        with pytest.raises(RefusedError) as caught:
            start_build(world.deps, world.ctx, model="digits", version="1.0.0", dataset=name,
                profiles=["intel-n100"])  # fmt: skip
        assert says in caught.value.text()


def test_two_inputs_may_not_share_a_fold_they_do_not_fit(world: World) -> None:
    """A graph that takes whole numbers is not normalised."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["image"], ["scores"], to=TensorProto.FLOAT)],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(InvalidError, match="which is no float"):
        push(world, {"inputs": {"image": {"scale": 2}}}, heavy=model.SerializeToString())
