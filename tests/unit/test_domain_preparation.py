"""What a version puts around its files: shapes that come out, and wishes that cannot be met."""

from typing import Any

import pytest

from controller.domain.model import Signature, TensorSpec
from controller.domain.preparation import Preparation, class_places, prepare
from controller.domain.version_spec import parse_variant, variant_spec
from controller.errors import InvalidError

PICTURE = TensorSpec("image", "FP32", ("batch", 3, 24, 32))
SCORES = TensorSpec("scores", "FP32", ("batch", 10))
CORE = Signature((PICTURE,), (SCORES,))
FREE = Signature((TensorSpec("image", "FP32", ("batch", 3, "dim_1", "dim_2")),), (SCORES,))
CAMERA = {"dtype": "UINT8", "layout": "NHWC", "size": [480, 640], "mean": [1, 2, 3], "std": 2}


def around(core: Signature, **body: Any) -> Preparation:
    return prepare(core, parse_variant(body).wishes)


def outer(core: Signature, **body: Any) -> str:
    return around(core, **body).outer.text()


def test_frames_of_a_camera_go_in_and_the_best_classes_come_out() -> None:
    found = around(
        CORE, inputs={"image": CAMERA}, outputs={"scores": {"softmax": True, "top_k": 3}}
    )
    assert found.outer.text() == (
        "image[batch,480,640,3] UINT8 → scores[batch,3] FP32, scores_classes[batch,3] INT64"
    )
    (step,) = found.inputs
    assert (step.resize_to, step.scale, step.mean) == ((24, 32), (0.5,), (1.0, 2.0, 3.0))
    assert class_places(found.outer) == {0: 1}
    assert found.text() == (
        "image: NHWC UINT8, resized to 24 x 32 (bilinear), normalised;"
        " scores: softmax, best 3 classes"
    )


def test_nothing_asked_is_nothing_done() -> None:
    asked: tuple[dict[str, Any], ...] = ({}, {"image": {}}, {"image": {"size": [24, 32]}})
    for inputs in asked:
        found = around(CORE, inputs=inputs)
        assert found.is_empty
        assert found.outer == CORE


def test_dynamic_axes_get_names_or_a_size_and_are_not_resized() -> None:
    named = around(FREE, inputs={"image": {"size": ["height", "width"]}})
    assert named.outer.text().startswith("image[batch,3,height,width] FP32")
    assert named.core.inputs == named.outer.inputs
    assert named.is_empty
    fixed = around(FREE, inputs={"image": {"size": [64, 48]}})
    assert fixed.outer.text().startswith("image[batch,3,64,48] FP32")
    assert fixed.inputs[0].resize_to is None
    resized = around(CORE, inputs={"image": {"size": ["height", "width"]}})
    assert resized.inputs[0].resize_to == (24, 32)


def test_bounds_of_axes_travel_with_the_signature() -> None:
    body: dict[str, Any] = {"inputs": {"image": {"size": ["height", "width"]}}}
    bounds = {"height": {"least": 32, "most": 512, "typical": 240}, "width": {"most": 640}}
    found = around(FREE, **body, axes=bounds)
    assert [(one.name, one.least, one.typical, one.most) for one in found.outer.axes] == [
        ("height", 32, 240, 512), ("width", 1, 640, 640),
    ]  # fmt: skip
    assert found.core.axes == found.outer.axes
    assert Signature.from_json(found.outer.to_json()) == found.outer
    assert "axes" not in CORE.to_json(), "what was signed before stays the same bytes"


