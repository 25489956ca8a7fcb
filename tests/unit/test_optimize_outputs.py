"""Answers of real ONNX sessions: counted where they are no numbers, refused in another shape."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from controller.domain.model import Signature, TensorSpec
from controller.errors import InvalidError
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.evaluate import Answers, ask, compare_runs
from controller.optimize.outputs import differing, not_finite
from controller.optimize.raw import first_words
from controller.optimize.rows import Rows, sample_feeds, sample_inputs
from controller.optimize.tasks.classes import ClassJudge

IMAGE = TensorSpec("image", "FP32", ("batch", 4))
SCORES = Signature((IMAGE,), (TensorSpec("scores", "FP32", ("batch", 4)),))


def graph(path: Path, *nodes: Any, shift: float = 0.0, signature: Signature = SCORES) -> Path:
    """image -> nodes -> scores; `shift` and `one` are constants."""
    declared = signature.outputs[0].shape
    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, list(declared))],
            [
                numpy_helper.from_array(np.array([shift], np.float32), "shift"),
                numpy_helper.from_array(np.array([1, -1], np.int64), "one"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path


ADD = helper.make_node("Add", ["image", "shift"], ["scores"])
ROOT = helper.make_node("Sqrt", ["image"], ["scores"])
FLAT = helper.make_node("Reshape", ["image", "one"], ["scores"])


def rows_with(*bad: int, count: int = 20) -> Rows:
    """Ones; the root of the rows in ``bad`` is no number."""
    x = np.ones((count, 4), np.float32)
    x[list(bad), 2] = -1.0
    return Rows(x, None, "float32", 4)


def answers(path: Path, rows: Rows, signature: Signature = SCORES) -> Answers:
    read = ClassJudge().read
    return ask(OnnxSession(path, signature), signature, rows.feeds(), 2, lambda _: True, read)


def test_rows_are_counted_one_by_one(tmp_path: Path) -> None:
    root = graph(tmp_path / "root.onnx", ROOT)
    found = answers(root, rows_with(3, 4, 18))
    assert (found.rows, found.not_finite) == (20, 3)
    assert answers(root, rows_with()).not_finite == 0


def test_infinity_counts_and_so_does_an_output_that_is_no_class_score(tmp_path: Path) -> None:
    signature = Signature((IMAGE,), (TensorSpec("scores", "FP32", ("batch", 2, 2)),))
    three = helper.make_node("Reshape", ["log", "whole"], ["scores"])
    shape = helper.make_node("Constant", [], ["whole"], value_ints=[-1, 2, 2])
    log = helper.make_node("Log", ["plus"], ["log"])
    plus = helper.make_node("Add", ["image", "shift"], ["plus"])
    path = graph(tmp_path / "log.onnx", shape, plus, log, three, shift=1.0, signature=signature)
    found = answers(path, rows_with(7), signature)
    assert (found.rows, found.not_finite, found.said) == (20, 1, None)


def test_another_shape_than_the_signature_is_told_with_both(tmp_path: Path) -> None:
    flat = graph(tmp_path / "flat.onnx", FLAT)
    with pytest.raises(InvalidError) as caught:
        answers(flat, rows_with())
    assert caught.value.text() == (
        "the output scores came as [1, 16] float32, the signature says scores[batch,4] FP32\n"
        "inputs were [4, 4]"
    )


def test_generated_rows_find_what_no_dataset_is_there_to_find(tmp_path: Path) -> None:
    nan = graph(tmp_path / "nan.onnx", ADD, shift=float("nan"))
    good = graph(tmp_path / "good.onnx", ADD)
    for path, wrong in ((nan, 64), (good, 0)):
        feeds = sample_feeds(SCORES, 64, seed=1)
        read = ClassJudge().read
        found = ask(OnnxSession(path, SCORES), SCORES, feeds, 2, lambda _: True, read)
        assert (found.rows, found.not_finite) == (64, wrong)


def test_generated_rows_are_pictures_of_both_ranges_and_whole_numbers_stay_zero() -> None:
    signature = Signature(
        (
            IMAGE,
            TensorSpec("bytes", "UINT8", ("batch", 2, 2)),
            TensorSpec("place", "INT64", ("batch", 3)),
            TensorSpec("state", "FP32", (2, "batch", 5)),
        ),
        SCORES.outputs,
    )
    feeds = list(sample_feeds(signature, 16, seed=1))
    largest = [float(inputs[0].max()) for inputs, _ in feeds]
    assert max(largest) > 200
    assert 0 < min(largest) <= 1
    assert all(inputs[2].any() == 0 for inputs, _ in feeds)
    assert feeds[0][0][1].max() > 100
    assert {len(inputs[0]) for inputs, _ in feeds} == {inputs[3].shape[1] for inputs, _ in feeds}


def test_an_input_without_axes_is_an_array_too() -> None:
    """ONNX Runtime takes no plain NumPy number."""
    inputs = tuple(TensorSpec(kind.lower(), kind, ()) for kind in ("FP32", "INT64", "UINT8"))
    signature = Signature(inputs, (TensorSpec("scores", "FP32", ()),))
    made = [feed for feed, _ in sample_feeds(signature, 2, seed=1)] + [
        sample_inputs(signature, 1, seed=1)
    ]
    for feed in made:
        assert all(isinstance(one, np.ndarray) and one.shape == () for one in feed)


def test_a_wrong_export_differs_and_rounding_does_not(tmp_path: Path) -> None:
    source = OnnxSession(graph(tmp_path / "a.onnx", ADD, shift=1.0), SCORES)
    rounded = OnnxSession(graph(tmp_path / "b.onnx", ADD, shift=1.001), SCORES)
    wrong = OnnxSession(graph(tmp_path / "c.onnx", ADD, shift=2.0), SCORES)
    found = compare_runs(source, rounded, rows_with().feeds(), lambda _: True)
    assert (found.rows, found.differing) == (20, 0)
    found = compare_runs(source, wrong, rows_with().feeds(), lambda done: done < 8)
    assert (found.rows, found.differing) == (8, 8)


def test_where_rows_cannot_be_told_apart_all_of_the_call_count() -> None:
    one = [np.array([1.0, np.inf, 2.0], np.float32)]
    assert not_finite(one, 4).tolist() == [True] * 4
    assert differing([np.zeros((4, 2))], [np.zeros((4, 3))], 4).all()
    assert not differing([np.array([[1], [2]])], [np.array([[1], [2]])], 2).any()
    assert differing([np.array([[1], [2]])], [np.array([[1], [3]])], 2).tolist() == [False, True]


def test_a_call_that_fails_is_told_in_our_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = OnnxSession(graph(tmp_path / "add.onnx", ADD), SCORES)
    with pytest.raises(InvalidError) as caught:
        session.run([np.ones((2, 5), np.float32)])
    said = caught.value.text()
    assert "ONNX Runtime fails on inputs of [2, 5]: the inputs' shape does not fit" in said
    assert "INVALID_ARGUMENT" not in said
    assert "INVALID_ARGUMENT" in capsys.readouterr().err, "the log has the library's own words"


@pytest.mark.parametrize(
    ("raw", "meaning"),
    [
        (
            "x.cc:12 Could not find an implementation for Foo(9) node with name ''",
            "no operator Foo",
        ),
        (
            "a/b.onnx failed:Fatal error: com.microsoft:Foo(-1) is not a registered",
            "com.microsoft:Foo;",
        ),
        (
            "Non-zero status code returned while running Loop node. x.cc:1",
            "the operator Loop fails",
        ),
        ("std::bad_alloc", "more memory than a job may take"),
        ("/onnxruntime_src/core/x.cc:1 void f() whatever", "; the library's own words are in"),
    ],
)
def test_a_reason_never_holds_paths_of_the_build_host(raw: str, meaning: str) -> None:
    said = first_words(raw)
    assert meaning in said
    assert ".cc" not in said
