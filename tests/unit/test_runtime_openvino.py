"""OpenVINO on the agent: real containers are served, swapped and kept compiled; no others."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.doctor import examine
from agent.domain.probation import Trial, begin
from agent.errors import LoadError
from agent.host import capabilities
from agent.runtime.backend import Options
from agent.runtime.compiled import CompiledCache, instructions
from agent.runtime.openvino import load
from agent.runtime.registry import Keeping, open_backend
from agent.settings import Settings
from lighterman.oip import inference_pb2 as pb
from tests.support.openvino_builds import BROKEN, container_of
from tests.support.releases import digest_of
from tests.support.serving import Bench, products_for, scaled, slow, tensor, values
from tests.unit.test_serve_server import Api

OTHER_PROCESS_S = 60
PR_SET_MDWE = 65


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """y = 2x and y = 3x, and one that takes long."""
    folder = tmp_path_factory.mktemp("made")
    sources = {"two": scaled(2.0), "three": scaled(3.0), "slow": slow(2.0, products_for(0.05))}
    return {name: container_of(data, folder) for name, data in sources.items()}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    opened = Api(tmp_path)
    yield opened
    opened.close()


def ask(api: Api) -> list[float]:
    request = pb.ModelInferRequest(model_name="photo")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(tensor().data))
    answer = api.stub.ModelInfer(request, timeout=10)
    return [float(v) for v in np.frombuffer(answer.raw_output_contents[0], np.float32)]


def test_it_is_served_swapped_and_left_over_the_protocol(api: Api, made: dict[str, bytes]) -> None:
    bench = api.bench
    bench.serve("1.0.0", {"heavy": scaled(5.0)})
    assert ask(api) == [5.0, 10.0, 15.0, 20.0]
    second = bench.load("2.0.0", {"heavy": made["two"], "light": made["three"]}, runtime="openvino")
    bench.host.swap("photo", second.slot_id, Trial.COMMITTED, begin(bench.clock.monotonic()), None)
    assert ask(api) == [2.0, 4.0, 6.0, 8.0]
    about = api.stub.ModelMetadata(pb.ModelMetadataRequest(name="photo"), timeout=10)
    assert (about.platform, list(about.versions)) == ("openvino", ["2.0.0"])
    bench.host.set_rung("photo", "light")
    bench.host.rest()
    assert ask(api) == [3.0, 6.0, 9.0, 12.0]
    bench.serve("3.0.0", {"heavy": scaled(7.0)})
    bench.host.unload("photo", second.slot_id)
    assert ask(api) == [7.0, 14.0, 21.0, 28.0]


def test_many_threads_ask_one_model(tmp_path: Path, made: dict[str, bytes]) -> None:
    import threading

    file = tmp_path / "two"
    file.write_bytes(made["two"])
    backend = load(str(file), {})
    wrong: list[Any] = []

    def go(factor: int) -> None:
        for _ in range(200):
            data = np.full((factor, 4), factor, np.float32)
            given = tensor()
            asked = type(given)("x", given.dtype, (factor, 4), data.tobytes())
            found = np.frombuffer(backend.run({"x": asked})["y"].data, np.float32)
            if found.tolist() != [2.0 * factor] * 4 * factor:
                wrong.append(found)

    threads = [threading.Thread(target=go, args=(n,)) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert wrong == []


def test_the_asking_thread_does_the_work(tmp_path: Path, made: dict[str, bytes]) -> None:
    """The rollback rule tells a slow version from a starved one by this thread's CPU time."""
    file = tmp_path / "slow"
    file.write_bytes(made["slow"])
    backend = load(str(file), {})
    backend.run({"x": tensor()})
    before, whole = time.thread_time(), time.process_time()
    backend.run({"x": tensor()})
    mine, everybody = time.thread_time() - before, time.process_time() - whole
    backend.close()
    assert mine > 0.02
    assert mine > 0.8 * everybody, "one thread computes"


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_no_other_bytes_are_taken(tmp_path: Path, made: dict[str, bytes], how: str) -> None:
    file = tmp_path / "broken"
    file.write_bytes(BROKEN[how](made["two"]))
    with pytest.raises(LoadError):
        load(str(file), {"cache_dir": str(tmp_path / "kept"), "digest": "sha256:1"})
    assert not (tmp_path / "kept").exists(), "nothing is kept of what did not load"


