"""Every kind of source through the job: built, judged on bytes of a camera, told when it cannot.

What goes around the graph is in what ships: applications send frames as they come.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent.domain.tensor import DType, Tensor
from agent.runtime.registry import open_backend
from controller.domain.build import Evidence, Precision, Recipe
from controller.errors import InvalidError
from controller.optimize import quantize_nncf, quantize_onnx
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.builder import Order, find_builder
from controller.optimize.import_entry import find_entry, make_by_entry
from controller.optimize.job import UNSTEADY
from controller.optimize.passes.network import network_of
from controller.optimize.passes.run import Material, run_passes
from controller.optimize.rows import Array, load_rows, sample_inputs
from controller.optimize.source import LoadedSource
from controller.optimize.spec import parse_spec, read_spec
from tests.support.digits import digits, job_folder, job_spec
from tests.support.pt2 import save_model
from tests.support.source_forms import SIGNATURE, frames, spec_of, write_form

FP32, INT8, TS = "onnxruntime-fp32", "onnxruntime-int8", "torchscript-fp32"
Json = dict[str, Any]
pytestmark = pytest.mark.filterwarnings("ignore")  # of PyTorch, about TorchScript


def run(folder: Path) -> dict[str, Json]:
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {row["recipe"]: row for row in result["builds"]}


def loaded(source: Path, around: Json, work: Path) -> LoadedSource:
    spec = parse_spec(json.dumps(spec_of(source, around, (FP32,))))
    work.mkdir(exist_ok=True)
    return LoadedSource(spec, source, work, lambda pct, step: None)


def test_frames_are_built_and_int8_loses_no_more_for_it(tmp_path: Path) -> None:
    source, around = write_form("pt2", tmp_path)
    spec = spec_of(source, around, (INT8, TS))
    rows = run(job_folder(tmp_path / "job", source, spec, frames(tmp_path)))
    plain = digits() / "light.pt2"
    inside = run(
        job_folder(tmp_path / "in", plain, job_spec(plain, (INT8,)), digits() / "digits.npz")
    )
    for name, row in rows.items():
        assert row["ok"], row["error"]
        found = Evidence.from_json(row["evidence"])
        assert any("image: NHWC UINT8, resized to 16 x 16" in note for note in found.notes)
        assert found.agreement is not None
        assert found.agreement.n == 375
        assert found.rows_differing == 0
        if name in inside:
            before = Evidence.from_json(inside[name]["evidence"]).agreement
            assert before is not None
            assert found.agreement.value >= before.value - 0.6, "two rows of 375"
    _ask_the_agent(tmp_path / "job")


def _ask_the_agent(folder: Path) -> None:
    """The device's own backends answer frames as the source does."""
    rows = load_rows(folder / "inputs" / "evaluation", read_spec(folder / "spec.json").signature, 1)
    some = np.ascontiguousarray(rows.x[:20])
    assert (some.dtype.name, some.shape) == ("uint8", (20, 8, 8, 1))
    wanted = None
    for runtime, file in (
        ("onnxruntime", "work/float.onnxruntime"),
        ("torch", "outputs/b-1.torch"),
    ):
        backend = open_backend(runtime, str(folder / file), {})
        tensor = Tensor("image", DType.UINT8, some.shape, some.tobytes())
        scores = np.frombuffer(backend.run({"image": tensor})["output"].data, np.float32)
        backend.close()
        assert wanted is None or np.abs(scores - wanted).max() < 1e-3
        wanted = scores


def _far(found: Array, wanted: Array) -> float:
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max())


@pytest.mark.parametrize("form", ["traced", "scripted", "safetensors"])
def test_other_forms_answer_as_the_program_does(form: str, tmp_path: Path) -> None:
    source, around = write_form(form, tmp_path)
    one = loaded(source, around, tmp_path / "one")
    two = loaded(*write_form("pt2", tmp_path), tmp_path / "two")
    with np.load(frames(tmp_path)) as data:
        rows: list[Array] = [np.ascontiguousarray(data["x"][:40])]
    wanted = two.runner().run(rows)
    assert _far(one.runner().run(rows)[0], wanted[0]) < 1e-4
    for runtime in ("onnxruntime", "openvino", "torch"):
        builder, target = find_builder(runtime), tmp_path / runtime
        builder.compile_build(one, Order(Recipe("float", runtime, Precision.FP32)), target)
        for part in (rows[0], rows[0][:3]):
            (found,) = builder.open_build(target, one.signature).run([part])
            assert _far(found, wanted[0][: len(part)]) < 1e-3, runtime


