"""`fleetctl build cancel`: a job that does not end is killed at its worker, which goes on."""

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from controller.cli.root import run as fleetctl
from controller.worker.app import run_worker
from tests.support.catalogue import World, tiny_npz, tiny_onnx
from tests.support.gateway import Running, running
from tests.support.hanging import POISON, hanging
from tests.support.wait import wait_for

BUILD = ("--profile", "intel-n100", "--recipe", "onnxruntime-fp32")
JOB_S = 120.0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "data") as started:
        world = World(started.deps, started.ctx("ana"))
        world.push("endless:1.0.0", variants=[("heavy", hanging((1, 8, 8), 10, 1))])
        world.push_data("endless", poisoned())
        world.push("digits:1.0.0", variants=[("heavy", tiny_onnx(1))])
        world.push_data("digits")
        yield started


@pytest.fixture
def work_dir(home: Running, tmp_path: Path) -> Iterator[Path]:
    """Where a worker works that claims from the controller."""
    stop, folder = threading.Event(), tmp_path / "work"
    thread = threading.Thread(
        target=run_worker,
        args=(home.listening.grpc, home.folder / "worker.json", stop),
        kwargs={"work_dir": folder},
    )
    thread.start()
    yield folder
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def poisoned() -> bytes:
    """Pictures of which the model answers none."""
    with np.load(io.BytesIO(tiny_npz())) as rows:
        arrays = {name: rows[name] for name in rows.files}
    out = io.BytesIO()
    np.savez(out, **(arrays | {"x": arrays["x"] + np.float32(POISON)}))
    return out.getvalue()


def run(home: Running, *words: str, expect: int | None = 0) -> str:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = fleetctl(["--context", str(home.folder / "operator.json"), *words])
    assert expect in (code, None), said.getvalue()
    return said.getvalue()


def build(home: Running, ref: str) -> dict[str, str]:
    (found,) = json.loads(run(home, "build", "list", ref, "-o", "json"))["items"]
    return dict(found)


def processes(folder: Path) -> set[int]:
    """Live processes that work below a folder."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if (
                entry.name.isdigit()
                and alive
                and os.readlink(entry / "cwd").startswith(str(folder))
            ):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def test_an_endless_job_is_killed_and_its_worker_does_the_next(
    home: Running, work_dir: Path
) -> None:
    jobs = work_dir / "jobs"
    run(home, "build", "run", "endless:1.0.0", *BUILD)
    # The raised graph and the pushed one are asked the same rows: those that never end.
    begun = "comparing with the source"
    wait_for(lambda: build(home, "endless:1.0.0")["step"] == begun, JOB_S, "the loop to begin")
    held = processes(jobs)
    assert held, "a job is a process of its own"
    run(home, "build", "run", "digits:1.0.0", *BUILD)
    job_id = build(home, "endless:1.0.0")["job_id"]
    assert build(home, "digits:1.0.0")["state"] == "queued"  # the worker is held
    assert processes(jobs) & held  # the negative control: nothing else ends them
    said = run(home, "build", "cancel", job_id, "--reason", "it does not end")
    assert said.startswith("intel-n100  heavy  onnxruntime-fp32: cancelled by ")
    assert said.endswith(": it does not end\n")
    wait_for(lambda: not processes(jobs) & held, 30, "the job's processes to be gone")
    wait_for(lambda: build(home, "digits:1.0.0")["state"] != "queued", 30, "the next job to begin")
    ended = build(home, "endless:1.0.0")
    assert (ended["state"], ended["reason"]) == ("failed", said.partition(": ")[2].strip())
    # Asked twice is asked once; and what a person ended is no trouble of the fleet.
    said = run(home, "build", "cancel", job_id)
    assert said == f"{job_id} has no build that waits or runs\n"
    events = json.loads(run(home, "event", "list", "--kind", "build_cancelled", "-o", "json"))
    assert [one["details"]["job"] for one in events["items"]] == [job_id]
    problems = json.loads(run(home, "status", "-o", "json", expect=None))["problems"]
    assert not [text for text in problems if "failed" in text]
    run(home, "build", "cancel", "digits:1.0.0")


def test_what_waits_is_cancelled_by_its_version(home: Running) -> None:
    run(home, "build", "run", "digits:1.0.0", *BUILD)
    told = json.loads(run(home, "build", "cancel", "digits:1.0.0", "-o", "json"))["items"]
    assert [one["state"] for one in told] == ["failed"]
    assert run(home, "build", "cancel", "digits:1.0.0").startswith("digits:1.0.0 has no build")
    assert "no build job j-000000" in run(home, "build", "cancel", "j-000000", expect=1)
    assert "digits:9.9.9 does not exist" in run(home, "build", "cancel", "digits:9.9.9", expect=1)