def test_without_the_library_it_is_neither_offered_nor_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: dict[str, bytes]
) -> None:
    real = capabilities._version_of
    monkeypatch.setattr(
        capabilities, "_version_of", lambda name: None if "openvino" in name else real(name)
    )
    assert "openvino" in capabilities.absent_runtimes()
    assert "openvino" not in capabilities.detect(Path("/"), tmp_path).runtimes
    (said,) = [
        f.text for f in examine(Settings(state_dir=tmp_path), _now()) if f.what == "runtimes"
    ]
    assert "openvino: not installed" in said
    monkeypatch.setitem(sys.modules, "openvino", None)
    file = tmp_path / "two"
    file.write_bytes(made["two"])
    with pytest.raises(LoadError, match=r"not installed.*\n.*lighterman\[openvino\]"):
        open_backend("openvino", str(file), {})


def _now() -> Any:
    from agent.clock import SystemClock

    return SystemClock().now()


def test_where_no_code_may_be_made_it_is_not_offered() -> None:
    """As under the service's own unit: the library could not load a model there."""
    program = (
        "import ctypes, sys\n"
        "from agent.host.capabilities import absent_runtimes, installed_runtimes, may_make_code\n"
        "assert may_make_code() and 'openvino' in installed_runtimes()\n"
        f"if ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0): sys.exit(77)\n"
        "print(may_make_code(), sorted(installed_runtimes()), absent_runtimes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=OTHER_PROCESS_S,
    )
    if done.returncode == 77:
        pytest.skip("this kernel cannot forbid it (Linux 6.3 or newer)")
    assert done.stdout.startswith("False ['onnxruntime'] "), done
    for name in ("openvino", "torch"):
        assert f"'{name}': 'this process may not make code'" in done.stdout


def test_loading_reports_to_nobody(tmp_path: Path, made: dict[str, bytes]) -> None:
    """The library's Python package would tell its makers; here it starts no thread, no file."""
    file = tmp_path / "two"
    file.write_bytes(made["two"])
    program = (
        "import sys, threading\n"
        "from agent.runtime.openvino import load\n"
        f"load({str(file)!r}, {{}})\n"
        "print(threading.active_count(), sys.modules.get('openvino_telemetry'))"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=OTHER_PROCESS_S,
    )
    assert done.stdout.split() == ["1", "None"], done.stderr
    assert list(home.iterdir()) == []