def test_passes_see_the_file_and_rows_as_it_takes_them(tmp_path: Path) -> None:
    from controller.domain.passes import parse_passes

    scripted = loaded(*write_form("scripted", tmp_path), tmp_path / "scripted")
    with pytest.raises(InvalidError, match="passes work on programs"):
        network_of(scripted.torch().core())
    source = loaded(*write_form("safetensors", tmp_path), tmp_path / "work")
    assert source.notes[0] == "made by tests.support.model_entries:scaled with the pushed weights"
    rows = source.core_rows(load_rows(frames(tmp_path), source.signature, 1))
    assert rows is not None
    assert (rows.x[:3].shape, rows.x[:3].dtype.name) == ((3, 1, 16, 16), "float32")
    asked = parse_passes([{"train": {"epochs": 1}}, "fold"], "passes")
    target = tmp_path / "trained.pt2"
    given = Material(rows, 1, lambda *_: True)
    notes, _ = run_passes(source.torch().core(), asked, target, given)
    assert any(note.startswith("trained") for note in notes)
    core = source.preparation.core
    spec = parse_spec(json.dumps(spec_of(*write_form("pt2", tmp_path), (FP32,))))
    after = LoadedSource(spec, target, tmp_path / "work", lambda *_: None, core)
    some: list[Array] = [np.zeros((2, 8, 8, 1), np.uint8)]
    assert after.runner().run(some)[0].shape == (2, 10)


def test_quantisers_leave_what_goes_around_the_graph(tmp_path: Path) -> None:
    import openvino

    source = loaded(*write_form("pt2", tmp_path), tmp_path / "work")
    wanted = {f"lighterman.image.{name}" for name in ("Transpose", "Cast", "Resize", "Mul")}
    model = openvino.Core().read_model(str(source.onnx()))
    for found in (quantize_nncf._around(model), quantize_onnx._around(source.onnx())):
        assert set(found) >= wanted
        assert not any("features" in name for name in found)


def test_the_best_classes_are_judged_as_scores_are(tmp_path: Path) -> None:
    source, around = write_form("safetensors", tmp_path)
    best = around | {"outputs": {"output": {"softmax": True, "top_k": 5}}}
    rows = run(job_folder(tmp_path / "job", source, spec_of(source, best, (FP32,)),
        frames(tmp_path)))  # fmt: skip
    assert rows[FP32]["ok"], rows[FP32]["error"]
    found = Evidence.from_json(rows[FP32]["evidence"])
    assert found.agreement is not None
    assert found.accuracy is not None
    assert found.top5_accuracy is not None
    assert (found.agreement.value, found.rows_differing) == (100, 0)
    assert 95 < found.accuracy.value < found.top5_accuracy.value


class Picture(torch.nn.Module):
    """A network that takes pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Means of channels."""
        return torch.relu(self.conv(image)).mean((2, 3))


def test_height_and_width_stay_dynamic_in_every_runtime(tmp_path: Path) -> None:
    dim = torch.export.Dim
    axes = {0: dim("b"), 2: dim("h", min=16, max=512), 3: dim("w", min=16, max=512)}
    source = save_model(Picture(), tmp_path / "any.pt2", torch.zeros(2, 3, 32, 48), image=axes)
    around = {
        "inputs": {"image": {"size": ["height", "width"]}},
        "axes": {"height": {"least": 16, "most": 512, "typical": 64},
            "width": {"least": 16, "most": 512, "typical": 96}},
    }  # fmt: skip
    one = loaded(source, around, tmp_path / "work")
    assert one.signature.text().startswith("image[batch,3,height,width] FP32")
    assert sample_inputs(one.signature, 1, 0)[0].shape == (1, 3, 64, 96)
    for runtime in ("onnxruntime", "openvino", "torch"):
        builder, target = find_builder(runtime), tmp_path / runtime
        builder.compile_build(one, Order(Recipe("float", runtime, Precision.FP32)), target)
        for shape in ((1, 3, 64, 96), (3, 3, 17, 200)):
            image: Array = np.random.default_rng(0).random(shape).astype(np.float32)
            (found,) = builder.open_build(target, one.signature).run([image])
            assert _far(found, one.runner().run([image])[0]) < 1e-4, runtime


