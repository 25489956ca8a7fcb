"""A build worker against BuildService over real TLS: fetches, has jobs run, brings results."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.errors import InvalidError
from controller.worker.app import run_worker
from controller.worker.identity import read_identity
from lighterman.v1 import build_pb2
from tests.support.build_desk import BuildDesk, digest_of, serving, write_identity
from tests.support.digits import digits, job_folder, job_spec
from tests.support.pt2 import hostile_sample
from tests.support.sleepers import is_sleeping
from tests.support.wait import wait_for

FP32 = ("onnxruntime-fp32",)
JOB_S = 120.0


@dataclass(slots=True)
class Bench:
    """A desk, a worker at it, and where the worker works."""

    desk: BuildDesk
    work_dir: Path
    stop: threading.Event

    def end(self, number: int = 0) -> build_pb2.CompleteRequest:
        """How a job ended, when it has."""
        wait_for(lambda: len(self.desk.ends) > number, JOB_S, "the job's end")
        return self.desk.ends[number]

    def step(self, name: str) -> None:
        """Wait until the worker says what it does."""
        wait_for(lambda: any(beat.step == name for beat in self.desk.beats), JOB_S, f"step {name}")

    def idle(self) -> None:
        """Wait until the worker asks for the next job."""
        seen = len(self.desk.claims)
        wait_for(lambda: len(self.desk.claims) > seen + 1, 30, "the next claim")


@contextmanager
def working(tmp_path: Path) -> Iterator[Bench]:
    desk, stop = BuildDesk(), threading.Event()
    work_dir = tmp_path / "work"
    with serving(desk) as (address, trust):
        identity = write_identity(trust, address, tmp_path / "worker.json")
        thread = threading.Thread(
            target=run_worker, args=(address, identity, stop), kwargs={"work_dir": work_dir}
        )
        thread.start()
        try:
            yield Bench(desk, work_dir, stop)
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with working(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def light() -> bytes:
    return (digits() / "light.pt2").read_bytes()


def quick_spec(**changes: Any) -> dict[str, Any]:
    """A job of one float build without figures: the shortest real one."""
    return job_spec(digits() / "light.pt2", FP32, calibration=False, evaluation=False, **changes)


def test_a_job_is_fetched_run_and_brought_with_its_evidence(
    bench: Bench, light: bytes, tmp_path: Path
) -> None:
    folder = job_folder(
        tmp_path / "split", digits() / "light.pt2", quick_spec(), digits() / "digits.npz"
    )
    parts = {
        name: (folder / "inputs" / name).read_bytes() for name in ("calibration", "evaluation")
    }
    bench.desk.add(job_spec(digits() / "light.pt2"), source=light, **parts)
    end = bench.end()
    assert end.ok, (end.error, end.last_lines)
    assert (end.job_id, end.lease) == ("j-test", "l-1")
    rows = json.loads(end.result_json)["builds"]
    assert [row["ok"] for row in rows] == [True, True]
    assert {row["digest"] for row in rows} == set(bench.desk.stored)
    for row in rows:
        assert len(bench.desk.stored[row["digest"]]) == row["length"]
    claim = bench.desk.claims[0]
    assert claim.worker == "bench-1"
    assert claim.capabilities.runtimes["onnxruntime"]
    assert len(bench.desk.beats) >= 2, "a sign of life every two seconds"
    assert bench.desk.beats[-1].progress_pct > 10
    jobs = bench.work_dir / "jobs"
    wait_for(lambda: not list(jobs.iterdir()), 10, "the job's folder to go")
    # The same inputs again: they are on the worker's disk.
    fetched = len(bench.desk.fetched)
    bench.desk.add(quick_spec(), source=light)
    assert bench.end(1).ok
    assert len(bench.desk.fetched) == fetched


def test_a_cut_download_goes_on_at_its_byte(bench: Bench, light: bytes) -> None:
    bench.desk.cut_at = 64 * 1024
    bench.desk.add(quick_spec(), source=light)
    assert bench.end().ok
    assert bench.desk.fetched == [(digest_of(light), 0), (digest_of(light), 64 * 1024)]


def test_spoiled_bytes_are_fetched_again(bench: Bench, light: bytes) -> None:
    bench.desk.spoil = 1
    bench.desk.add(quick_spec(), source=light)
    assert bench.end().ok
    assert [offset for _, offset in bench.desk.fetched] == [0, 0]


def test_bytes_that_stay_spoiled_reach_no_job(bench: Bench, light: bytes) -> None:
    bench.desk.spoil = 99
    bench.desk.add(quick_spec(), source=light)
    end = bench.end()
    assert not end.ok
    assert "does not have the digest" in end.error


def test_spoiled_bytes_in_the_cache_are_found(bench: Bench, light: bytes) -> None:
    bench.desk.add(quick_spec(), source=light)
    assert bench.end().ok
    cached = bench.work_dir / "cache" / digest_of(light).removeprefix("sha256:")
    cached.write_bytes(light[:-1] + b"x")
    bench.desk.add(quick_spec(), source=light)
    assert bench.end(1).ok
    assert len(bench.desk.fetched) == 2


def test_a_spec_that_nobody_understands_is_reported(bench: Bench, light: bytes) -> None:
    bench.desk.add(quick_spec() | {"schema": 99}, source=light)
    end = bench.end()
    assert not end.ok
    assert "has schema 99, this worker knows" in end.error


def test_a_job_that_dies_is_reported_with_its_last_lines(bench: Bench, tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.stderr.write('these are my last words\\n'); sys.stderr.flush();"
        "os.kill(os.getpid(), 11)"
    )
    hostile = hostile_sample(digits() / "light.pt2", tmp_path / "hostile.pt2", code)
    bench.desk.add(quick_spec(), source=hostile.read_bytes())
    end = bench.end()
    assert not end.ok
    assert "SIGSEGV" in end.error
    assert "these are my last words" in end.last_lines
    # The worker lives and does the next job.
    bench.desk.add(quick_spec(), source=(digits() / "light.pt2").read_bytes())
    assert bench.end(1).ok


def test_a_job_that_takes_too_long_is_ended_with_its_children(bench: Bench, tmp_path: Path) -> None:
    mark = f"7{os.getpid()}"
    code = f"import subprocess; subprocess.run(['sleep', '{mark}'])"
    hostile = hostile_sample(digits() / "light.pt2", tmp_path / "hostile.pt2", code)
    bench.desk.add(quick_spec(time_s=15), source=hostile.read_bytes())
    wait_for(lambda: is_sleeping(mark), 15, "the child's start")
    assert bench.end().error == "took longer than 15 s"
    wait_for(lambda: not is_sleeping(mark), 10, "the child's end")


def test_a_job_that_takes_too_much_memory_is_ended(bench: Bench, tmp_path: Path) -> None:
    code = "x = []\nwhile True: x.append(bytearray(b'1' * (64 << 20)))"
    hostile = hostile_sample(digits() / "light.pt2", tmp_path / "hostile.pt2", code)
    bench.desk.add(quick_spec(memory_bytes=1024**3), source=hostile.read_bytes())
    end = bench.end()
    assert not end.ok
    assert "memory" in end.error.lower() + " ".join(end.last_lines).lower()


def test_a_cancelled_job_ends_and_is_not_reported(bench: Bench, tmp_path: Path) -> None:
    hostile = hostile_sample(
        digits() / "light.pt2", tmp_path / "hostile.pt2", "import time; time.sleep(600)"
    )
    bench.desk.add(quick_spec(), source=hostile.read_bytes())
    bench.step("loading")
    bench.desk.cancel = "cancelled by ana"
    bench.idle()
    assert bench.desk.ends == []
    assert list((bench.work_dir / "jobs").iterdir()) == []


def test_a_void_lease_ends_the_job(bench: Bench, tmp_path: Path) -> None:
    hostile = hostile_sample(
        digits() / "light.pt2", tmp_path / "hostile.pt2", "import time; time.sleep(600)"
    )
    bench.desk.add(quick_spec(), source=hostile.read_bytes())
    bench.step("loading")
    bench.desk.void = True
    bench.idle()
    assert bench.desk.ends == []


def test_a_worker_that_stops_leaves_the_job_to_others(tmp_path: Path) -> None:
    hostile = hostile_sample(
        digits() / "light.pt2", tmp_path / "hostile.pt2", "import time; time.sleep(600)"
    )
    with working(tmp_path) as bench:
        bench.desk.add(quick_spec(), source=hostile.read_bytes())
        bench.step("loading")
    assert bench.desk.ends == []


def test_a_result_survives_a_controller_that_restarts(bench: Bench, light: bytes) -> None:
    bench.desk.away = 2
    bench.desk.add(quick_spec(), source=light)
    assert bench.end().ok


def test_a_job_cannot_have_outputs_of_others_uploaded(bench: Bench, tmp_path: Path) -> None:
    """A job that runs foreign code may write any result; links and lies end it."""
    code = (
        "import json, os\n"
        "os.makedirs('outputs', exist_ok=True)\n"
        "os.symlink('/etc/passwd', 'outputs/b-0.onnx')\n"
        "row = {'build_id': 'b-0', 'ok': True, 'digest': 'sha256:0', 'length': 1}\n"
        "open('result.json', 'w').write(json.dumps({'schema': 1, 'builds': [row]}))\n"
        "os._exit(0)"
    )
    hostile = hostile_sample(digits() / "light.pt2", tmp_path / "hostile.pt2", code)
    bench.desk.add(quick_spec(), source=hostile.read_bytes())
    end = bench.end()
    assert not end.ok
    assert "b-0.onnx" in end.error
    assert bench.desk.stored == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "no identity"), ('{"schema": 1, "name": "w"}', "lacks controller"), ("[]", "schema 1")],
)
def test_an_identity_that_is_none_is_told(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "worker.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidError, match=says):
        read_identity(path)
    with pytest.raises(InvalidError, match="cannot be read"):
        read_identity(tmp_path / "none.json")


def test_a_worker_of_another_authority_gets_no_job(tmp_path: Path, light: bytes) -> None:
    """Negative control of the TLS that all tests here run over."""
    desk, stop = BuildDesk(), threading.Event()
    with serving(desk) as (address, _), serving(BuildDesk()) as (_, stranger):
        desk.add(quick_spec(), source=light)
        identity = read_identity(write_identity(stranger, address, tmp_path / "worker.json"))
        credentials = grpc.ssl_channel_credentials(
            identity.ca_pem, identity.key_pem, identity.certificate_pem
        )
        with grpc.secure_channel(address, credentials) as channel:
            ready = grpc.channel_ready_future(channel)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=2)
            ready.cancel()
    stop.set()
    assert desk.claims == []