class Kept:
    """One build, opened again and again with a folder for what was compiled."""

    def __init__(self, folder: Path, made: dict[str, bytes]) -> None:
        self.made = made
        self.folder = folder / "kept"
        self.file = folder / "build"
        self.put("two")

    def put(self, name: str) -> None:
        self.file.write_bytes(self.made[name])

    def ask(self, digest: str = "two") -> list[float]:
        options: Options = {"intra_op_threads": 1, "digest": digest_of(self.made[digest])}
        backend = Keeping(self.folder)("openvino", str(self.file), options)
        found = [float(v) for v in np.frombuffer(backend.run({"x": tensor()})["y"].data, "f4")]
        backend.close()
        return found

    @property
    def entries(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def kept(tmp_path: Path, made: dict[str, bytes]) -> Kept:
    return Kept(tmp_path, made)


TWICE = [2.0, 4.0, 6.0, 8.0]
THRICE = [3.0, 6.0, 9.0, 12.0]


def test_what_was_compiled_is_used_again(kept: Kept) -> None:
    assert kept.ask() == TWICE
    (entry,) = kept.entries
    assert entry.stat().st_mode & 0o777 == 0o600
    # The file under the same digest holds another model: the kept one answers.
    kept.put("three")
    assert kept.ask() == TWICE
    assert kept.ask("three") == THRICE, "another digest is another entry"
    assert len(kept.entries) == 2


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("how", ["first", "head", "hash", "last", "cut", "longer", "empty"])
def test_a_damaged_entry_is_compiled_anew(kept: Kept, how: str) -> None:
    assert kept.ask() == TWICE
    (entry,) = kept.entries
    data = entry.read_bytes()
    body = data.index(b"\n", data.index(b"}")) + 1
    entry.write_bytes(
        {
            "first": _flip(data, 0),
            "head": _flip(data, 20),
            "hash": _flip(data, body),
            "last": _flip(data, len(data) - 1),
            "cut": data[:-100],
            "longer": data + b"\0",
            "empty": b"",
        }[how]
    )
    kept.put("three")  # so that the answer tells who gave it
    assert kept.ask() == THRICE
    assert entry.read_bytes() != data
    assert kept.ask() == THRICE, "and the new one is kept"


@pytest.mark.parametrize("how", ["of another build", "a link", "writable by others", "a pipe"])
def test_an_entry_of_somebody_else_is_never_loaded(kept: Kept, tmp_path: Path, how: str) -> None:
    assert kept.ask() == TWICE
    (entry,) = kept.entries
    elsewhere = tmp_path / "elsewhere"
    match how:
        case "of another build":
            kept.put("three")
            kept.ask("three")
            (other,) = [path for path in kept.entries if path != entry]
            shutil.copyfile(entry, other)
            assert kept.ask("three") == THRICE
            return
        case "a link":
            entry.rename(elsewhere)
            entry.symlink_to(elsewhere)
        case "writable by others":
            entry.chmod(0o666)
        case _:
            entry.unlink()
            os.mkfifo(entry)
    kept.put("three")
    assert kept.ask() == THRICE


def test_a_blob_that_the_library_refuses_is_dropped(kept: Kept) -> None:
    assert kept.ask() == TWICE
    (entry,) = kept.entries
    data = entry.read_bytes()
    begin_of_body = data.index(b"\n", data.index(b"}")) + 66
    from hashlib import sha256

    bad = b"no compiled model" * 40
    head = data[: data.index(b"\n", data.index(b"}")) + 1]
    entry.write_bytes(head + sha256(bad).hexdigest().encode() + b"\n" + bad)
    assert begin_of_body < len(data)
    assert kept.ask() == TWICE
    assert entry.read_bytes() == data


def test_the_folder_is_bounded_and_a_missing_disk_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CompiledCache({"cache_dir": str(tmp_path / "kept"), "digest": "sha256:1"})
    for number in range(12):
        cache.keep({"n": str(number)}, b"x" * 10)
    assert len(list((tmp_path / "kept").iterdir())) == 8
    assert cache.find({"n": "11"}) == b"x" * 10
    full = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr("agent.runtime.compiled.shutil.disk_usage", lambda _: full)
    cache.keep({"n": "12"}, b"y")
    assert cache.find({"n": "12"}) is None
    blocked = CompiledCache({"cache_dir": str(tmp_path / "kept" / "x" / "y"), "digest": "1"})
    (tmp_path / "kept" / "x").write_bytes(b"a file")
    blocked.keep({}, b"z")
    assert blocked.find({}) is None
    assert CompiledCache({}).find({}) is None


def test_the_key_names_the_processor(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: sse avx\nbogomips\t: 3\n\nflags\t\t: none\n")
    assert instructions(tmp_path) == "flags\t\t: sse avx"
    assert "flags" in instructions() or "Features" in instructions()


def test_a_bench_keeps_its_answers(tmp_path: Path, made: dict[str, bytes]) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", {"heavy": made["two"]}, runtime="openvino")
    assert values(bench.host.infer("photo", [tensor()])) == TWICE
    bench.host.close()