def test_a_variant_replaces_key_by_key() -> None:
    body = {
        "inputs": {"image": CAMERA},
        "variants": {"light": {"inputs": {"image": {"mean": [9, 9, 9]}}, "entry": "a.b:c"}},
    }
    light = variant_spec(body, "light", ["heavy", "light"])
    assert light.entry == "a.b:c"
    assert (light.wishes.inputs[0].mean, light.wishes.inputs[0].layout) == ((9, 9, 9), "NHWC")
    heavy = variant_spec(body, "heavy", ["heavy", "light"])
    assert heavy.wishes.inputs[0].mean == (1, 2, 3)
    assert parse_variant(light.body or {}) == light, "what a job is sent says the same"
    assert variant_spec({}, "heavy", ["heavy"]).body is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a slip": ({"input": {}}, "did you mean inputs"),
    "a slip inside": ({"inputs": {"image": {"sacle": 2}}}, "did you mean scale"),
    "an input that is none": ({"inputs": {"imag": {"scale": 2}}}, "did you mean image"),
    "an output that is none": ({"outputs": {"score": {"softmax": True}}}, "did you mean scores"),
    "another layout": ({"inputs": {"image": {"layout": "CHWN"}}}, "offered: NCHW, NHWC"),
    "another type": ({"inputs": {"image": {"dtype": "uint8"}}}, "offered: UINT8, FP32"),
    "another resize": ({"inputs": {"image": {"resize": "cubic"}}}, "offered: bilinear, nearest"),
    "scale and std": ({"inputs": {"image": {"scale": 1, "std": 1}}}, "both std and scale"),
    "division by zero": ({"inputs": {"image": {"std": [1, 0, 1]}}}, "a number other than 0"),
    "two channels": ({"inputs": {"image": {"mean": [1, 2]}}}, "takes 3 channels"),
    "not a number": ({"inputs": {"image": {"mean": ["a"]}}}, "one for each channel"),
    "a size of one": ({"inputs": {"image": {"size": [480]}}}, "height and width are needed"),
    "a size of nothing": ({"inputs": {"image": {"size": [0, 640]}}}, "height and width"),
    "half a size": ({"inputs": {"image": {"size": ["batch", 640]}}}, "height and width"),
    "more classes than there are": ({"outputs": {"scores": {"top_k": 11}}}, "has 10 classes"),
    "no classes": ({"outputs": {"scores": {"top_k": 0}}}, "leave it out"),
    "an axis that is none": ({"axes": {"hight": {"most": 9}}}, "unknown keys: hight"),
    "bounds upside down": ({"axes": {"height": {"least": 9, "most": 3}}}, "is not between"),
    "an entry that is none": ({"entry": "os.system('x')"}, "write module:function"),
    "a mapping that is none": ({"inputs": 3}, "spec.inputs is not a mapping"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wishes_that_cannot_be_met_are_told(name: str) -> None:
    body, says = WRONG[name]
    with pytest.raises(InvalidError) as caught:
        around(CORE, **body)
    assert says in caught.value.text()
    assert caught.value.message.startswith("spec")


def test_what_is_no_picture_is_not_dressed_as_one() -> None:
    words = Signature((TensorSpec("words", "INT64", ("batch", 16)),), (SCORES,))
    for wish in ({"layout": "NHWC"}, {"mean": 1}, {"size": [1, 2]}):
        with pytest.raises(InvalidError, match=r"the file takes words\[batch,16\] INT64"):
            around(words, inputs={"words": wish})
    whole = Signature((TensorSpec("image", "UINT8", ("batch", 3, 8, 8)),), (SCORES,))
    with pytest.raises(InvalidError, match="which is no float"):
        around(whole, inputs={"image": {"scale": 2}})
    boxes = Signature((PICTURE,), (TensorSpec("boxes", "INT64", ("batch", 4)),))
    with pytest.raises(InvalidError, match=r"the file gives boxes\[batch,4\] INT64"):
        around(boxes, outputs={"boxes": {"softmax": True}})


def test_resizing_needs_to_know_to_what() -> None:
    half = Signature((TensorSpec("image", "FP32", ("batch", 3, 24, "dim_1")),), (SCORES,))
    with pytest.raises(InvalidError, match="nothing says what to resize to"):
        around(half, inputs={"image": {"size": [48, "width"]}})
