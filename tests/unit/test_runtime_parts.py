"""The small parts of the runtime room: gate, finite check, ONNX Runtime's file, registry."""

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.clock import SystemClock
from agent.domain.tensor import DType, Tensor
from agent.errors import LoadError
from agent.runtime.finite import all_finite
from agent.runtime.gate import Gate
from agent.runtime.registry import open_backend
from tests.support.serving import scaled
from tests.support.wait import wait_for

ONNX_TYPES = {
    DType.BOOL: TensorProto.BOOL,
    DType.UINT8: TensorProto.UINT8,
    DType.UINT16: TensorProto.UINT16,
    DType.UINT32: TensorProto.UINT32,
    DType.UINT64: TensorProto.UINT64,
    DType.INT8: TensorProto.INT8,
    DType.INT16: TensorProto.INT16,
    DType.INT32: TensorProto.INT32,
    DType.INT64: TensorProto.INT64,
    DType.FP16: TensorProto.FLOAT16,
    DType.FP32: TensorProto.FLOAT,
    DType.FP64: TensorProto.DOUBLE,
}


def test_a_gate_lets_in_by_order_of_arrival_and_ages_who_waits() -> None:
    clock = SystemClock()
    gate = Gate(1, clock)
    assert gate.enter() < 0.1
    order: list[int] = []

    def come(number: int, waited_s: float = 0.0) -> None:
        gate.enter(waited_s)
        order.append(number)
        gate.leave()

    threads = []
    # The last one has waited elsewhere already, longer than any other here.
    for number, waited_s in ((0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0), (4, 60.0)):
        thread = threading.Thread(target=come, args=(number, waited_s))
        thread.start()
        threads.append(thread)
        wait_for(partial(_waits, gate, number + 1), 5, "the thread to wait")
    assert gate.age_s(clock.monotonic() + 3.0) >= 3.0
    gate.leave()
    for thread in threads:
        thread.join()
    assert order == [4, 0, 1, 2, 3]
    now = clock.monotonic()
    # Waits that are over count for a second more, so that a look once a second sees them.
    assert 60.0 <= gate.age_s(now) < 90.0
    assert gate.age_s(now + 5.0) == 0.0


def _waits(gate: Gate, threads: int) -> bool:
    return len(gate._waiting) == threads


def test_what_waited_elsewhere_counts() -> None:
    gate = Gate(1, SystemClock())
    assert gate.enter(waited_s=2.0) >= 2.0


@pytest.mark.parametrize("dtype", [DType.FP16, DType.FP32, DType.FP64])
@pytest.mark.parametrize(("value", "finite"), [(1.5, True), (np.nan, False), (-np.inf, False)])
def test_finite(dtype: DType, value: float, finite: bool) -> None:
    kind = {DType.FP16: np.float16, DType.FP32: np.float32, DType.FP64: np.float64}[dtype]
    data = np.array([0.0, value, 3.0], kind)
    assert all_finite([Tensor("y", dtype, (3,), data.tobytes())]) is finite


def test_finite_knows_bfloat16_and_leaves_integers_alone() -> None:
    assert all_finite([Tensor("y", DType.BF16, (2,), b"\x80\x3f\x00\x00")])
    assert not all_finite([Tensor("y", DType.BF16, (2,), b"\x80\x3f\x80\x7f")])
    assert all_finite([Tensor("y", DType.INT32, (1,), b"\xff\xff\xff\xff")])
    assert all_finite([Tensor("y", DType.FP32, (0,), b"")])


@pytest.mark.parametrize("dtype", list(ONNX_TYPES), ids=str)
def test_onnxruntime_carries_every_element_type(dtype: DType, tmp_path: Path) -> None:
    kind = ONNX_TYPES[dtype]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", kind, ["n", 3])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "same.onnx"
    path.write_bytes(model.SerializeToString())
    backend = open_backend("onnxruntime", str(path), {})
    signature = backend.signature()
    assert signature is not None
    assert signature.inputs[0].dtype is dtype
    assert signature.inputs[0].shape == ("n", 3)
    array = np.arange(6).astype(helper.tensor_dtype_to_np_dtype(kind)).reshape(2, 3)
    given = Tensor("x", dtype, (2, 3), array.tobytes())
    result = backend.run({"x": given})["y"]
    assert (result.dtype, result.shape, bytes(result.data)) == (dtype, (2, 3), bytes(given.data))
    empty = backend.run({"x": Tensor("x", dtype, (0, 3), b"")})["y"]
    assert (empty.shape, empty.nbytes) == ((0, 3), 0)
    backend.close()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, scaled(1.0)[:-20], b"\x08\x09pickle"])
def test_onnxruntime_refuses_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot load"):
        open_backend("onnxruntime", str(path), {})


def test_onnxruntime_refuses_numbers_that_the_protocol_has_not(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "float8",
        [value("x", TensorProto.FLOAT8E4M3FN, [1])],
        [value("y", TensorProto.FLOAT8E4M3FN, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "float8.onnx")
    with pytest.raises(LoadError, match="no buffer form"):
        open_backend("onnxruntime", str(tmp_path / "float8.onnx"), {})


def test_a_missing_runtime_is_a_named_error() -> None:
    with pytest.raises(LoadError, match=r"'tvm' is not known to this agent\n.*onnxruntime"):
        open_backend("tvm", "x", {})


def test_heavy_libraries_stay_out_until_a_model_is_loaded() -> None:
    program = (
        "import sys, agent.runtime.host, agent.runtime.onnxruntime, agent.runtime.openvino,"
        " agent.runtime.torchscript, agent.serve.server,"
        " agent.host.capabilities\n"
        "agent.host.capabilities.installed_runtimes()\n"
        "print([m for m in ('numpy', 'onnxruntime', 'openvino', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_onnxruntime_absent_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "from agent.errors import LoadError\n"
        "from agent.runtime.registry import open_backend\n"
        "try:\n    open_backend('onnxruntime', 'x', {})\n"
        "except LoadError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "runtime 'onnxruntime' is not installed" in done.stdout
    assert "pip install 'lighterman[onnxruntime]'" in done.stdout
