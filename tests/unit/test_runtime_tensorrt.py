"""TensorRT: what is ours by a fake of its interface, its builder by TensorRT-RTX where present."""

import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.domain.tensor import DType, Tensor
from agent.errors import LoadError
from agent.runtime import tensorrt as mine
from agent.runtime.backend import Backend
from agent.runtime.child_start import STARTING
from agent.runtime.compiled import CompiledCache
from agent.runtime.compiling import CompileError, Limits, clear, compile_apart, under_way
from agent.runtime.cuda import Cuda, CudaError
from agent.runtime.packed import Packed, PackError, unpack
from controller.domain.model import Signature
from controller.optimize.packed import pack
from tests.support import fake_tensorrt
from tests.support.fake_tensorrt import Builder, FakeCuda
from tests.support.serving import SIGNATURE, scaled
from tests.support.wait import wait_for

MIB = 1024**2
SIGNED = Signature.from_json(SIGNATURE)
Load = Callable[..., Backend]


def packed(graph: bytes = b"", signature: Signature = SIGNED, kind: str = "tensorrt") -> bytes:
    return pack(kind, signature, {"precision": "int8"}, graph or scaled(2.0))


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Opens builds with the fake; what is compiled is so in this process."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    Builder.made.clear()

    def here(file: str, path: str, options: Any, limits: Limits) -> bytes:
        assert file == mine.__file__
        return mine.compile_here(path, options, lambda *_: None)

    monkeypatch.setattr(mine, "compile_apart", here)

    def start(data: bytes = b"", gpu: str = "NVIDIA Fake", **options: Any) -> Backend:
        monkeypatch.setattr(mine, "Cuda", lambda device: FakeCuda(device, name=gpu))
        file = tmp_path / "build"
        file.write_bytes(data or packed())
        kept = {"cache_dir": str(tmp_path / "kept"), "digest": "sha256:1"}
        return mine.load(str(file), {**kept, **options})

    return start


def ask(backend: Backend, rows: int) -> list[float]:
    data = np.arange(4 * rows, dtype=np.float32)
    found = backend.run({"x": Tensor("x", DType.FP32, (rows, 4), data.tobytes())})["y"]
    assert found.shape == (rows, 4)
    return [float(one) for one in np.frombuffer(found.data, np.float32)]


def test_it_answers_for_every_batch_of_its_profile(load: Load) -> None:
    backend = load(max_batch=4)
    for rows in (1, 4, 2):
        assert ask(backend, rows) == [2.0 * one for one in range(4 * rows)]
    backend.rest()  # type: ignore[attr-defined]
    assert ask(backend, 1) == [0.0, 2.0, 4.0, 6.0]
    with pytest.raises(RuntimeError, match="max_batch"):
        ask(backend, 5)
    backend.close()


def test_an_engine_is_made_once_and_only_for_what_it_depends_on(load: Load) -> None:
    load().close()
    load(intra_op_threads=3).close()
    assert len(Builder.made) == 1, "kept, and what changes no engine makes no new one"
    others: list[dict[str, Any]] = [
        {"gpu": "NVIDIA Other"}, {"max_batch": 2}, {"workspace_bytes": MIB}, {"level": 1},
        {"fp16": True}, {"digest": "sha256:2"},
    ]  # fmt: skip
    for number, other in enumerate(others):
        load(**other).close()
        assert len(Builder.made) == 2 + number, other
    # The timings of the first one helped the next, but for another GPU.
    assert [bool(one["timings"]) for one in Builder.made] == [False, False, *[True] * 5]


