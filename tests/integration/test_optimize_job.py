"""The job process on real models: what it compiles, measures and says when it cannot."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from controller.domain.build import Evidence
from controller.intake.torch_export import sanitize_pt2
from controller.optimize.tasks.classes import NOT_A_CLASS, compare
from tests.support.digits import digits, job_folder, job_spec

FP32, INT8 = "onnxruntime-fp32", "onnxruntime-int8"
Json = dict[str, Any]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def files() -> Path:
    return digits()


def run(folder: Path) -> Done:
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def result_of(folder: Path) -> dict[str, Json]:
    done = run(folder)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["schema"] == 1
    return {row["recipe"]: row for row in result["builds"]}


@pytest.fixture(scope="module")
def heavy(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Both recipes of the heavy variant, from the file as it is stored."""
    root = tmp_path_factory.mktemp("heavy")
    sanitize_pt2(files / "heavy.pt2", root / "stored.pt2")
    spec = job_spec(root / "stored.pt2")
    folder = job_folder(root / "job", root / "stored.pt2", spec, files / "digits.npz")
    return folder, run(folder)


def test_both_recipes_are_built_with_evidence(heavy: tuple[Path, Done], files: Path) -> None:
    folder, done = heavy
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [(row["recipe"], row["ok"], row["error"]) for row in result["builds"]] == [
        (FP32, True, ""), (INT8, True, ""),
    ]  # fmt: skip
    trained = json.loads((files / "facts.json").read_text(encoding="utf-8"))["heavy"]["accuracy"]
    for row in result["builds"]:
        found = Evidence.from_json(row["evidence"])
        assert found.size_bytes == row["length"]
        assert found.accuracy is not None
        assert found.agreement is not None
        assert found.accuracy.n == found.agreement.n == 375
        assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high
        assert abs(found.accuracy.value - 100 * trained) < 3
        assert found.agreement.value > 97
        assert found.accuracy_delta_pts is not None
        assert found.top5_accuracy is not None, "there are ten classes"
        assert found.top5_accuracy.value > found.accuracy.value - 1e-9
        assert found.latency_n >= 8
        assert 0 < found.p50_ms <= found.p95_ms
        assert found.eager_p50_ms is not None
        for value, sure in (
            (found.p50_ms, found.p50_interval_ms),
            (found.fp32_p50_ms, found.fp32_p50_interval_ms),
            (found.eager_p50_ms, found.eager_p50_interval_ms),
        ):
            assert sure is not None
            assert value is not None
            assert sure.n >= 6
            assert sure.low <= sure.value == value <= sure.high
        assert found.p50_interval_ms is not None
        assert found.p50_interval_ms.n == found.latency_n
        assert found.peak_rss_bytes is not None
        assert 30e6 < found.peak_rss_bytes < 300e6, "of the runtime, not of PyTorch"
        assert found.measured_on.split()[0] == result["host"]["arch"]
        assert {"torch", "onnx", "onnxruntime"} <= set(found.tool_versions)
        assert (found.rows_checked, found.rows_not_finite) == (375, 0)
        assert (found.rows_compared, found.rows_differing) == (32, 0)
    fp32, int8 = (Evidence.from_json(row["evidence"]) for row in result["builds"])
    assert fp32.agreement is not None
    assert fp32.agreement.value == 100
    assert int8.size_bytes < fp32.size_bytes / 3


def test_the_file_that_ships_has_the_signature_and_a_dynamic_batch(
    heavy: tuple[Path, Done],
) -> None:
    folder, _ = heavy
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for row in result["builds"]:
        path = folder / "outputs" / f"{row['build_id']}.onnx"
        assert {entry.domain for entry in onnx.load(path).opset_import} == {""}
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [(one.name, one.shape) for one in session.get_inputs()] == [
            ("image", ["batch", 1, 8, 8])
        ]
        (scores,) = session.run(["output"], {"image": np.zeros((3, 1, 8, 8), np.float32)})
        assert scores.shape == (3, 10)


def test_progress_is_all_that_stdout_carries_and_only_rises(heavy: tuple[Path, Done]) -> None:
    _, done = heavy
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    told = [line["progress_pct"] for line in lines]
    assert told == sorted(told)
    assert told[-1] == 100
    assert {"loading", "exporting", "calibrating", "evaluating", "measuring"} <= {
        line["step"] for line in lines
    }


def test_a_compile_gives_the_same_bytes_again(
    heavy: tuple[Path, Done], files: Path, tmp_path: Path
) -> None:
    folder, _ = heavy
    before = json.loads((folder / "result.json").read_text(encoding="utf-8"))["builds"]
    source = folder / "inputs" / "source"
    again = job_folder(tmp_path / "job", source, job_spec(source), files / "digits.npz")
    after = result_of(again)
    assert [after[row["recipe"]]["digest"] for row in before] == [row["digest"] for row in before]


def test_an_onnx_source_is_its_own_float_build(
    heavy: tuple[Path, Done], files: Path, tmp_path: Path
) -> None:
    source = heavy[0] / "outputs" / "b-0.onnx"
    folder = job_folder(tmp_path / "job", source, job_spec(source), files / "digits.npz")
    rows = result_of(folder)
    assert (folder / "outputs" / "b-0.onnx").read_bytes() == source.read_bytes()
    assert rows[INT8]["ok"]
    assert Evidence.from_json(rows[INT8]["evidence"]).eager_p50_ms is None


