"""OpenVINO's devices: chosen in order, fallen back from aloud, static where one wants that."""

from pathlib import Path

import numpy as np
import pytest

from agent.domain.tensor import DType, Tensor
from agent.errors import LoadError
from agent.runtime.openvino import load
from tests.support.openvino_builds import container_of
from tests.support.serving import scaled


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "two"
    path.write_bytes(container_of(scaled(2.0), tmp_path))
    return str(path)


def test_a_device_that_is_not_there_is_said(file: str) -> None:
    import openvino

    there = {name.partition(".")[0] for name in openvino.Core().available_devices}
    if there & {"GPU", "NPU"}:
        pytest.skip(f"this machine has {sorted(there)}")
    backend = load(file, {"device": "NPU, gpu"})
    assert backend.remarks() == ("OpenVINO finds no NPU and no GPU here: CPU computes",)  # type: ignore[attr-defined]
    assert backend.spent_s(0) == 0.0  # type: ignore[attr-defined]
    backend.close()
    assert load(file, {"device": "CPU,NPU"}).remarks() == ()  # type: ignore[attr-defined]
    with pytest.raises(LoadError, match="openvino has no device 'TPU'"):
        load(file, {"device": "TPU"})


def test_a_static_model_answers_row_by_row(file: str, tmp_path: Path) -> None:
    """As an NPU wants it; here on the CPU, which can do both."""
    options = {"cache_dir": str(tmp_path / "kept"), "digest": "sha256:1"}
    dynamic, static = load(file, options), load(file, {**options, "static": True})
    again = load(file, {**options, "static": True})
    assert len(list((tmp_path / "kept").glob("*.blob"))) == 2, "each its own, and kept"
    assert static.signature() == dynamic.signature() == again.signature()
    for rows in (1, 3):
        data = np.arange(4 * rows, dtype=np.float32)
        asked = {"x": Tensor("x", DType.FP32, (rows, 4), data.tobytes())}
        answers = [bytes(one.run(asked)["y"].data) for one in (dynamic, static, again)]
        assert answers == [(2 * data).tobytes()] * 3
