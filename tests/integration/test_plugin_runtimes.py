"""Runtimes that nobody gets by default: built by the job process, run as on a device.

Each is one file per side and two entry points; what is tested of one is tested of all.
"""

import json
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.domain.tensor import DType, Tensor
from agent.errors import LoadError
from agent.host.capabilities import installed_runtimes
from agent.runtime.packed import unpack
from agent.runtime.registry import find_load, open_backend
from agent.runtime.tensorrt_rtx import check_version
from controller.domain.build import Evidence
from controller.domain.model import Signature
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.packed import pack
from controller.optimize.rows import load_rows
from controller.optimize.spec import read_spec
from tests.support.digits import digits, job_folder, job_spec

# ExecuTorch's own imports are deprecated ones.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Json = dict[str, Any]
# Name of the runtime: the module that it takes.
PLUGINS = {"executorch": "executorch", "apache-tvm": "tvm", "tensorrt-rtx": "tensorrt_rtx"}
INT8 = {"kind": "static", "activation": "s8", "weight": "s8", "calibration_rows": 60}
RECIPES: dict[str, Json] = {
    "executorch-fp32": {"runtime": "executorch", "precision": "fp32"},
    "executorch-int8": {"runtime": "executorch", "precision": "int8"},
    "tvm-fp32": {"runtime": "apache-tvm", "precision": "fp32"},
    "tvm-pi": {
        "runtime": "apache-tvm",
        "precision": "fp32",
        "quantization": {"arch": "aarch64", "cpu": "cortex-a76"},
    },
    "rtx-fp16": {"runtime": "tensorrt-rtx", "precision": "fp16"},
    "rtx-int8": {"runtime": "tensorrt-rtx", "precision": "int8", "quantization": INT8},
}


def there(runtime: str) -> bool:
    return find_spec(PLUGINS[runtime]) is not None


def need(runtime: str) -> None:
    if not there(runtime):
        pytest.skip(f"needs the package {runtime}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Json]]:
    """The light digits by all of them that are here, in one job."""
    names = [name for name, spec in RECIPES.items() if there(spec["runtime"])]
    if not names:
        pytest.skip(f"needs one of the packages {', '.join(PLUGINS)}")
    files, folder = digits(), tmp_path_factory.mktemp("built") / "job"
    spec = job_spec(files / "light.pt2", ())
    spec["builds"] = [{"build_id": name, "recipe": name, "spec": RECIPES[name]} for name in names]
    job_folder(folder, files / "light.pt2", spec, files / "digits.npz")
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return folder, {row["recipe"]: row for row in result["builds"]}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_it_is_built_and_measured(built: tuple[Path, dict[str, Json]], name: str) -> None:
    runtime = RECIPES[name]["runtime"]
    need(runtime)
    row = built[1][name]
    if name == "tvm-pi" and shutil.which("aarch64-linux-gnu-gcc") is None:
        assert row["lacking"], row
        pytest.skip("needs gcc-aarch64-linux-gnu")
    assert row["ok"], row
    found = Evidence.from_json(row["evidence"])
    assert found.agreement is not None
    assert found.agreement.value > (97 if "int8" in name else 99.7)
    assert found.rows_not_finite == 0
    stands_in = runtime == "tensorrt-rtx" or name == "tvm-pi"
    assert found.stand_in == ("onnxruntime" if stands_in else "")
    assert runtime in found.tool_versions


@pytest.mark.parametrize("name", ["executorch-fp32", "executorch-int8", "tvm-fp32"])
def test_a_device_answers_as_the_source_does(
    built: tuple[Path, dict[str, Json]], name: str
) -> None:
    runtime = RECIPES[name]["runtime"]
    need(runtime)
    folder = built[0]
    spec = read_spec(folder / "spec.json")
    rows = load_rows(folder / "inputs" / "evaluation", spec.signature, 1)
    image = np.ascontiguousarray(rows.x[:19].astype(np.float32))  # more than one part
    source = OnnxSession(onnx_of(folder), spec.signature)
    (wanted,) = source.run([image])
    assert runtime in installed_runtimes()
    backend = open_backend(runtime, str(folder / "outputs" / f"{name}.{runtime}"), {})
    found = backend.run({"image": Tensor("image", DType.FP32, image.shape, image.tobytes())})
    scores = np.frombuffer(found["output"].data, np.float32).reshape(wanted.shape)
    if "int8" in name:
        assert (scores.argmax(1) == wanted.argmax(1)).mean() > 0.9
    else:
        assert np.allclose(scores, wanted, rtol=1e-3, atol=1e-3)
    backend.close()


def onnx_of(folder: Path) -> Path:
    """PyTorch's export, made where the job needed none."""
    from controller.optimize.source import LoadedSource

    spec = read_spec(folder / "spec.json")
    work = folder / "again"
    work.mkdir(exist_ok=True)
    return LoadedSource(spec, folder / "inputs" / "source", work, lambda *_: None).onnx()


def test_machine_code_of_another_kind_is_refused(built: tuple[Path, dict[str, Json]]) -> None:
    need("apache-tvm")
    if not built[1]["tvm-pi"]["ok"]:
        pytest.skip("needs gcc-aarch64-linux-gnu")
    file = built[0] / "outputs" / "tvm-pi.apache-tvm"
    payload = unpack(str(file), "apache-tvm").payload
    assert (payload[:4], int.from_bytes(payload[18:20], "little")) == (
        b"\x7fELF",
        183,
    )  # EM_AARCH64
    with pytest.raises(LoadError, match="machine code for aarch64"):
        open_backend("apache-tvm", str(file), {})


def test_an_engine_made_ahead_waits_for_its_gpu(built: tuple[Path, dict[str, Json]]) -> None:
    need("tensorrt-rtx")
    file = built[0] / "outputs" / "rtx-int8.tensorrt-rtx"
    about = unpack(str(file), "tensorrt-rtx").about
    with pytest.raises(LoadError, match="the engine is of TensorRT-RTX"):
        check_version(about, "0.0.1")
    try:
        backend = open_backend("tensorrt-rtx", str(file), {})
    except LoadError as error:
        pytest.skip(f"needs a GPU: {error.message}")
    zeros = np.zeros((2, 1, 8, 8), np.float32)
    assert backend.run({"image": Tensor("image", DType.FP32, zeros.shape, zeros.tobytes())})


@pytest.mark.parametrize("runtime", sorted(PLUGINS))
def test_without_its_package_it_is_not_offered(runtime: str, tmp_path: Path) -> None:
    spec = {"name": "x", "dtype": "FP32", "shape": ["batch", 4]}
    signature = Signature.from_json({"inputs": [spec], "outputs": [spec]})
    about = {"arch": platform.machine(), "max_batch": 1, "version": "1", "capabilities": []}
    (tmp_path / "build").write_bytes(pack(runtime, signature, about, b"nothing"))
    load = find_load(runtime)
    if there(runtime):
        with pytest.raises(LoadError, match=f"{runtime} cannot load|engine is of"):
            load(str(tmp_path / "build"), {})
        return
    assert runtime not in installed_runtimes()
    with pytest.raises(LoadError, match=f"runtime '{runtime}' is not installed") as refused:
        load(str(tmp_path / "build"), {})
    assert "pip install 'lighterman[" in refused.value.hint
