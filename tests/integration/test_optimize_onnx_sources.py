"""ONNX sources: raised to today's opset where the answers stay, as pushed where they would not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter

from controller.domain.build import Precision, Recipe
from controller.intake.models import parse_model
from controller.optimize import raise_opset as raising
from controller.optimize.builder import Order, find_builder
from controller.optimize.export_onnx import OPSET
from controller.optimize.outputs import differing
from controller.optimize.rows import Array
from controller.optimize.source import LoadedSource
from controller.optimize.spec import JobSpec
from controller.services.context import Limits
from tests.unit.test_intake_corpus import corpus

HANDFUL = (
    *("test_Conv2d_padding", "test_BatchNorm2d_eval", "test_ConvTranspose2d", "test_Softmax"),
    *("test_operator_pad", "test_PixelShuffle"),
)


def loaded(source: Path, work: Path) -> LoadedSource:
    parsed = parse_model(source, Limits())
    work.mkdir(exist_ok=True)
    spec = JobSpec(
        "j-1", "source", parsed.format, parsed.signature, (), False, False, 2**32, 60.0, 1
    )
    return LoadedSource(spec, source, work, lambda pct, step: None)


def square(opset: int) -> ModelProto:
    """image[batch,4] by softmax, whose meaning changed with opset 13, and a reduction."""
    graph = helper.make_graph(
        [
            helper.make_node("Softmax", ["image"], ["shares"], axis=1),
            helper.make_node("ReduceSum", ["shares"], ["scores"], axes=[1], keepdims=1),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def opset_of(path: Path) -> int:
    return raising.opset_of(onnx.load(path))


def test_an_old_opset_is_raised_and_said(tmp_path: Path) -> None:
    onnx.save(square(11), tmp_path / "old.onnx")
    source = loaded(tmp_path / "old.onnx", tmp_path / "work")
    assert opset_of(source.onnx()) == OPSET
    assert source.notes == (f"raised from opset 11 to {OPSET}, answers compared",)
    assert not source.is_float_of("onnxruntime"), "the float file has to be held against it"


@pytest.mark.parametrize("how", ["it answers otherwise", "it fails"])
def test_what_the_converter_spoils_stays_as_pushed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = version_converter.convert_version

    def spoil(model: ModelProto, target: int) -> ModelProto:
        if how == "it fails":
            raise RuntimeError("no adapter")
        raised = real(model, target)
        raised.graph.node[0].op_type = "LogSoftmax"
        return raised

    onnx.save(square(11), tmp_path / "old.onnx")
    monkeypatch.setattr(version_converter, "convert_version", spoil)
    source = loaded(tmp_path / "old.onnx", tmp_path / "work")
    assert source.onnx().read_bytes() == (tmp_path / "old.onnx").read_bytes()
    assert source.notes[0].startswith("kept at opset 11 as pushed: ")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_handful_of_the_corpus_answers_as_its_authors_wrote(runtime: str, tmp_path: Path) -> None:
    """Their expected outputs lie beside the models: opset 6 to 11 by hand, to 18 by the job."""
    builder, files = find_builder(runtime), corpus()
    for name in HANDFUL:
        pushed = version_converter.convert_version(onnx.load(files[name]), 11)
        pushed.ir_version = 8
        onnx.save(pushed, tmp_path / "pushed.onnx")
        source = loaded(tmp_path / "pushed.onnx", tmp_path / name)
        assert opset_of(source.onnx()) == OPSET, source.notes
        target = tmp_path / f"{name}.{runtime}"
        builder.compile_build(source, Order(Recipe("float", runtime, Precision.FP32)), target)
        data = files[name].parent / "test_data_set_0"
        given, wanted = (_tensors(data, f"{side}_0.pb") for side in ("input", "output"))
        (found,) = builder.open_build(target, source.signature).run([given])
        assert not differing([found], [wanted], len(wanted)).any(), name


def _tensors(folder: Path, name: str) -> Array:
    tensor = TensorProto.FromString((folder / name).read_bytes())
    return np.asarray(numpy_helper.to_array(tensor), np.float32)
