"""TorchScript in the job process and past the worker: real models, and code that is not ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.domain.tensor import DType, Tensor
from agent.runtime.registry import open_backend
from controller.domain.build import Evidence
from controller.errors import InvalidError
from controller.optimize import build_torchscript
from controller.optimize.builder import Order
from controller.optimize.rows import load_rows
from controller.optimize.source import LoadedSource
from controller.optimize.spec import parse_spec, read_spec
from controller.optimize.torchscript_archive import check
from controller.worker.worker import outputs_of, read_result
from tests.support.digits import digits, job_folder, job_spec
from tests.support.serving import scaled
from tests.support.torchscript_builds import (
    BROKEN,
    FLOAT,
    HOSTILE,
    TorchSource,
    archive_of,
    code_with,
    export,
    foreign,
)

TS, ORT = "torchscript-fp32", "onnxruntime-fp32"
Json = dict[str, Any]
Built = tuple[Path, dict[str, Json]]


def run(folder: Path) -> dict[str, Json]:
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {row["recipe"]: row for row in result["builds"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The light digits by PyTorch's runtime alone."""
    files, folder = digits(), tmp_path_factory.mktemp("built") / "job"
    spec = job_spec(files / "light.pt2", (TS,))
    job_folder(folder, files / "light.pt2", spec, files / "digits.npz")
    return folder, run(folder)


def test_it_is_built_and_agrees_with_the_source(built: Built) -> None:
    folder, rows = built
    assert rows[TS]["ok"], rows[TS]
    found = Evidence.from_json(rows[TS]["evidence"])
    assert found.agreement is not None
    assert (found.agreement.value, found.agreement.n) == (100.0, 375)
    assert (found.rows_compared, found.rows_differing) == (32, 0)
    assert set(found.tool_versions) == {"torch"}, "nothing went through ONNX"
    assert not (folder / "work" / "fp32.onnx").exists()
    spec, result = read_spec(folder / "spec.json"), read_result(folder / "result.json")
    ((digest, path),) = outputs_of(result, spec, folder / "outputs")
    assert digest == rows[TS]["digest"]
    assert check(path, "it") == spec.signature


def test_the_agent_answers_as_the_source_does(built: Built) -> None:
    spec = read_spec(built[0] / "spec.json")
    source = TorchSource(digits() / "light.pt2")
    rows = load_rows(built[0] / "inputs" / "evaluation", spec.signature, 1)
    image = np.ascontiguousarray(rows.x[:50].astype(np.float32))
    backend = open_backend("torch", str(built[0] / "outputs" / "b-0.torch"), {})
    found = backend.run({"image": Tensor("image", DType.FP32, image.shape, image.tobytes())})
    scores = np.frombuffer(found["output"].data, np.float32).reshape(50, 10)
    wanted = source.torch().run([image])[0].astype(np.float32)
    assert float(np.abs(scores - wanted).max()) < 1e-4
    backend.close()


def test_a_compile_gives_the_same_bytes_again(built: Built, tmp_path: Path) -> None:
    shipped = (built[0] / "outputs" / "b-0.torch").read_bytes()
    for _ in range(2):
        assert archive_of(digits() / "light.pt2", tmp_path) == shipped
    for word in (b"debug_pkl", b"torch_mangle", b"site-packages", b"examples"):
        assert word not in shipped, "no notes of the author's code or the build host"


def test_what_onnx_cannot_say_is_built_all_the_same(tmp_path: Path) -> None:
    import torch

    source = export(lambda x: torch.igamma(x.abs() + 1, x.abs() + 2), tmp_path)
    spec = job_spec(source, (ORT, TS), calibration=False, evaluation=False)
    rows = run(job_folder(tmp_path / "job", source, spec))
    assert "cannot export the model to ONNX" in rows[ORT]["error"]
    assert not rows[ORT]["lacking"]
    assert rows[TS]["ok"], rows[TS]


def test_an_onnx_source_has_no_program(tmp_path: Path) -> None:
    source = tmp_path / "two.onnx"
    source.write_bytes(scaled(2.0))
    spec = parse_spec(json.dumps(job_spec(source, (TS,))))
    loaded = LoadedSource(spec, source, tmp_path, lambda pct, step: None)
    with pytest.raises(InvalidError, match="the source is an ONNX file"):
        build_torchscript.compile_build(loaded, Order(FLOAT), tmp_path / "made")


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    path = export(lambda a, b: (a - b, a + b), tmp_path, "a", "b")
    source, target = TorchSource(path), tmp_path / "made"
    build_torchscript.compile_build(source, Order(FLOAT), target)
    one, two = np.full((3, 4), 5, np.float32), np.full((3, 4), 2, np.float32)
    found = build_torchscript.open_build(target, source.signature).run([one, two])
    assert [float(array[0, 0]) for array in found] == [3.0, 7.0]


@pytest.mark.parametrize("how", [*sorted(BROKEN), "foreign"])
def test_no_other_archive_is_taken(built: Built, tmp_path: Path, how: str) -> None:
    ours = (built[0] / "outputs" / "b-0.torch").read_bytes()
    file = tmp_path / "broken"
    file.write_bytes(foreign(tmp_path) if how == "foreign" else BROKEN[how](ours))
    with pytest.raises(InvalidError):
        check(file, "it")


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_code_that_does_more_than_compute_is_refused(
    built: Built, tmp_path: Path, how: str
) -> None:
    ours = (built[0] / "outputs" / "b-0.torch").read_bytes()
    file = tmp_path / "hostile"
    file.write_bytes(code_with(ours, "_9 = torch.relu(argument_1)"))
    check(file, "it")  # such a line alone is fine
    file.write_bytes(code_with(ours, *HOSTILE[how]))
    with pytest.raises(InvalidError, match="holds code that a build has not"):
        check(file, "it")


def test_a_worker_brings_no_program_that_its_job_made_up(built: Built, tmp_path: Path) -> None:
    """The job opens what authors push, so its word is worth nothing."""
    folder, _ = built
    spec, result = read_spec(folder / "spec.json"), read_result(folder / "result.json")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    ours = (folder / "outputs" / "b-0.torch").read_bytes()
    file = outputs / "b-0.torch"
    file.write_bytes(code_with(ours, *HOSTILE["writes a file"]))
    from controller.optimize.outcome import digest_of

    result["builds"][0] |= {"digest": digest_of(file), "length": file.stat().st_size}
    with pytest.raises(InvalidError, match=r"torch\.save"):
        outputs_of(result, spec, outputs)
