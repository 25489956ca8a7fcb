"""OpenVINO's recipes in the job process: real models, the same bytes again, and what is missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.domain.tensor import DType, Tensor
from agent.runtime.registry import open_backend
from controller.domain.build import Evidence, Precision, Recipe
from controller.errors import InvalidError
from controller.optimize import build_openvino
from controller.optimize.builder import LackingError, Order, find_builder, require_builder
from controller.optimize.openvino_ir import import_openvino, read
from controller.optimize.rows import load_rows
from controller.optimize.spec import read_spec
from controller.worker.worker import outputs_of, read_result
from tests.support.digits import digits, job_folder, job_spec
from tests.support.openvino_builds import BROKEN, OnnxSource, container_of
from tests.support.serving import scaled

FP32, INT8, BF16 = "openvino-fp32", "openvino-int8", "openvino-bf16"
NNCF = "openvino-int8-nncf"
ORT = "onnxruntime-fp32"
Json = dict[str, Any]

# A worker on which a module is not installed.
WITHOUT = (
    "import sys; sys.modules[{module!r}] = None; from controller.optimize.job import main;"
    " sys.exit(main([{folder!r}]))"
)


def run(folder: Path, without: str = "") -> dict[str, Json]:
    """Rows by recipe."""
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    if without:
        text = WITHOUT.format(module=without, folder=str(folder))
        command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["progress_pct"] for line in done.stdout.splitlines()]
    assert told == sorted(told)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {row["recipe"]: row for row in result["builds"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Json]]:
    """The heavy digits by all recipes of OpenVINO, beside one of ONNX Runtime."""
    files, folder = digits(), tmp_path_factory.mktemp("built") / "job"
    spec = job_spec(files / "heavy.pt2", (ORT, FP32, INT8, NNCF, BF16))
    job_folder(folder, files / "heavy.pt2", spec, files / "digits.npz")
    return folder, run(folder)


def file_of(built: tuple[Path, dict[str, Json]], recipe: str) -> Path:
    folder, rows = built
    kind = "onnx" if recipe == ORT else "openvino"
    return folder / "outputs" / f"{rows[recipe]['build_id']}.{kind}"


def test_all_recipes_are_built_and_agree_with_the_source(
    built: tuple[Path, dict[str, Json]],
) -> None:
    _, rows = built
    found = {name: Evidence.from_json(row["evidence"]) for name, row in rows.items() if row["ok"]}
    assert set(found) >= {ORT, FP32, INT8, NNCF}
    # Where the processor has no BF16 its figures would be those of f32.
    assert BF16 in found or (rows[BF16]["lacking"] and "bf16" in rows[BF16]["error"])
    for name, one in found.items():
        assert one.agreement is not None
        assert one.agreement.n == 375
        assert one.agreement.value > 97
        assert (one.rows_checked, one.rows_not_finite) == (375, 0)
        assert (one.rows_compared, one.rows_differing) == (32, 0), "float beside its source"
        assert one.fp32_p50_ms is not None
        assert one.peak_rss_bytes is not None
        assert 30e6 < one.peak_rss_bytes < 300e6, "neither PyTorch's nor NNCF's"
        assert {"torch", "openvino", "nncf", "onnxruntime"} <= set(one.tool_versions), name
    agreement = found[FP32].agreement
    assert agreement is not None
    assert agreement.value == 100
    assert found[FP32].fp32_p50_ms == found[FP32].p50_ms
    assert found[INT8].fp32_p50_ms != found[ORT].fp32_p50_ms, "each runtime has its own float"
    assert found[INT8].size_bytes < found[FP32].size_bytes / 2.5
    kinds = {row["media_type"] for name, row in rows.items() if row["ok"] and name != ORT}
    assert kinds == {build_openvino.MEDIA_TYPE}


def test_the_worker_takes_the_files_that_the_job_names(
    built: tuple[Path, dict[str, Json]],
) -> None:
    folder, rows = built
    spec, result = read_spec(folder / "spec.json"), read_result(folder / "result.json")
    taken = dict(outputs_of(result, spec, folder / "outputs"))
    assert set(taken) == {row["digest"] for row in rows.values() if row["ok"]}


def test_the_agent_answers_as_the_controller_measured(
    built: tuple[Path, dict[str, Json]],
) -> None:
    spec = read_spec(built[0] / "spec.json")
    rows = load_rows(built[0] / "inputs" / "evaluation", spec.signature, 1)
    image = np.ascontiguousarray(rows.x[:50].astype(np.float32))
    feed = {"image": Tensor("image", DType.FP32, image.shape, image.tobytes())}
    classes = {}
    for recipe, runtime in ((ORT, "onnxruntime"), (FP32, "openvino"), (INT8, "openvino")):
        backend = open_backend(runtime, str(file_of(built, recipe)), {})
        scores = backend.run(feed)["output"]
        classes[recipe] = np.frombuffer(scores.data, np.float32).reshape(scores.shape).argmax(1)
        backend.close()
    assert (classes[ORT] == classes[FP32]).all()
    assert (classes[ORT] == classes[INT8]).mean() > 0.95


def test_a_compile_gives_the_same_bytes_again(
    built: tuple[Path, dict[str, Json]], tmp_path: Path
) -> None:
    """Libraries count their nodes: what is called Constant_93 now is Constant_501 next time."""
    folder, _ = built
    source = OnnxSource(file_of(built, ORT))
    dataset = load_rows(folder / "inputs" / "calibration", source.signature, 1)
    for name, by in ((FP32, "nncf"), (INT8, "onnxruntime"), (NNCF, "nncf")):
        precision = Precision.FP32 if name == FP32 else Precision.INT8
        # Digits lose nothing in INT8: no other try was made.
        recipe = Recipe(name, "openvino", precision, {"by": by, "calibration_rows": 100})
        for number in range(2):
            target = tmp_path / f"{name}-{number}"
            build_openvino.compile_build(source, Order(recipe, dataset, caution=0), target)
            assert target.read_bytes() == file_of(built, name).read_bytes()
        assert sorted(path.name for path in tmp_path.glob(f"{name}-?.*")) == []


def test_depthwise_convolutions_stay_float(
    built: tuple[Path, dict[str, Json]], tmp_path: Path
) -> None:
    """As INT8 they lost nine points of agreement on a real network, and gained no time."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 1, 3, 3), (8, 4, 1, 1))]
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w0"], ["a"], group=4, pads=[1, 1, 1, 1]),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("Conv", ["b", "w1"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 8, 8])],
            [numpy_helper.from_array(array, f"w{place}") for place, array in enumerate(weights)],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "depthwise.onnx")
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(16, 4, 8, 8)).astype(np.float32))
    source = OnnxSource(tmp_path / "depthwise.onnx")
    rows = load_rows(tmp_path / "rows.npz", source.signature, 1)
    recipe = Recipe(NNCF, "openvino", Precision.INT8)
    build_openvino.compile_build(source, Order(recipe, rows), tmp_path / "made")
    _, graph, weights_of = read(tmp_path / "made")
    found = import_openvino().Core().read_model(graph, weights_of)
    fed: dict[str, set[str]] = {}
    for op in found.get_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution"):
            kinds = {one.get_source_output().get_node().get_type_name() for one in op.inputs()}
            fed[op.get_type_name()] = kinds
    assert "FakeQuantize" in fed["Convolution"]
    assert "FakeQuantize" not in fed["GroupConvolution"]


