"""Builds in a process of their own: the same answers, and what goes wrong there stays there."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from agent.domain.desired import JsonValue, RungKind, RungSpec, Target
from agent.domain.probation import Trial
from agent.domain.tensor import DType, Tensor
from agent.errors import InferenceError, LoadError
from agent.host.other_python import OtherPython
from agent.runtime import child, child_main, hosting
from agent.runtime.backend import Backend, Options
from agent.runtime.child import ChildBackend, ChildOrder
from agent.runtime.hosting import Hosting, plain_file, plain_runtimes
from agent.runtime.registry import open_backend
from agent.runtime.slot import options_of
from tests.support.serving import (
    Bench,
    crashing,
    heavy_file,
    hungry,
    products_for,
    scaled,
    slow,
    tensor,
)
from tests.support.wait import wait_for

RUNTIME = "onnxruntime"
Open = Callable[..., ChildBackend]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens children of files, and ends them."""
    found: list[ChildBackend] = []

    def start(data: bytes, **order: object) -> ChildBackend:
        file = tmp_path / f"{len(found)}.onnx"
        file.write_bytes(data)
        found.append(ChildBackend(ChildOrder(RUNTIME, str(file), {}, **order)))  # type: ignore[arg-type]
        return found[-1]

    yield start
    for one in found:
        one.close()


def pid_of(backend: ChildBackend) -> int:
    assert backend._process is not None
    return backend._process.pid


def numbers(found: dict[str, Tensor]) -> list[float]:
    return [float(one) for one in np.frombuffer(found["y"].data, np.float32)]


def rows(count: int) -> dict[str, Tensor]:
    data = np.arange(4 * count, dtype=np.float32)
    return {"x": Tensor("x", DType.FP32, (count, 4), data.tobytes())}


def test_it_answers_as_in_process_whatever_the_size(opened: Open) -> None:
    backend = opened(scaled(2.0))
    assert backend.signature() == open_backend(RUNTIME, backend._order.path, {}).signature()
    for count in (1, 50_000, 3, 0, 7):
        assert numbers(backend.run(rows(count))) == [2.0 * one for one in range(4 * count)]
    backend.rest()
    assert numbers(backend.run({"x": tensor()})) == [2.0, 4.0, 6.0, 8.0]


def test_a_child_that_was_killed_comes_back_by_itself(opened: Open) -> None:
    backend = opened(scaled(2.0))
    first = pid_of(backend)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(InferenceError, match="was killed"):
        backend.run({"x": tensor()})
    wait_for(lambda: backend._process is not None, what="the child to be back")
    assert numbers(backend.run({"x": tensor()})) == [2.0, 4.0, 6.0, 8.0]
    assert pid_of(backend) != first
    os.kill(pid_of(backend), signal.SIGSEGV)
    with pytest.raises(InferenceError, match="SIGSEGV"):
        backend.run({"x": tensor()})
    with pytest.raises(InferenceError, match="its process"):  # the second time it waits
        backend.run({"x": tensor()})


def test_a_hang_ends_by_calling_it_off(opened: Open) -> None:
    backend = opened(scaled(2.0))
    os.kill(pid_of(backend), signal.SIGSTOP)
    ended: list[Exception] = []

    def ask() -> None:
        try:
            backend.run({"x": tensor()})
        except InferenceError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: backend._inside == thread.ident, what="the inference")
    backend.call_off(threading.get_ident())  # another thread's is none of ours
    assert thread.is_alive()
    backend.call_off(thread.ident or 0)
    thread.join(10)
    assert [str(one) for one in ended] == ["its process was killed: called off, or out of memory"]


def test_memory_is_short_in_the_child_alone(opened: Open) -> None:
    backend = opened(hungry(2.0, 1 << 31), memory_bytes=400 * 1024**2)
    first = pid_of(backend)
    for _ in range(2):
        with pytest.raises(InferenceError, match="allocate"):
            backend.run(rows(1))
    assert pid_of(backend) == first, "one inference failed, not its process"
    assert opened(hungry(2.0, 1 << 20), memory_bytes=400 * 1024**2).run(rows(1))


