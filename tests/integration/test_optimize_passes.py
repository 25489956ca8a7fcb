"""Passes on real networks: the same answers as modules, fewer channels, and trained again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from controller.domain.batch import choose_batch
from controller.domain.build import Evidence, GateVerdict, parse_recipe
from controller.domain.device import parse_profile
from controller.domain.gate import gate
from controller.domain.interval import paired_difference_pts, share_pct
from controller.domain.passes import FINE_TUNE, parse_passes
from controller.errors import InvalidError
from controller.intake.models import parse_model
from controller.optimize.fallback import cautions, is_worth_more
from controller.optimize.import_torch import TorchModel
from controller.optimize.passes.fold import fold
from controller.optimize.passes.network import Network, network_of, run, save_network
from controller.optimize.passes.prune import prune
from controller.optimize.passes.train import Training, find_step, train, training_step
from controller.optimize.rows import Rows
from controller.optimize.sensitivity import rank_layers
from controller.optimize.tasks.figures import Figures
from controller.services.context import Limits
from tests.support.digits import digits, job_folder, job_spec

Images = NDArray[np.float32]
NUMBERS = {"epochs": 4, "rate": 4e-3, "batch": 64, "patience": 4, "distill_pct": 50}


@pytest.fixture(scope="module")
def held_out() -> tuple[Images, NDArray[np.int64], Rows]:
    """What nothing is trained on, and the rest as rows."""
    from examples.digits import HELD_OUT
    from examples.digits.data import load

    data = load(HELD_OUT)
    return data.test_x, data.test_y, Rows(data.train_x, data.train_y, "float32", 64)


def network(name: str = "heavy") -> Network:
    path = digits() / f"{name}.pt2"
    return network_of(TorchModel(path, parse_model(path, Limits()).signature))


def accuracy(one: Network, x: Images, y: NDArray[np.int64]) -> float:
    return float((run(one, [x])[0].argmax(1) == y).mean())


@pytest.mark.parametrize("name", ["heavy", "light"])
def test_as_modules_and_folded_it_answers_the_same(
    name: str, held_out: tuple[Images, NDArray[np.int64], Rows], tmp_path: Path
) -> None:
    x = held_out[0][:20]
    one = network(name)
    wanted = one.teacher.run([x])[0]
    assert run(one, [x])[0] == pytest.approx(wanted, abs=1e-5)
    fold(one)
    assert any("normalisations folded" in note for note in one.notes)
    assert not any("batch_norm" in str(node.target) for node in one.module.graph.nodes)
    assert run(one, [x])[0] == pytest.approx(wanted, abs=1e-3)
    save_network(one, tmp_path / "again.pt2")
    again = TorchModel(tmp_path / "again.pt2", one.signature)
    assert again.run([x])[0] == pytest.approx(wanted, abs=1e-3)
    assert parse_model(tmp_path / "again.pt2", Limits()).signature.inputs[0].shape[0] == "batch"


def test_pruning_takes_channels_and_training_gives_the_accuracy_back(
    held_out: tuple[Images, NDArray[np.int64], Rows], tmp_path: Path
) -> None:
    x, y, rows = held_out
    one = network()
    whole, before = one.parameters(), accuracy(one, x, y)
    widths = {len(found) for name, found in one.module.named_parameters() if found.ndim == 4}
    prune(one, 50, 8)
    assert one.parameters() < whole / 3
    assert {len(f) for _, f in one.module.named_parameters() if f.ndim == 4} == {
        width // 2 for width in widths
    }
    pruned = accuracy(one, x, y)
    assert pruned < before - 0.1, "the negative control: nothing is for free"
    told: list[float] = []

    def go_on(share: float) -> bool:
        told.append(share)
        return True

    train(Training(one, rows, NUMBERS, 1, go_on), FINE_TUNE)
    assert told == [0.25, 0.5, 0.75, 1.0]
    assert accuracy(one, x, y) > max(0.95, pruned)
    assert "trained 4 epochs on" in one.notes[-1]
    save_network(one, tmp_path / "pruned.pt2")
    assert (tmp_path / "pruned.pt2").stat().st_size < (digits() / "heavy.pt2").stat().st_size / 2
    assert accuracy(network_of(one.teacher), x, y) == before, "the pushed program stays as it is"


def test_training_stops_when_it_is_told_to_and_is_the_same_again(
    held_out: tuple[Images, NDArray[np.int64], Rows],
) -> None:
    x, _, rows = held_out
    few = Rows(rows.x[:100], None, "float32", 50)
    found = []
    for _ in range(2):
        one = network("light")
        train(Training(one, few, NUMBERS, 3, lambda share: share < 0.5), FINE_TUNE)
        assert "trained 1 epochs on 80 rows" in one.notes[-1]
        found.append(run(one, [x[:10]])[0])
    assert (found[0] == found[1]).all()
    short = Training(network("light"), Rows(rows.x[:10], None, "float32", 5), NUMBERS, 1, bool)
    with pytest.raises(InvalidError, match="too few to train on"):
        train(short, FINE_TUNE)


def test_only_marked_functions_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidError, match="os:system is no training step"):
        find_step("os:system")
    with pytest.raises(InvalidError, match="this worker has no training step"):
        find_step("nowhere.at_all:step")

    @training_step
    def diverging(task: Training) -> None:
        for one in task.network.module.parameters():
            one.data.fill_(float("nan"))

    monkeypatch.setattr("tests.support.digits.step", diverging, raising=False)
    task = Training(network("light"), Rows(np.zeros((1, 1)), None, "float32", 1), {}, 1, bool)
    with pytest.raises(InvalidError, match="left weights that are no numbers"):
        train(task, "tests.support.digits:step")


def test_a_pruned_build_comes_out_of_a_job_and_its_gate_judges_it(tmp_path: Path) -> None:
    recipes = ("onnxruntime-fp32", "onnxruntime-pruned-int8")
    source = digits() / "heavy.pt2"
    spec = job_spec(source, recipes)
    quick = {"train": {"step": FINE_TUNE, "epochs": 3}}
    spec["builds"][1]["spec"]["passes"] = [{"prune": {"share_pct": 50}}, quick, "fold"]
    folder = job_folder(tmp_path / "job", source, spec, digits() / "digits.npz")
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["progress_pct"] for line in done.stdout.splitlines()]
    assert told == sorted(told)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    plain, pruned = (row for row in result["builds"])
    assert pruned["ok"], pruned["error"]
    assert pruned["length"] < plain["length"] / 6, "half the channels, a quarter of the bytes each"
    evidence = Evidence.from_json(pruned["evidence"])
    assert [note.split()[0] for note in evidence.notes] == ["pruned", "trained", "4"]
    assert evidence.fp32_p50_ms != evidence.p50_ms, "held against the whole network as float"
    assert [batch for batch, _ in evidence.batch_p50_ms] == [1, 2, 4, 8, 16, 32]
    assert Evidence.from_json(evidence.to_json()) == evidence
    assert choose_batch(evidence.batch_p50_ms) > 1, "small pictures gain by company"
    # Three epochs on a hundred rows teach it little, and the gate says so.
    shipped = parse_recipe("onnxruntime-pruned-int8", spec["builds"][1]["spec"])
    profile = parse_profile("x", {"runtimes": ["onnxruntime"], "recipes": [shipped.name]})
    found = gate(evidence, profile, shipped, host_matches=False)
    assert found.verdict is GateVerdict.REFUSED
    assert "the lower end has to reach −3 points" in found.reason
    assert any("pruned from" in one.text for one in found.findings)


def _figures(lost: int, n: int) -> Figures:
    delta, share = paired_difference_pts(0, lost, n), share_pct(n - lost, n)
    return Figures(share, share, delta, share)


def test_more_layers_go_back_to_float_only_where_that_could_prove_it() -> None:
    spec: Any = {"runtime": "onnxruntime", "precision": "int8"}
    recipe = parse_recipe("r", {**spec, "gate": {"max_accuracy_drop_pts": 2.0}})
    assert not is_worth_more(_figures(1, 500), recipe), "it is met"
    assert is_worth_more(_figures(20, 500), recipe)
    assert not is_worth_more(_figures(2, 20), recipe), "twenty rows prove nothing anyway"
    asked = [parse_recipe("r", {**spec, "quantization": {"fallback_steps": n}}) for n in (0, 3)]
    assert list(cautions(recipe, 5, judged=True)) == [0, 1]
    assert list(cautions(recipe, 5, judged=False)) == [1], "nobody would notice what it loses"
    assert [list(cautions(one, 5, judged=False)) for one in asked] == [[0], [1, 2, 3]]
    assert list(cautions(asked[1], 0, judged=False)) == [0], "a runtime that offers no more"


def test_the_layer_that_loses_most_is_the_first_to_go_back(tmp_path: Path) -> None:
    """The second product has weights a thousand times the others, for an input that is always 0."""
    from onnx import TensorProto, helper, numpy_helper

    from controller.domain.model import Signature, TensorSpec
    from controller.optimize.builder import Order
    from controller.optimize.quantize_onnx import quantize_onnx

    random = np.random.default_rng(0)
    weights = [random.normal(size=(16, 16)).astype(np.float32) for _ in range(3)]
    weights[0][:, 0] = 0
    weights[1][0] *= 1000  # of all outputs: with a scale that holds them all others round to 0
    nodes = [
        helper.make_node("MatMul", [("x", "a", "b")[n], f"w{n}"], [("a", "b", "y")[n]], f"m{n}")
        for n in range(3)
    ]
    batch = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 16]) for n in "xy"]
    stored = [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", batch[:1], batch[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "float.onnx")
    x, y = (TensorSpec(name, "FP32", ("batch", 16)) for name in "xy")
    signature = Signature((x,), (y,))
    inputs = random.normal(size=(50, 16)).astype(np.float32)
    rows = Rows(inputs, None, "float32", 10)
    recipe = parse_recipe("r", {"runtime": "onnxruntime", "precision": "int8"})
    order = Order(recipe, rows, caution=0)
    target = tmp_path / "int8.onnx"
    quantize_onnx(tmp_path / "float.onnx", target, signature, order)
    assert rank_layers(tmp_path / "float.onnx", target, rows, signature)[0] == "m1"
    again = Order(recipe, rows, caution=2)
    quantize_onnx(tmp_path / "float.onnx", target, signature, again)
    assert again.ranking[0] == "m1"
    assert again.notes == ["0 first layers and 1 that lose most kept in float"]
    gone = Order(recipe, rows, caution=2)
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "other.onnx", signature, gone)
    assert gone.ranking == again.ranking, "also where the try before is not there any more"
    made = {node.name: node for node in onnx.load(target).graph.node if node.op_type == "MatMul"}
    assert made["m1"].input[1] == "w1", "as it was"
    assert made["m0"].input[1] != "w0"


def test_passes_are_only_for_programs_of_pytorch(tmp_path: Path) -> None:
    assert parse_passes(["fold"], "x")
    from tests.support.catalogue import tiny_onnx

    (tmp_path / "tiny.onnx").write_bytes(tiny_onnx(1))
    spec = job_spec(
        tmp_path / "tiny.onnx", ("onnxruntime-fp32",), calibration=False, evaluation=False
    )
    spec["builds"][0]["spec"]["passes"] = ["fold"]
    folder = job_folder(tmp_path / "job", tmp_path / "tiny.onnx", spec)
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (row,) = json.loads((folder / "result.json").read_text(encoding="utf-8"))["builds"]
    assert "push the .pt2 of torch.export.save" in row["error"]
