"""Builds for TensorRT from real models: the graph that ships is what its parser takes, and ONNX
Runtime's figures of it are called that.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agent.runtime import tensorrt as on_device
from agent.runtime.packed import unpack
from controller.domain.build import Evidence, GateVerdict, parse_recipe
from controller.domain.device import parse_profile
from controller.domain.gate import gate
from tests.support.digits import digits, job_folder, job_spec

RECIPES = ("tensorrt-fp16", "tensorrt-int8")
Json = dict[str, Any]
Built = tuple[Path, dict[str, Json]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The light digits in both precisions that are shipped."""
    files, folder = digits(), tmp_path_factory.mktemp("built") / "job"
    spec = job_spec(files / "light.pt2", RECIPES)
    job_folder(folder, files / "light.pt2", spec, files / "digits.npz")
    command = [sys.executable, "-I", "-m", "controller.optimize.job", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return folder, {row["recipe"]: row for row in result["builds"]}


def graph_of(built: Built, name: str) -> bytes:
    return unpack(str(built[0] / name), "tensorrt").payload


FP16, INT8 = "outputs/b-0.tensorrt", "outputs/b-1.tensorrt"
FLOAT = "work/float.tensorrt"


def test_accuracy_is_measured_and_speed_is_not_claimed(built: Built) -> None:
    profile = parse_profile(
        "orin",
        {"runtimes": ["tensorrt"], "recipes": [], "latency_budget_ms": 0.000001},
    )
    for place, name in enumerate(RECIPES):
        assert built[1][name]["ok"], built[1][name]
        found = Evidence.from_json(built[1][name]["evidence"])
        assert (found.stand_in, found.peak_rss_bytes) == ("onnxruntime", None)
        assert found.agreement is not None
        assert found.agreement.value > 97
        spec = json.loads((built[0] / "spec.json").read_text())["builds"][place]["spec"]
        judged = gate(found, profile, parse_recipe(name, spec), True)
        assert judged.verdict is GateVerdict.PASSED, judged.reason
        assert "speed not measured: onnxruntime answered for tensorrt" in judged.reason
        assert "latency not measured: onnxruntime answered here" in judged.reason


def test_int8_is_of_the_kind_that_tensorrt_takes(built: Built) -> None:
    """Signed, symmetric, biases in float: it refuses or ignores everything else."""
    graph = onnx.load_from_string(graph_of(built, INT8)).graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [values[node.input[2]] for node in pairs]
    assert len(pairs) > 10
    assert {str(zero.dtype) for zero in zeros} == {"int8"}
    assert not any(np.any(zero) for zero in zeros)
    half = onnx.load_from_string(graph_of(built, FP16)).graph
    assert {one.data_type for one in half.initializer} & {onnx.TensorProto.FLOAT16}
    assert half.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert len(graph_of(built, FP16)) < 0.75 * len(graph_of(built, FLOAT))


# Of a library with TensorRT's interface; it calls keeping timings deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_builder_takes_them_all(built: Built) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")

    def for_ampere(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.ComputeCapability.SM86, 0)

    for name in (FLOAT, FP16, INT8):
        found = unpack(str(built[0] / name), "tensorrt")
        plan, _ = on_device.make_engine(library, found, {}, lambda *_: None, b"", for_ampere)
        assert len(plan) > 10_000
