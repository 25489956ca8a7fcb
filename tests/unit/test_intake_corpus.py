"""The 149 models of the onnx package's own tests: what is valid and of today's opsets is taken.

They are of the years in which opset 6 and 9 were new: as they are, most are refused for that and
nothing else. Raised by the command that the refusal names, every one is taken but those listed.
"""

import importlib.util
from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import version_converter

from controller.errors import InvalidError
from controller.intake.models import parse_model
from controller.intake.onnx_model import MIN_OPSET
from controller.services.context import Limits

COUNT = 149
# Refused as what they are, in whatever opset: a training graph is no inference, and texts have no
# form on devices (a tensor's buffer is numbers).
TRAINING = {"test_gradient_of_add", "test_gradient_of_add_and_mul"}
TEXTS = {
    f"test_strnorm_model_{name}"
    for name in (
        "monday_casesensintive_lower", "monday_casesensintive_nochangecase",
        "monday_casesensintive_upper", "monday_empty_output",
        "monday_insensintive_upper_twodim", "nostopwords_nochangecase",
    )
}  # fmt: skip


def corpus() -> dict[str, Path]:
    """Files by name; of `light` the file is the name, elsewhere the folder."""
    spec = importlib.util.find_spec("onnx")
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "backend/test/data").rglob("*.onnx"))
    return {file.stem if file.stem != "model" else file.parent.name: file for file in files}


def opset_of(path: Path) -> int:
    return max(one.version for one in onnx.load(path).opset_import if one.domain == "")


def said_of(path: Path) -> str:
    """Empty where it is taken."""
    try:
        parse_model(path, Limits())
    except InvalidError as error:
        return error.text()
    return ""


def test_as_they_are_they_are_refused_for_their_opset_and_nothing_else() -> None:
    files = corpus()
    assert len(files) == COUNT
    why: Counter[str] = Counter()
    for name, path in files.items():
        said = said_of(path)
        if name in TRAINING:
            assert "preview.training.Gradient" in said
        elif (opset := opset_of(path)) < MIN_OPSET:
            assert f"uses ONNX opset {opset}, " in said
            assert "onnx.version_converter.convert_version(" in said
            why["old"] += 1
        else:
            assert said == "", f"{name} is valid and was refused"
            why["taken"] += 1
    assert why == {"old": 137, "taken": 10}


@pytest.mark.filterwarnings("ignore")
def test_raised_as_the_refusal_says_every_valid_one_is_taken(tmp_path: Path) -> None:
    taken = 0
    for name, path in corpus().items():
        raised = version_converter.convert_version(onnx.load(path), 18)
        raised.ir_version = 8  # opset 6 came with files that list weights as inputs
        onnx.save(raised, tmp_path / "raised.onnx")
        said = said_of(tmp_path / "raised.onnx")
        if name in TRAINING:
            assert "preview.training.Gradient" in said
        elif name in TEXTS:
            assert "is no tensor of a known type" in said
        else:
            assert said == "", f"{name} is valid and was refused"
            taken += 1
    assert taken == COUNT - len(TRAINING) - len(TEXTS)
