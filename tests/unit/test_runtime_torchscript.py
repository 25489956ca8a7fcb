"""TorchScript on the agent's side: our builders' archives are served; no other is loaded."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.domain.probation import Trial, begin
from agent.domain.tensor import DType, Tensor
from agent.errors import LoadError
from agent.runtime import torch_compiled
from agent.runtime.registry import open_backend
from agent.runtime.torchscript import TorchScriptBackend, load
from lighterman.oip import inference_pb2 as pb
from tests.support.serving import Bench, tensor, values
from tests.support.serving import scaled as onnx_scaled
from tests.support.torchscript_builds import BROKEN, foreign, scaled
from tests.unit.test_runtime_openvino import ask
from tests.unit.test_serve_server import Api


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """y = 2x and y = 3x."""
    folder = tmp_path_factory.mktemp("made")
    return {"two": scaled(2.0, folder), "three": scaled(3.0, folder)}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    opened = Api(tmp_path)
    yield opened
    opened.close()


def test_it_is_served_swapped_and_left_over_the_protocol(api: Api, made: dict[str, bytes]) -> None:
    bench = api.bench
    bench.serve("1.0.0", {"heavy": onnx_scaled(5.0)})
    second = bench.load("2.0.0", {"heavy": made["two"], "light": made["three"]}, runtime="torch")
    bench.host.swap("photo", second.slot_id, Trial.COMMITTED, begin(bench.clock.monotonic()), None)
    assert ask(api) == [2.0, 4.0, 6.0, 8.0]
    about = api.stub.ModelMetadata(pb.ModelMetadataRequest(name="photo"), timeout=10)
    assert (about.platform, list(about.versions)) == ("torch", ["2.0.0"])
    bench.host.set_rung("photo", "light")
    bench.host.rest()
    assert ask(api) == [3.0, 6.0, 9.0, 12.0]
    bench.serve("3.0.0", {"heavy": onnx_scaled(7.0)})
    bench.host.unload("photo", second.slot_id)
    assert ask(api) == [7.0, 14.0, 21.0, 28.0]


def test_rows_come_as_many_as_were_asked(tmp_path: Path, made: dict[str, bytes]) -> None:
    file = tmp_path / "two"
    file.write_bytes(made["two"])
    backend = load(str(file), {})
    for rows in (1, 5, 2):
        data = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        for buffer in (data.tobytes(), bytearray(data.tobytes())):
            found = backend.run({"x": Tensor("x", DType.FP32, (rows, 4), buffer)})["y"]
            assert found.shape == (rows, 4)
            assert np.frombuffer(found.data, np.float32).tolist() == (data * 2).ravel().tolist()
    before, whole = time.thread_time(), time.process_time()
    for _ in range(300):
        backend.run({"x": tensor()})
    mine, everybody = time.thread_time() - before, time.process_time() - whole
    assert mine > 0.8 * everybody, "the asking thread computes"
    backend.close()


@pytest.mark.parametrize("how", [*sorted(BROKEN), "foreign"])
def test_no_other_archive_reaches_the_library(
    tmp_path: Path, made: dict[str, bytes], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the library was given it")

    monkeypatch.setattr(torch.jit, "load", never)
    file = tmp_path / "broken"
    file.write_bytes(foreign(tmp_path) if how == "foreign" else BROKEN[how](made["two"]))
    with pytest.raises(LoadError) as caught:
        load(str(file), {})
    assert "the library was given it" not in str(caught.value)
    file.write_bytes(made["two"])
    with pytest.raises(LoadError, match="the library was given it"):
        load(str(file), {})


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        load(str(tmp_path / "none"), {})
    os.mkdir(tmp_path / "folder")
    with pytest.raises(LoadError, match="cannot be read"):
        load(str(tmp_path / "folder"), {})


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "two"
    file.write_bytes(made["two"])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LoadError, match=r"not installed.*\n.*lighterman\[torch\]"):
        open_backend("torch", str(file), {})


def test_a_bench_answers(tmp_path: Path, made: dict[str, bytes]) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", {"heavy": made["two"]}, runtime="torch")
    assert values(bench.host.infer("photo", [tensor()])) == [2.0, 4.0, 6.0, 8.0]
    bench.host.close()


@pytest.mark.parametrize(
    ("factor", "needed", "said"),
    [(2.0, float("inf"), ""), (2.0, 0.0, "is not quicker"), (2.1, float("inf"), "otherwise")],
)
def test_what_was_compiled_is_taken_where_it_is_quicker_and_alike(
    tmp_path: Path,
    made: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    needed: float,
    said: str,
) -> None:
    """The compiler's place is taken by a plain function: compiling takes a minute."""
    calls: list[int] = []

    def compiled(rows: Any) -> tuple[Any]:
        calls.append(len(rows))
        return (rows * factor,)

    monkeypatch.setattr(torch_compiled, "_compile", lambda *_: compiled)
    monkeypatch.setattr(torch_compiled, "QUICKER", needed)
    backend = loaded(tmp_path, made)
    assert [said in one for one in backend.remarks()] == [True] * bool(said)
    calls.clear()
    check_doubles(backend)
    assert calls == ([] if said else [1]), "three rows are the program's own"


@pytest.mark.skipif(
    not os.environ.get("LIGHTERMAN_TEST_COMPILE"), reason="a minute: LIGHTERMAN_TEST_COMPILE=1"
)
def test_the_real_compiler(
    tmp_path: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_compiled, "QUICKER", float("inf"))
    backend = loaded(tmp_path, made, cache_dir=str(tmp_path / "kept"))
    assert backend.remarks() == ()
    check_doubles(backend)
    assert (tmp_path / "kept" / "torch").stat().st_mode & 0o077 == 0


def loaded(folder: Path, made: dict[str, bytes], **options: str) -> TorchScriptBackend:
    (folder / "two").write_bytes(made["two"])
    backend = load(str(folder / "two"), {"compile": True, **options})
    assert isinstance(backend, TorchScriptBackend)
    return backend


def check_doubles(backend: TorchScriptBackend) -> None:
    for rows in (1, 3):
        data = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        found = backend.run({"x": Tensor("x", DType.FP32, data.shape, data.tobytes())})["y"]
        assert np.allclose(np.frombuffer(found.data, np.float32), 2 * data.ravel())


def test_without_a_compiler_the_program_runs_as_it_is(
    tmp_path: Path, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch_compiled, "_compile", fails)
    backend = loaded(tmp_path, made)
    assert backend.remarks() == (
        "torch.compile fails, the program runs as it is: no working C++ compiler",
    )
    assert list(np.frombuffer(backend.run({"x": tensor()})["y"].data, np.float32)) == [2, 4, 6, 8]