def test_names_of_the_author_stay_behind(built: tuple[Path, dict[str, Json]]) -> None:
    for recipe in (FP32, INT8):
        precision, graph, _ = read(file_of(built, recipe))
        assert precision == "f32"
        assert b"conv" not in graph.replace(b"Convolution", b"").replace(b"Convert", b"")
        assert b"nncf" not in graph


@pytest.mark.parametrize(("without", "refused"), [("nncf", {NNCF}), ("openvino", {FP32, NNCF})])
def test_what_is_not_installed_refuses_its_own_builds(
    built: tuple[Path, dict[str, Json]], tmp_path: Path, without: str, refused: set[str]
) -> None:
    source = file_of(built, ORT)
    folder = tmp_path / "job"
    spec = job_spec(source, (NNCF, FP32, ORT), time_s=20)
    job_folder(folder, source, spec, digits() / "digits.npz")
    rows = run(folder, without)
    assert {name for name, row in rows.items() if not row["ok"]} == refused
    for name in refused:
        assert rows[name]["lacking"] is True
        assert f"recipe {name} needs {without}" in rows[name]["error"]
        assert "pip install 'lighterman[optimize-openvino]'" in rows[name]["error"]


def test_a_job_of_which_nothing_can_be_made_opens_no_model(tmp_path: Path) -> None:
    files = digits()
    spec = job_spec(files / "light.pt2", (FP32,))
    folder = job_folder(tmp_path / "job", files / "light.pt2", spec, files / "digits.npz")
    (folder / "inputs" / "source").write_bytes(b"never opened")
    assert run(folder, "openvino")[FP32]["lacking"] is True
    assert "cannot load" in run(folder)[FP32]["error"]


