"""The queue: one holder at a time, lost workers, results that are not what they should be."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.domain.device import Capabilities
from controller.errors import DeniedError, InvalidError, NotFoundError, RefusedError
from controller.services.build_cancellations import cancel_builds
from controller.services.builds import BuildView, list_builds, retry_build, start_build
from controller.services.jobs import (
    MAX_ATTEMPTS,
    ClaimedJob,
    beat_job,
    claim_job,
    complete_job,
    expire_leases,
    put_output,
    read_input,
)
from controller.store import events
from controller.store.jobs import find_job
from tests.support.catalogue import HOST, World, digest_of, open_world, result_row, tiny_onnx

FP32 = "onnxruntime-fp32"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for opened in open_world(tmp_path):
        opened.push(variants=[("heavy", tiny_onnx(1))])
        start_build(
            opened.deps,
            opened.ctx,
            model="digits",
            version="1.0.0",
            profiles=["raspberry-pi-5"],
            recipes=[FP32],
        )
        yield opened.by("w1")


def _only(world: World) -> BuildView:
    (view,) = list_builds(world.deps, world.ctx)
    return view


def _beat(world: World, job: ClaimedJob, pct: float = 40.0) -> tuple[bool, str]:
    beat = beat_job(
        world.deps,
        world.ctx,
        job_id=job.job_id,
        lease=job.lease,
        progress_pct=pct,
        step="exporting",
    )
    return beat.cancel, beat.reason


def _complete(world: World, job: ClaimedJob, *rows: Any, **more: Any) -> None:
    result = json.dumps({"schema": 1, "host": {}, "builds": list(rows)})
    arguments: dict[str, Any] = {"ok": True, "result_json": result} | more
    complete_job(world.deps, world.ctx, job_id=job.job_id, lease=job.lease, **arguments)


def test_progress_is_seen(world: World) -> None:
    job = world.claim()
    assert (_only(world).state, _only(world).step) == ("running", "starting")
    assert _beat(world, job) == (False, "")
    view = _only(world)
    assert (view.progress_pct, view.step, view.job_id) == (40.0, "exporting", job.job_id)
    _beat(world, job, 900.0)
    assert _only(world).progress_pct == 100.0


def test_a_beating_worker_keeps_its_job(world: World) -> None:
    job = world.claim()
    for second in (20, 40, 60):
        assert _beat(world.at(second), job) == (False, "")
        assert expire_leases(world.deps, world.at(second).ctx) == 0


def test_a_silent_worker_loses_its_job_to_the_next(world: World) -> None:
    job = world.claim()
    assert claim_job(world.deps, world.at(30).ctx, HOST) is None
    second = world.at(31).by("w2").claim()
    assert second.job_id == job.job_id
    assert second.lease != job.lease
    cancel, reason = _beat(world.at(32), job)
    assert cancel
    assert "is with w2 now" in reason
    for late in (_complete, _put):
        with pytest.raises(RefusedError, match="not held by w1"):
            late(world.at(33), job)
    assert _only(world).state == "running"
    world.at(34).by("w2").finish(second)
    assert _only(world).state == "passed"


def _put(world: World, job: ClaimedJob, data: bytes = b"result") -> None:
    put_output(
        world.deps,
        world.ctx,
        job_id=job.job_id,
        lease=job.lease,
        digest=digest_of(data),
        length=len(data),
        chunks=[data],
    )


def test_three_lost_workers_fail_the_job(world: World) -> None:
    for attempt in range(MAX_ATTEMPTS):
        world.at(attempt * 100).claim()
    assert expire_leases(world.deps, world.at(300).ctx) == 1
    view = _only(world)
    assert view.state == "failed"
    assert "given up after 3 attempts" in view.reason
    assert claim_job(world.deps, world.at(301).ctx, HOST) is None
    with world.deps.store.read() as conn:
        lost = events.list_events(conn, "default", kinds=["build_job_lost"])
    assert [row.details["attempt"] for row in lost] == ["1", "2", "3"]


def test_the_lease_of_another_is_worth_nothing(world: World) -> None:
    job = world.claim()
    thief = world.by("w2")
    assert _beat(thief, job)[0]
    with pytest.raises(RefusedError):
        _complete(thief, job)
    with pytest.raises(RefusedError):
        _put(thief, job)


def test_a_worker_reads_only_the_inputs_of_its_jobs(world: World) -> None:
    source = digest_of(tiny_onnx(1))
    other = world.upload(b"of somebody else")
    with pytest.raises(DeniedError):
        read_input(world.deps, world.ctx, source)
    world.claim()
    length, chunks = read_input(world.deps, world.ctx, source, 10)
    assert length == len(tiny_onnx(1))
    assert b"".join(chunks) == tiny_onnx(1)[10:]
    for foreign in (world.by("w2"), world):
        with pytest.raises(DeniedError):
            read_input(foreign.deps, foreign.ctx, other)


def test_the_worker_says_which_machine_measured_not_the_job(world: World) -> None:
    pi = Capabilities(
        arch="aarch64",
        device_model="Raspberry Pi 5 Model B Rev 1.0",
        runtimes={"onnxruntime": "1.32.0"},
    )
    world.finish(world.claim(pi), p95_ms=500.0)  # the result itself names no host
    assert _only(world).measured_on_class
    assert "budget 100 ms" in _only(world).reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ok": False, "error": "opset 7 is too old"}, "opset 7 is too old"),
        ({"ok": False}, "without a word"),
        ({"digest": digest_of(b"never sent")}, "did not upload"),
        ({"digest": ""}, "did not upload"),
        ({"media_type": "application/x-sh"}, "unknown media type"),
        ({"evidence": None}, "no evidence"),
        ({"evidence": {"p95_ms": 1}}, "not understood"),
    ],
)
def test_a_result_that_shows_nothing_fails_its_build(
    world: World, change: dict[str, Any], said: str
) -> None:
    job = world.claim()
    _put(world, job)
    row = result_row(job.spec["builds"][0]["build_id"], b"result") | change
    _complete(world, job, row)
    view = _only(world)
    assert view.state == "failed"
    assert said in view.reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema":2}', '{"schema":1,"builds":[1]}'])
def test_a_result_that_is_no_result_is_refused(world: World, text: str) -> None:
    job = world.claim()
    with pytest.raises(InvalidError):
        _complete(world, job, result_json=text)
    assert _beat(world, job) == (False, "")  # the worker still holds it and reports a failure
    _complete(world, job, ok=False, result_json="", error="no result", last_lines=["x" * 9999] * 99)
    view = _only(world)
    assert (view.state, view.reason) == ("failed", "no result")
    assert (len(view.last_lines), len(view.last_lines[0])) == (40, 500)


def test_a_build_that_the_result_forgets_failed(world: World) -> None:
    job = world.claim()
    _complete(world, job)
    assert _only(world).reason == "the job ended without a result"


def test_a_result_counts_once(world: World) -> None:
    job = world.claim()
    world.finish(job)
    with pytest.raises(RefusedError, match="not held"):
        _complete(world, job)


def test_a_cancelled_job_stops_its_worker(world: World) -> None:
    job = world.claim()
    ana = world.by("ana").ctx
    (ended,) = cancel_builds(world.deps, ana, job_id=job.job_id, reason="wrong labels")
    assert _beat(world, job) == (True, "the job is cancelled: cancelled by ana: wrong labels")
    assert (ended.state, ended.reason) == ("failed", "cancelled by ana: wrong labels")
    assert _only(world).reason == ended.reason
    assert cancel_builds(world.deps, ana, job_id=job.job_id, reason="again") == []
    for names in ({"job_id": "j-none"}, {"model": "nobody", "version": "1.0.0"}):
        with pytest.raises(NotFoundError):
            cancel_builds(world.deps, ana, **names)
    with world.deps.store.read() as conn:
        row = find_job(conn, job.job_id)
        (told,) = events.list_events(conn, "default", kinds=("build_cancelled",))
    assert row is not None
    assert row.state == "CANCELLED"
    assert (told.actor, told.reason) == ("ana", "cancelled by ana: wrong labels")
    assert (told.details["job"], told.details["worker"]) == (job.job_id, row.worker)


def test_a_version_is_cancelled_while_it_waits_and_can_be_retried(world: World) -> None:
    by = {"model": "digits", "version": "1.0.0"}
    (ended,) = cancel_builds(world.deps, world.by("ana").ctx, **by)
    assert (ended.state, ended.reason) == ("failed", "cancelled by ana")
    assert claim_job(world.deps, world.ctx, HOST) is None
    assert cancel_builds(world.deps, world.by("ana").ctx, **by) == []
    retry_build(world.deps, world.ctx, **by)
    job = world.claim()
    world.finish(job)
    assert _only(world).state in ("passed", "refused")
    # The negative control: what is done is not undone.
    assert cancel_builds(world.deps, world.by("ana").ctx, job_id=job.job_id) == []
    assert _only(world).state in ("passed", "refused")