def test_another_version_of_the_library_makes_its_own(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    load().close()
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.99.1")
    load().close()
    assert len(Builder.made) == 2


def test_an_engine_can_be_shared_by_the_key_it_is_kept_under(load: Load, tmp_path: Path) -> None:
    load(max_batch=4).close()
    folder = str(tmp_path / "kept")
    kept: dict[str, str | int] = {"cache_dir": folder, "digest": "sha256:1", "max_batch": 4}
    plan = CompiledCache(kept).find(mine.shared_key(str(tmp_path / "build"), kept))
    assert plan is not None
    assert plan.startswith(fake_tensorrt.PLAN)
    other = mine.shared_key(str(tmp_path / "build"), {**kept, "max_batch": 2})
    assert CompiledCache(kept).find(other) is None


def test_a_damaged_engine_is_made_again(load: Load, tmp_path: Path) -> None:
    load().close()
    for file in (tmp_path / "kept").glob("*.blob"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    load().close()
    assert len(Builder.made) == 2


def test_a_graph_that_it_does_not_take_is_told(load: Load) -> None:
    with pytest.raises(LoadError, match="does not take the graph: node Odd is unknown"):
        load(packed(b"wrong"))
    with pytest.raises(LoadError, match="makes no engine: no graph at all"):
        load(packed(b"empty"))


def test_dynamic_axes_get_the_sizes_that_a_profile_says() -> None:
    sides = Packed([("image", "FP32", ("batch", 3, "height", "width"))], [], {}, b"")
    with pytest.raises(ValueError, match=r"axis 'height' of image is dynamic.*max_side"):
        mine.profile_of(sides, {})
    options = {"max_batch": 4, "opt_batch": 2, "min_side": 32, "opt_side": 320, "max_side": 640}
    assert mine.profile_of(sides, options) == {
        "image": [[1, 3, 32, 32], [2, 3, 320, 320], [4, 3, 640, 640]]
    }
    assert mine.profile_of(Packed([("x", "FP32", (1, 4))], [], {}, b""), {}) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"ONNX", packed()[:20], packed()[:-1], packed() + b"x", packed(kind="executorch"),
        packed().replace(b'"FP32"', b'"FP99"'), packed().replace(b'"batch"', b"[[1]]#"),
        b"LMPACK1\n\xff\xff\xff\xff{}",
    ],
)  # fmt: skip
def test_no_other_bytes_are_taken(load: Load, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(LoadError):
        load(data or b"\0")
    (tmp_path / "build").write_bytes(data)
    with pytest.raises(PackError):
        unpack(str(tmp_path / "build"), "tensorrt")
    assert Builder.made == []


def test_without_the_library_it_says_so(tmp_path: Path) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    with pytest.raises(LoadError, match="runtime 'tensorrt' is not installed") as refused:
        mine.load(str(tmp_path / "none"), {})
    assert "lighterman[tensorrt]" in refused.value.hint


def test_a_real_gpu(tmp_path: Path) -> None:
    """Everything at once, where there is what it takes."""
    pytest.importorskip("tensorrt", reason="needs the package tensorrt")
    try:
        cuda = Cuda()
    except CudaError as error:
        pytest.skip(f"needs a GPU: {error}")
    assert cuda.capability().count(".") == 1
    file = tmp_path / "build"
    file.write_bytes(packed())
    backend = mine.load(str(file), {})
    assert ask(backend, 3) == [2.0 * one for one in range(12)]
    backend.close()


# -- compiled in a process of its own --------------------------------------------------------------

COMPILER = """
import os, sys, time
def compile_here(path, options, tell):
    how = options["how"]
    tell("Building engine", 0.25)
    if how == "dies":
        os.kill(os.getpid(), 9)
    if how == "fails":
        raise ValueError("no kernel for Odd")
    if how == "hungry":
        held = bytearray(400 << 20)
    while how != "works" and not os.path.exists(path):
        time.sleep(0.01)
    return b"engine of " + str(os.getpid()).encode()
"""


@pytest.fixture
def compiler(tmp_path: Path) -> Callable[..., bytes]:
    (tmp_path / "compiler.py").write_text(COMPILER)

    def start(how: str, limits: Limits | None = None, **more: Any) -> bytes:
        options = {"how": how, "cache_dir": str(tmp_path), "digest": "sha256:abc"}
        go_on = str(tmp_path / "go-on")
        return compile_apart(
            str(tmp_path / "compiler.py"), go_on, options, limits or Limits(0), **more
        )

    return start


def test_it_tells_how_far_it_is_while_the_agent_goes_on(
    compiler: Callable[..., bytes], tmp_path: Path
) -> None:
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(compiler("waits")))
    thread.start()
    told = wait_for(lambda: [u for u in under_way(tmp_path) if u["share_pct"]], what="progress")
    assert told == [{"digest": "sha256:abc", "phase": "Building engine", "share_pct": 25.0}]
    (tmp_path / "go-on").touch()
    thread.join(20)
    assert found[0].startswith(b"engine of ")
    assert under_way(tmp_path) == []


def test_its_death_is_an_answer(compiler: Callable[..., bytes], tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="was killed"):
        compiler("dies")
    with pytest.raises(CompileError, match="no kernel for Odd"):
        compiler("fails")
    assert compiler("works").startswith(b"engine of ")
    assert under_way(tmp_path) == []


def test_it_is_refused_below_the_headroom_and_ended_beyond_it(
    compiler: Callable[..., bytes],
) -> None:
    with pytest.raises(CompileError, match=r"takes 900 MiB of memory, 500 MiB are free"):
        compiler("works", Limits(900 * MIB), available=lambda: 500 * MIB)
    assert compiler("works", Limits(400 * MIB), available=lambda: 500 * MIB)
    with pytest.raises(CompileError, match=r"took .* MiB of at most 300 MiB and was ended"):
        compiler("hungry", Limits(0, most_bytes=300 * MIB))
    left = iter([1000 * MIB])
    with pytest.raises(CompileError, match="only 100 MiB were left"):
        compiler("waits", available=lambda: next(left, 100 * MIB))
    with pytest.raises(CompileError, match="took too long"):
        compiler("waits", Limits(0, time_s=0.1))


def test_the_end_of_the_agent_ends_it(compiler: Callable[..., bytes], tmp_path: Path) -> None:
    ended: list[str] = []

    def run() -> None:
        try:
            compiler("waits")
        except CompileError as error:
            ended.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: under_way(tmp_path), what="it to begin")
    STARTING.end()
    thread.join(20)
    assert "was killed" in ended[0]
    STARTING.begin()
    (tmp_path / "compiling" / "left.json").write_text("{}")
    clear(tmp_path)
    assert under_way(tmp_path) == []


# -- the library's own builder ---------------------------------------------------------------------


# It calls keeping timings deprecated, which TensorRT does not.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_builder_makes_an_engine(tmp_path: Path) -> None:
    """TensorRT-RTX has TensorRT's interface, and makes engines without a GPU."""
    library = pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")

    def for_ampere(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.ComputeCapability.SM86, 0)

    (tmp_path / "build").write_bytes(packed())
    told: list[tuple[str, float]] = []
    found = unpack(str(tmp_path / "build"), "tensorrt")
    plan, timings = mine.make_engine(
        library, found, {"max_batch": 4}, lambda *one: told.append(one), b"", for_ampere
    )
    assert len(plan) > 1000
    assert timings
    assert told[0] == ("Building engine", 0.0)
    assert told[-1][1] > 0.5
    wrong = Packed(found.inputs, found.outputs, {}, b"no graph")
    with pytest.raises(RuntimeError, match="does not take the graph"):
        mine.make_engine(library, wrong, {}, lambda *_: None, b"", for_ampere)