def test_a_runtime_that_nobody_registered_is_told() -> None:
    with pytest.raises(LackingError, match="cannot build for the runtime tvm"):
        find_builder("tvm")
    with pytest.raises(InvalidError, match="onnxruntime has no builds of precision bf16"):
        require_builder(Recipe("x", "onnxruntime", Precision.BF16))


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_no_other_bytes_are_measured(tmp_path: Path, how: str) -> None:
    file = tmp_path / "broken"
    (tmp_path / "work").mkdir()
    file.write_bytes(BROKEN[how](container_of(scaled(2.0), tmp_path / "work")))
    signature = OnnxSource(tmp_path / "work" / "source.onnx").signature
    with pytest.raises(InvalidError):
        build_openvino.open_build(file, signature)


def graph(path: Path, outputs: list[str], *nodes: Any) -> OnnxSource:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        list(nodes),
        "g",
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value(name, TensorProto.FLOAT, ["batch", 4]) for name in outputs],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return OnnxSource(path)


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    node = helper.make_node("Bernoulli", ["x"], ["y"], seed=1.0)
    source = graph(tmp_path / "odd.onnx", ["y"], node)
    recipe = Recipe(FP32, "openvino", Precision.FP32)
    with pytest.raises(InvalidError, match="has no operator Bernoulli"):
        build_openvino.compile_build(source, Order(recipe), tmp_path / "made")


def test_flavours_that_are_not_offered_are_told(
    built: tuple[Path, dict[str, Json]], tmp_path: Path
) -> None:
    source = OnnxSource(file_of(built, ORT))
    rows = load_rows(built[0] / "inputs" / "calibration", source.signature, 1)
    for wrong, said in (
        ({"preset": "fast"}, "quantization.preset is 'fast'"),
        ({"kind": "dynamic"}, "quantization.kind is 'dynamic'"),
        ({"activation": "u8"}, "quantization.activation is unknown"),
    ):
        order = Order(Recipe(INT8, "openvino", Precision.INT8, wrong), rows)
        with pytest.raises(InvalidError, match=said):
            build_openvino.compile_build(source, order, tmp_path / "made")
    nothing = graph(tmp_path / "n.onnx", ["y"], helper.make_node("Abs", ["x"], ["y"]))
    few = load_rows_of(tmp_path, nothing)
    order = Order(Recipe(INT8, "openvino", Precision.INT8), few)
    with pytest.raises(InvalidError, match="nothing in the model can be quantised"):
        build_openvino.compile_build(nothing, order, tmp_path / "made")


def load_rows_of(folder: Path, source: OnnxSource) -> Any:
    np.savez(folder / "few.npz", x=np.ones((8, 4), np.float32))
    return load_rows(folder / "few.npz", source.signature, 1)