def test_int8_without_a_dataset_fails_alone(files: Path, tmp_path: Path) -> None:
    source = files / "light.pt2"
    spec = job_spec(source, calibration=False, evaluation=False)
    rows = result_of(job_folder(tmp_path / "job", source, spec))
    assert "needs calibration rows" in rows[INT8]["error"]
    assert rows[FP32]["ok"]
    found = Evidence.from_json(rows[FP32]["evidence"])
    assert (found.accuracy, found.agreement) == (None, None)
    assert (found.rows_checked, found.rows_not_finite, found.rows_generated) == (64, 0, True)
    assert (found.rows_compared, found.rows_differing) == (32, 0)


def test_a_dataset_of_another_shape_is_told(files: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((8, 3, 32, 32), np.float32))
    source = files / "light.pt2"
    folder = job_folder(tmp_path / "job", source, job_spec(source), tmp_path / "wide.npz")
    for row in result_of(folder).values():
        assert row["error"].startswith("the dataset's rows are [3, 32, 32], the model wants image[")


def test_a_file_that_pytorch_cannot_load_is_told(files: Path, tmp_path: Path) -> None:
    spec = job_spec(files / "light.pt2", calibration=False, evaluation=False)
    broken = tmp_path / "broken.pt2"
    broken.write_bytes((files / "light.pt2").read_bytes()[:2000])
    for row in result_of(job_folder(tmp_path / "job", broken, spec)).values():
        assert row["error"].startswith("PyTorch cannot load the model")


def test_a_spec_of_another_schema_is_refused(files: Path, tmp_path: Path) -> None:
    spec = job_spec(files / "light.pt2") | {"schema": 99}
    done = run(job_folder(tmp_path / "job", files / "light.pt2", spec))
    assert done.returncode == 2
    assert "schema 99, this worker knows 1 and 2" in done.stderr


def test_weights_that_are_no_numbers_never_agree(files: Path, tmp_path: Path) -> None:
    from examples.digits.networks import light, save, with_nan

    save(with_nan(light()), tmp_path / "nan.pt2")
    spec = job_spec(tmp_path / "nan.pt2", (FP32,))
    folder = job_folder(tmp_path / "job", tmp_path / "nan.pt2", spec, files / "digits.npz")
    found = Evidence.from_json(result_of(folder)[FP32]["evidence"])
    assert found.agreement is not None
    assert found.accuracy is not None
    assert (found.agreement.value, found.accuracy.value) == (0, 0)
    assert (found.rows_checked, found.rows_not_finite, found.rows_generated) == (375, 375, False)


def test_int8_of_weights_that_are_no_numbers_fails_alone(files: Path, tmp_path: Path) -> None:
    from examples.digits.networks import light, save, with_nan

    save(with_nan(light()), tmp_path / "nan.pt2")
    spec = job_spec(tmp_path / "nan.pt2")
    folder = job_folder(tmp_path / "job", tmp_path / "nan.pt2", spec, files / "digits.npz")
    rows = result_of(folder)
    assert "cannot be quantised to int8" in rows[INT8]["error"]
    assert not rows[INT8]["ok"]
    assert rows[FP32]["ok"]


def test_a_slow_model_is_evaluated_on_what_fits_and_says_so(files: Path, tmp_path: Path) -> None:
    from examples.digits.networks import Slow, light, save

    save(Slow(light(), products=24), tmp_path / "slow.pt2")
    spec = job_spec(tmp_path / "slow.pt2", (FP32,), time_s=10)
    folder = job_folder(tmp_path / "job", tmp_path / "slow.pt2", spec, files / "digits.npz")
    found = Evidence.from_json(result_of(folder)[FP32]["evidence"])
    assert found.agreement is not None
    assert 8 <= found.agreement.n < 375
    assert found.p50_ms > 20


def test_a_fixed_batch_is_kept(files: Path, tmp_path: Path) -> None:
    import torch

    from examples.digits.networks import heavy

    program = torch.export.export(heavy().eval(), (torch.zeros(8, 1, 8, 8),))
    torch.export.save(program, tmp_path / "eight.pt2")
    spec = job_spec(tmp_path / "eight.pt2")
    assert spec["signature"]["inputs"][0]["shape"][0] == 8
    folder = job_folder(tmp_path / "job", tmp_path / "eight.pt2", spec, files / "digits.npz")
    for row in result_of(folder).values():
        assert row["ok"], row["error"]
        assert row["evidence"]["agreement"]["n"] == 375, "375 is no multiple of 8"


def test_figures_are_paired_row_by_row() -> None:
    built = np.array([[1], [2], [3], [4], [NOT_A_CLASS]])
    source = np.array([[1], [2], [0], [0], [NOT_A_CLASS], [7]])
    labels = np.array([1, 0, 3, 0, 5, 7])
    found = compare(built, source, labels)
    assert found.agreement is not None
    assert (found.agreement.value, found.agreement.n) == (40.0, 5)
    assert found.accuracy is not None
    assert found.source_accuracy is not None
    assert found.accuracy_delta_pts is not None
    assert (found.accuracy.value, found.source_accuracy.value) == (40.0, 40.0)
    assert found.accuracy_delta_pts.value == 0
    assert found.accuracy_delta_pts.low < -20
    assert found.top5_accuracy is None, "the winner alone was kept"


def test_top_five_counts_any_of_the_best_five() -> None:
    built = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    source = np.array([[5, 4, 3, 2, 1], [6, 2, 3, 4, 5], [0, 8, 7, 6, 5]])
    found = compare(built, source, np.array([5, 1, 0]))
    assert found.agreement is not None
    assert found.top5_accuracy is not None
    assert found.top5_delta_pts is not None
    assert found.top5_accuracy.value == pytest.approx(200 / 3)
    assert found.top5_delta_pts.value == pytest.approx(0), "one won, one lost"
    assert found.agreement.value == 0