def test_an_export_that_fails_names_operator_and_line(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            found = image.abs() + 1
            return torch.igamma(found, found)

    sample, batch = torch.ones(2, 4), {0: torch.export.Dim("b")}
    save_model(Odd(), tmp_path / "odd.pt2", sample, image=batch)
    torch.jit.save(torch.jit.script(Odd()), tmp_path / "odd.pt")
    flat = {"inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 4]}],
        "outputs": [{"name": "output", "dtype": "FP32", "shape": ["batch", 4]}]}  # fmt: skip
    for file, around, says in (
        ("odd.pt2", {}, "the operator prims.igamma, line 4 of its code: igamma = torch.ops.aten.i"),
        ("odd.pt", {"signature": flat}, "the operator aten::igamma, line "),
    ):
        source = loaded(tmp_path / file, around, tmp_path / f"work-{file}")
        for _ in range(2):  # said again, not tried again
            with pytest.raises(InvalidError) as caught:
                source.onnx()
            assert says in caught.value.message


def test_functions_that_make_no_network_are_told(tmp_path: Path) -> None:
    source, around = write_form("safetensors", tmp_path)
    signature = loaded(source, around, tmp_path / "work").preparation.core
    place = "tests.support.model_entries"
    for entry, says in (
        (f"{place}:unmarked", "is not meant to make a model"),
        ("os:system", "is not meant to make a model"),
        (f"{place}:absent", "has no function"),
        ("no.such.module:x", "has no function"),
        (f"{place}:nothing", "gives NoneType, not a torch.nn.Module"),
        (f"{place}:broken", f"{place}:broken fails"),
        (f"{place}:growing", "are not those of the network"),
    ):
        with pytest.raises(InvalidError) as caught:
            make_by_entry(entry, source, signature)
        assert says in caught.value.text()
    with pytest.raises(InvalidError, match="is not meant"):
        find_entry(f"{place}:Scaled")
    assert SIGNATURE["inputs"][0]["name"] == signature.inputs[0].name


def test_a_source_that_answers_otherwise_when_asked_again_is_said(tmp_path: Path) -> None:
    class Unsteady(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :10] + torch.rand_like(image.flatten(1)[:, :10])

    source = save_model(
        Unsteady(), tmp_path / "m.pt2", torch.zeros(2, 1, 8, 8), image={0: torch.export.Dim("b")}
    )
    spec = job_spec(source, (TS,), calibration=False, evaluation=False)
    row = run(job_folder(tmp_path / "job", source, spec))[TS]
    assert row["ok"], row["error"]
    assert UNSTEADY in row["evidence"]["notes"], "a job by itself says it"
    steady = write_form("pt2", tmp_path)
    assert loaded(*steady, tmp_path / "steady").answers_twice(None)


def test_rows_of_fractions_are_no_frames(tmp_path: Path) -> None:
    source, around = write_form("pt2", tmp_path)
    np.savez(tmp_path / "float.npz", x=np.random.default_rng(0).random((8, 8, 8, 1)))
    with pytest.raises(InvalidError, match=r"rows are float64, the model wants image\["):
        load_rows(tmp_path / "float.npz", loaded(source, around, tmp_path / "work").signature, 1)


def test_a_fold_that_is_wrong_shows_beside_the_pushed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the source answers through other code than what is folded."""
    from controller.optimize import prepare_onnx

    program = loaded(*write_form("pt2", tmp_path), tmp_path / "first")
    program.onnx()
    pushed = tmp_path / "first" / "core.onnx"
    around = write_form("pt2", tmp_path)[1]
    for wrong, differing in ((False, 0), (True, 32)):
        if wrong:
            monkeypatch.setattr(prepare_onnx._Nodes, "_resize", lambda self, step, name: self._add(
                "Resize", name, "", self._constant("s", np.array([1, 1, 2, 2], np.float32)),
                mode="nearest"))  # fmt: skip
        source = loaded(pushed, around, tmp_path / f"wrong-{wrong}")
        built = OnnxSession(source.onnx(), source.signature)
        assert source.likeness(built, None, lambda _: True).differing == differing
