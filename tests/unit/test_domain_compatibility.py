"""What of a signature applications notice, and how it is said."""

from collections.abc import Sequence

import pytest

from controller.domain.compatibility import Side, signature_changes
from controller.domain.model import Signature, TensorSpec

IMAGE = TensorSpec("image", "FP32", ("batch", 3, 8, 8))
SCORES = TensorSpec("scores", "FP32", ("batch", 10))
BOXES = TensorSpec("boxes", "FP32", ("batch", "n", 4))


def changed(
    *, inputs: Sequence[TensorSpec] = (IMAGE,), outputs: Sequence[TensorSpec] = (SCORES,)
) -> list[Side]:
    """The sides that differ from one image in, scores out."""
    after = Signature(tuple(inputs), tuple(outputs))
    return [one.side for one in signature_changes(Signature((IMAGE,), (SCORES,)), after)]


def test_the_same_is_no_change() -> None:
    assert changed() == []


def test_names_of_dynamic_axes_are_no_change() -> None:
    assert changed(inputs=[TensorSpec("image", "FP32", ("n", 3, 8, 8))]) == []


@pytest.mark.parametrize(
    "outputs",
    [
        [TensorSpec("scores", "FP32", ("batch", 12))],
        [TensorSpec("logits", "FP32", ("batch", 10))],
        [TensorSpec("scores", "FP16", ("batch", 10))],
        [TensorSpec("scores", "FP32", ("batch", "classes"))],
        [TensorSpec("scores", "FP32", ("batch", 10, 1))],
        [TensorSpec("scores", "FP32", (1, 10))],
        [SCORES, BOXES],
        [BOXES, SCORES],
    ],
)
def test_what_a_client_reads_is_a_change(outputs: list[TensorSpec]) -> None:
    assert changed(outputs=outputs) == [Side.OUTPUTS]


@pytest.mark.parametrize(
    "inputs",
    [
        [TensorSpec("picture", "FP32", ("batch", 3, 8, 8))],
        [TensorSpec("image", "UINT8", ("batch", 3, 8, 8))],
        [TensorSpec("image", "FP32", ("batch", 3, 16, 16))],
        [IMAGE, TensorSpec("mask", "BOOL", ("batch", 8, 8))],
    ],
)
def test_what_a_client_sends_is_a_change(inputs: list[TensorSpec]) -> None:
    assert changed(inputs=inputs) == [Side.INPUTS]


def test_order_is_a_change_since_answers_come_in_it() -> None:
    one, other = Signature((IMAGE,), (SCORES, BOXES)), Signature((IMAGE,), (BOXES, SCORES))
    assert [side.side for side in signature_changes(one, other)] == [Side.OUTPUTS]


def test_both_sides_are_told_apart_as_sentences() -> None:
    after = Signature(
        (TensorSpec("image", "FP32", (1, 3, 16, 16)),), (TensorSpec("scores", "FP32", (1, 12)),)
    )
    sides = signature_changes(Signature((IMAGE,), (SCORES,)), after)
    assert [one.sentence("1.1.0", "1.0.0", 5) for one in sides] == [
        "1.1.0 takes image[1,3,16,16] FP32 where 1.0.0, on 5 devices, takes"
        " image[batch,3,8,8] FP32: applications that send it must be ready",
        "1.1.0 answers with scores[1,12] FP32 where 1.0.0, on 5 devices, answers with"
        " scores[batch,10] FP32: applications that read it must be ready",
    ]
    assert "on 1 device, takes" in sides[0].sentence("1.1.0", "1.0.0", 1)
