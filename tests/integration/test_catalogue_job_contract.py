"""The job's contract: what the catalogue asks is what the job process answers, on real files."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.services.builds import list_builds, start_build
from controller.services.jobs import ClaimedJob, complete_job, put_output, read_input
from tests.support.catalogue import World, digest_of, open_world, states

PI = "raspberry-pi-5"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def _classifier() -> bytes:
    """A small image classifier as its author exports it."""
    import torch

    torch.manual_seed(7)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 64, 10),
    ).eval()
    program = torch.export.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        dynamic_shapes={"input": {0: torch.export.Dim("batch")}},
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _rows() -> bytes:
    random = np.random.default_rng(3)
    out = io.BytesIO()
    np.savez(out, x=random.normal(size=(160, 1, 8, 8)).astype(np.float32), y=np.arange(160) % 10)
    return out.getvalue()


def _run(world: World, job: ClaimedJob, folder: Path) -> None:
    """What the worker does between claim and completion."""
    (folder / "inputs").mkdir(parents=True)
    for one in job.inputs:
        _, chunks = read_input(world.deps, world.ctx, one.digest)
        (folder / "inputs" / one.role).write_bytes(b"".join(chunks))
    (folder / "spec.json").write_text(json.dumps(job.spec), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "controller.optimize.job", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = (folder / "result.json").read_text(encoding="utf-8")
    for build in json.loads(result)["builds"]:
        assert build["ok"], build
        path = folder / "outputs" / f"{build['build_id']}.onnx"
        with path.open("rb") as stream:
            put_output(
                world.deps,
                world.ctx,
                job_id=job.job_id,
                lease=job.lease,
                digest=build["digest"],
                length=build["length"],
                chunks=iter(lambda: stream.read(65_536), b""),
            )
    complete_job(
        world.deps, world.ctx, job_id=job.job_id, lease=job.lease, ok=True, result_json=result
    )


@pytest.mark.slow
def test_a_pushed_export_is_built_measured_and_gated(world: World, tmp_path: Path) -> None:
    world.push(variants=[("heavy", _classifier())])
    world.push_data(data=_rows())
    start_build(world.deps, world.ctx, model="digits", version="1.0.0", profiles=[PI])
    worker = World(world.deps, replace(world.ctx, actor="w1"))
    _run(worker, worker.claim(), tmp_path / "job")
    views = list_builds(world.deps, world.ctx, model="digits")
    assert set(states(views).values()) <= {"passed", "refused"}, [v.reason for v in views]
    fp32, int8 = sorted(views, key=lambda view: view.recipe)
    assert fp32.state == "passed"
    for view in (fp32, int8):
        assert view.evidence is not None
        assert view.evidence.agreement is not None
        assert view.evidence.agreement.n > 0
        assert view.evidence.latency_n > 0
        assert (view.evidence.rows_checked, view.evidence.rows_not_finite) == (120, 0)
        assert view.evidence.dataset_digest == digest_of(_rows())
        assert view.size_bytes == view.evidence.size_bytes > 0
        assert "latency not measured on this class" in view.reason or view.state == "refused"
    assert fp32.evidence is not None
    assert fp32.evidence.agreement is not None
    assert fp32.evidence.agreement.value == 100.0