def test_no_child_outlives_the_agent(tmp_path: Path) -> None:
    (tmp_path / "slow.onnx").write_bytes(slow(2.0, products_for(20.0)))
    code = (
        "import os, sys, threading; from agent.runtime.child import *;"
        "from tests.support.serving import tensor;"
        f"b = ChildBackend(ChildOrder('onnxruntime', {str(tmp_path / 'slow.onnx')!r}, {{}}));"
        "threading.Thread(target=b.run, args=({'x': tensor()},), daemon=True).start();"
        "print(b._process.pid, flush=True); sys.stdin.read(1); os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        wait_for(lambda: cpu_ticks(pid) > 20, what="the child to compute")
        agent.communicate("x")
    wait_for(lambda: not alive(pid), what="the end of the child")


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_does_not_load_says_why(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="onnxruntime cannot load"):
        opened(b"no model")
    with pytest.raises(LoadError, match="cannot be started"):
        opened(scaled(2.0), python=str(tmp_path / "none"), file=plain_file(RUNTIME))


LYING = """
import sys
def open_plain(path, options):
    main = sys.modules["__main__"]
    told = main.write_frame
    def lie(fd, body):
        if body.get("tensors"):
            body["tensors"] = [LIE]
        told(fd, body)
    main.write_frame = lie
    return Plain()
class Plain:
    inputs = outputs = [("x", "FP32", ("batch", 4))]
    def run(self, arrays):
        return [arrays["x"]]
"""


@pytest.mark.parametrize(
    "lie",
    [
        ["y", "FP32", [1, 4], 0, 1 << 40],
        ["y", "FP32", [1 << 20, 4], 0, 16],
        ["y", "FP32", [1, 4], 1 << 30, 16],
        ["y", "FP32", [-1, -4], 0, 16],
        ["y", "FP99", [1, 4], 0, 16],
        ["y"],
    ],
)
def test_a_child_that_lies_is_ended(opened: Open, tmp_path: Path, lie: list[object]) -> None:
    (tmp_path / "lying.py").write_text(LYING.replace("LIE", repr(lie)))
    backend = opened(b"", file=str(tmp_path / "lying.py"))
    liar = pid_of(backend)
    with pytest.raises(InferenceError, match="gave no answer"):
        backend.run({"x": tensor()})
    wait_for(lambda: not alive(liar), what="its end")


def test_what_it_takes_is_work_and_no_waiting(opened: Open) -> None:
    """Else a slow version in a child would count as one that was starved, and stay."""
    backend = opened(slow(2.0, products_for(0.05)))
    before = time.thread_time()
    backend.run({"x": tensor()})
    assert time.thread_time() - before < 0.02
    assert backend.spent_s(threading.get_ident()) > 0.02


# -- chosen by the profile -------------------------------------------------------------------------


def in_child(runtime: str, path: str, options: Options) -> Backend:
    return Hosting(open_backend)(runtime, path, {**options, "model_host": "child"})


def test_versions_in_children_are_served_swapped_and_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, open_backend=in_child)
    first = bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    bench.serve("2.0.0", {"heavy": crashing()}, Trial.PROBATION, first)
    found = bench.infer(1.0, 2.0, 3.0, 4.0)
    assert (found.version, [d.swapped_to for d in bench.decisions]) == ("1.0.0", [first.slot_id])
    bench.host.close()


def test_a_slow_version_in_a_child_is_rolled_back(tmp_path: Path) -> None:
    """The negative control: without `spent_s` it counts as starved, and nothing is decided."""
    bench = Bench(tmp_path, open_backend=in_child)
    first = bench.serve("1.0.0", {"heavy": scaled(2.0)})
    costly = slow(2.0, products_for(0.12))
    bench.serve("2.0.0", {"heavy": costly}, Trial.PROBATION, first)
    for _ in range(12):
        bench.infer()
        if bench.decisions:
            break
    assert [d.swapped_to for d in bench.decisions] == [first.slot_id]
    bench.host.close()


def test_a_profile_says_where_and_how(tmp_path: Path) -> None:
    options: JsonValue = {"model_host": "child", "digest": "mine", "odd": [1]}
    told: dict[str, JsonValue] = {"options": options, "profile": "p"}
    target = Target("sha256:1", 1, "application/onnx", told)
    spec = RungSpec("heavy", RungKind.LOCAL, "heavy", RUNTIME, memory_bytes=10, target=target)
    assert options_of(spec, target) == {
        "intra_op_threads": 1,
        "model_host": "child",
        "host_memory_bytes": 20 + 512 * 1024**2,
        "digest": "sha256:1",
    }
    with pytest.raises(LoadError, match="model_host 'moon' is unknown"):
        Hosting(open_backend)(RUNTIME, "", {"model_host": "moon"})
    with pytest.raises(LoadError, match="is not known to this agent"):
        Hosting(open_backend, sys.executable)("absent", "", {})


# -- another Python --------------------------------------------------------------------------------


def other_python(tmp_path: Path) -> str:
    """One that has numpy and ONNX Runtime: a venv that sees ours, or what is named."""
    named = os.environ.get("LIGHTERMAN_TEST_RUNTIME_PYTHON")
    if named:
        return named
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    folder = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    seen = {str(Path(module.__file__ or "").parents[1]) for module in (np, onnxruntime)}
    (folder / "seen.pth").write_text("\n".join(seen))
    return str(tmp_path / "venv/bin/python")


def test_a_runtime_runs_under_another_python(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = other_python(tmp_path)
    assert RUNTIME in OtherPython(python).versions(plain_runtimes())
    assert OtherPython("").versions(plain_runtimes()) == {}
    assert OtherPython(str(tmp_path / "none")).versions(plain_runtimes()) == {}
    monkeypatch.setattr(hosting, "is_installed", lambda _: False)  # of this Python
    file = tmp_path / "two.onnx"
    file.write_bytes(scaled(2.0))
    backend = Hosting(open_backend, python)(RUNTIME, str(file), {})
    assert isinstance(backend, ChildBackend)
    assert backend.signature() == opened(scaled(2.0)).signature()
    assert numbers(backend.run(rows(1000))) == [2.0 * one for one in range(4000)]
    backend.close()
    with pytest.raises(LoadError, match=r"the profile wants 3\.6"):
        Hosting(open_backend, python)(RUNTIME, str(file), {"runtime_python": "3.6"})


def test_what_runs_there_is_of_an_old_syntax() -> None:
    """3.8 is what JetPack 5 has. That it runs there: LIGHTERMAN_TEST_RUNTIME_PYTHON names one."""
    files = [child_main.__file__, *map(plain_file, plain_runtimes())]
    assert len(files) > 1
    for file in files:
        ast.parse(Path(file).read_text(), feature_version=(3, 8))
    with pytest.raises(SyntaxError):
        ast.parse("match 1:\n case 1: pass", feature_version=(3, 8))


def test_large_models_are_not_copied_to_the_child(opened: Open) -> None:
    """The file is named, not sent."""
    backend = opened(heavy_file(2.0, 20_000_000, seed=1))
    assert numbers(backend.run({"x": tensor()})) == [2.0, 4.0, 6.0, 8.0]
    assert child.MAX_ANSWER_BYTES >= 1 << 30
