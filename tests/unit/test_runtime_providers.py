"""ONNX Runtime's providers: what is asked for and not there is said, and computed on the CPU."""

from pathlib import Path

import onnxruntime
import pytest

from agent.domain.probation import Trial
from agent.errors import LoadError
from agent.runtime import onnxruntime as mine
from agent.runtime.backend import Backend, Options
from agent.runtime.onnxruntime import load
from agent.runtime.registry import open_backend
from tests.support.serving import Bench, scaled, tensor

GPU = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
AT_CPU = "CPUExecutionProvider computes"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "two.onnx"
    path.write_bytes(scaled(2.0))
    return str(path)


@pytest.mark.skipif(
    bool(GPU & set(onnxruntime.get_available_providers())), reason="this ONNX Runtime has a GPU"
)
def test_without_the_accelerator_the_cpu_computes_and_says_so(file: str, tmp_path: Path) -> None:
    backend = load(file, {"providers": "tensorrt, cuda"})
    said = f"TensorrtExecutionProvider and CUDAExecutionProvider not there: {AT_CPU}"
    assert backend.remarks() == (said,)  # type: ignore[attr-defined]
    assert backend.spent_s(0) == 0.0, "this thread did the work"  # type: ignore[attr-defined]
    assert bytes(backend.run({"x": tensor()})["y"].data)[:4] == b"\0\0\0@"
    assert load(file, {"providers": "cpu"}).remarks() == ()  # type: ignore[attr-defined]

    def on_cuda(runtime: str, path: str, options: Options) -> Backend:
        return open_backend(runtime, path, {**options, "providers": "cuda"})

    bench = Bench(tmp_path, open_backend=on_cuda)
    bench.serve("1.0.0", {"heavy": scaled(2.0)}, Trial.COMMITTED)
    serving = bench.host.serving("photo")
    assert serving is not None
    assert serving.remarks == (f"heavy: CUDAExecutionProvider not there: {AT_CPU}",)
    bench.host.close()


@pytest.mark.parametrize("text", ["cdua", "", "cuda,tpu"])
def test_a_slip_is_no_fallback(file: str, text: str) -> None:
    with pytest.raises(LoadError, match="known are cpu, cuda, tensorrt"):
        load(file, {"providers": text})


def test_what_an_accelerator_is_told(tmp_path: Path) -> None:
    options = {"device_id": 1, "gpu_memory_bytes": 7, "fp16": True, "digest": "sha256:ab",
        "cache_dir": str(tmp_path)}  # fmt: skip
    assert mine._settings("CUDAExecutionProvider", options) == {
        "device_id": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "7",
    }
    kept = str(tmp_path / "onnxruntime-tensorrt" / "ab")
    assert mine._settings("TensorrtExecutionProvider", options) == {
        "device_id": "1",
        "trt_max_workspace_size": "7",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": kept,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": kept,
    }


def test_a_real_gpu(file: str) -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu and a GPU")
    backend = load(file, {"providers": "cuda", "cpu_fallback": False})
    assert bytes(backend.run({"x": tensor()})["y"].data)[:4] == b"\0\0\0@"
    assert backend.spent_s(0) == float("inf")  # type: ignore[attr-defined]
