"""Distilling, training for INT8, checkpoints and lower resolutions, on the digits networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from controller.domain.build import parse_recipe
from controller.domain.passes import DISTILL, FINE_TUNE
from controller.errors import InvalidError
from controller.intake.models import parse_model
from controller.optimize.builder import Order
from controller.optimize.export_onnx import export_onnx
from controller.optimize.import_torch import TorchModel
from controller.optimize.passes import loop
from controller.optimize.passes.checkpoint import Checkpoint
from controller.optimize.passes.lessons import unlike
from controller.optimize.passes.network import Network, network_of, run, save_network
from controller.optimize.passes.resolution import lower_resolution
from controller.optimize.passes.train import Training, train
from controller.optimize.quantize_onnx import quantize_onnx
from controller.optimize.rows import Rows
from controller.services.context import Limits
from tests.support.digits import digits

NUMBERS = {
    "epochs": 4, "rate": 2e-3, "batch": 64, "patience": 9, "distill_pct": 90, "mix_pct": 75,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> Rows:
    from examples.digits import HELD_OUT
    from examples.digits.data import load

    data = load(HELD_OUT)
    return Rows(data.train_x[:400], data.train_y[:400], "float32", 64)


def network(name: str = "light") -> Network:
    path = digits() / f"{name}.pt2"
    return network_of(TorchModel(path, parse_model(path, Limits()).signature))


def task(one: Network, rows: Rows) -> Training:
    return Training(one, rows, NUMBERS, 1, lambda _: True)


def answers(one: Network, rows: Rows) -> NDArray[np.float32]:
    return run(one, [rows.x[:50]])[0].astype(np.float32)


def test_a_light_network_comes_to_answer_as_its_teacher(rows: Rows) -> None:
    one, teacher = network(), network("heavy").teacher
    said = torch.from_numpy(teacher.run([rows.x])[0])

    def apart() -> float:
        return float(unlike(torch.from_numpy(run(one, [rows.x])[0]), said))

    before = apart()
    with pytest.raises(InvalidError, match="distilling needs a teacher"):
        train(task(one, rows), DISTILL)
    longer = {**NUMBERS, "epochs": 16, "patience": 16}
    train(replace(task(one, rows), by=teacher, numbers=longer), DISTILL)
    assert apart() < 0.8 * before
    alone = network()
    numbers = {**longer, "distill_pct": 0}
    train(replace(task(alone, rows), numbers=numbers), FINE_TUNE)
    others = float(unlike(torch.from_numpy(run(alone, [rows.x])[0]), said))
    assert others > apart(), "the labels alone do not bring it there"


class _Killed(BaseException):
    """As a kill would, it passes by what catches errors."""


def test_a_killed_training_goes_on_where_it_was(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    whole = network()
    train(task(whole, rows), FINE_TUNE)
    kept = Checkpoint(tmp_path / "checkpoints" / "one.pt", "this training")

    def killed(share: float) -> bool:
        if share > 0.7:
            raise _Killed
        return True

    with pytest.raises(_Killed):
        train(replace(task(network(), rows), go_on=killed, checkpoint=kept), FINE_TUNE)
    told: list[float] = []

    def go_on(share: float) -> bool:
        told.append(share)
        return True

    again = network()
    train(replace(task(again, rows), go_on=go_on, checkpoint=kept), FINE_TUNE)
    assert told == [0.75, 1.0], "two epochs were there"
    assert "went on after epoch 2" in again.notes[-1]
    assert (answers(again, rows) == answers(whole, rows)).all(), "as if nothing had happened"
    other = network()
    of_another = Checkpoint(kept.path, "another training")
    train(replace(task(other, rows), checkpoint=of_another), FINE_TUNE)
    assert "went on" not in other.notes[-1]
    (tmp_path / "checkpoints" / "one.pt").write_bytes(b"cut")
    assert kept.load() is None


def test_ranges_that_training_learned_are_those_of_the_build(rows: Rows, tmp_path: Path) -> None:
    one = network()
    short = {**NUMBERS, "epochs": 1}
    few = replace(rows, x=rows.x[:150], y=None)
    train(replace(task(one, few), numbers=short, quantize=True), FINE_TUNE)
    layers = [node for node in one.module.graph.nodes if "conv" in str(node.target)]
    assert len(one.ranges) == len(layers) + 1, "and the last product"
    save_network(one, tmp_path / "trained.pt2")
    export_onnx(TorchModel(tmp_path / "trained.pt2", one.signature), tmp_path / "float.onnx")
    recipe = parse_recipe("r", {"runtime": "onnxruntime", "precision": "int8"})

    def scales(order: Order) -> list[float]:
        quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", one.signature, order)
        graph = onnx.load(tmp_path / "int8.onnx").graph
        stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        made = {name: node for node in graph.node for name in node.output}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        return [float(stored[made[node.input[0]].input[1]]) for node in convolutions]

    learned = [(r.high - r.low) / 255 for r in one.ranges[: len(layers)]]
    assert scales(Order(recipe, few, caution=0, ranges=one.ranges)) == pytest.approx(learned)
    assert scales(Order(recipe, few, caution=0)) != pytest.approx(learned), "calibration's own"
    odd = Order(recipe, few, caution=0, ranges=one.ranges[1:])
    assert scales(odd) != pytest.approx(learned)
    assert "do not fit the exported layers" in odd.notes[-1]


def test_a_lower_resolution_inside_keeps_the_signature(rows: Rows, tmp_path: Path) -> None:
    one = network("heavy")
    wanted = answers(one, rows)
    lower_resolution(one, 65, 0, 0)
    assert one.notes == ["computed at 10 by 10 instead of 16 by 16"]
    found = answers(one, rows)
    assert found.shape == wanted.shape
    agree = (found.argmax(1) == wanted.argmax(1)).mean()
    assert 0.3 < agree < 1, "cheaper, and not for nothing: the gate judges it"
    save_network(one, tmp_path / "lower.pt2")
    assert parse_model(tmp_path / "lower.pt2", Limits()).signature == one.signature
    with pytest.raises(InvalidError, match="is no lower than the program's"):
        lower_resolution(network("heavy"), 65, 64, 64)


class _Map(torch.nn.Module):
    """A picture of the same size, and one whose last layer takes a single size."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.last = torch.nn.Linear(4 * 64, 10) if fixed else torch.nn.Conv2d(4, 1, 1)
        self.fixed = fixed

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.first(image)
        made: torch.Tensor = self.last(found.flatten(1) if self.fixed else found)
        return made


@pytest.mark.parametrize("fixed", [False, True])
def test_maps_are_scaled_back_and_fixed_sizes_refused(tmp_path: Path, fixed: bool) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        _Map(fixed).eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes={"image": {0: batch}}
    )
    torch.export.save(program, tmp_path / "map.pt2")
    signature = parse_model(tmp_path / "map.pt2", Limits()).signature
    one = network_of(TorchModel(tmp_path / "map.pt2", signature))
    if fixed:
        with pytest.raises(InvalidError, match="takes one resolution only"):
            lower_resolution(one, 50, 0, 0)
        return
    lower_resolution(one, 0, 4, 6)
    assert run(one, [np.zeros((3, 1, 8, 8), np.float32)])[0].shape == (3, 1, 8, 8)
