"""What the status says of builds: which failed, until when that is news, whether anybody builds."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from controller.services.builds import list_builds, retry_build, start_build
from controller.services.jobs import complete_job
from controller.services.status import BUILD_TOLD, ProcessFacts, StatusView, get_status
from tests.support.catalogue import World, open_world, tiny_onnx
from tests.support.stores import NOW

PROFILE = "intel-n100"
RECIPE = "onnxruntime-fp32"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def status(world: World, workers: int = 1, up_s: float = 600) -> StatusView:
    started = world.ctx.now - timedelta(seconds=up_s)
    return get_status(world.deps, world.ctx, ProcessFacts("1", started, True, workers))


def run(world: World, version: str) -> None:
    """Push a version of its own weights and ask for its builds."""
    seed = int(version.replace(".", ""))
    world.push(f"digits:{version}", [("heavy", tiny_onnx(seed)), ("light", tiny_onnx(seed + 1))])
    start_build(
        world.deps,
        world.ctx,
        model="digits",
        version=version,
        profiles=[PROFILE],
        recipes=[RECIPE],
    )


def failed(world: World, version: str) -> World:
    """Push and build a version whose jobs all fail; a minute later."""
    run(world, version)
    for _ in range(2):
        job = world.claim()
        complete_job(
            world.deps, world.ctx, job_id=job.job_id, lease=job.lease, ok=False, result_json=""
        )
    return world.at((world.ctx.now - NOW).total_seconds() + 60)


def test_failed_builds_are_named_with_the_way_out(world: World) -> None:
    after = failed(world, "1.0.0")
    (said,) = status(after).problems
    assert said.startswith(
        f"2 builds failed: digits:1.0.0 {PROFILE} heavy {RECIPE}, digits:1.0.0 {PROFILE} light"
    ), said
    assert "`fleetctl build retry digits:1.0.0`" in said


def test_a_retry_or_seven_days_end_the_news(world: World) -> None:
    after = failed(world, "1.0.0")
    late = World(after.deps, after.at(BUILD_TOLD.total_seconds() + 60).ctx)
    assert status(late).problems == ()
    assert status(after).problems
    retry_build(after.deps, after.ctx, model="digits", version="1.0.0")
    assert status(after).problems == ()


def test_a_newer_version_that_passed_ends_the_news_cell_by_cell(world: World) -> None:
    later = failed(world, "1.0.0")
    run(later, "1.1.0")
    later.finish_all()
    states = {one.state for one in list_builds(later.deps, later.ctx, model="digits")}
    assert "passed" in states
    assert not [one for one in status(later).problems if "failed" in one]


def test_an_older_version_that_passed_is_no_answer(world: World) -> None:
    run(world, "0.9.0")
    world.finish_all()
    later = failed(world.at(60), "1.0.0")
    assert [one for one in status(later).problems if "2 builds failed" in one]


def test_builds_that_nobody_makes_are_a_problem(world: World) -> None:
    run(world, "1.0.0")
    assert status(world).problems == ()
    (said,) = status(world, workers=0).problems
    assert "2 builds wait and no build worker was seen for a minute" in said
    assert "lighterman-controller worker" in said
    assert "since the start" in status(world, workers=0, up_s=30).problems[0]
    assert status(world, workers=0, up_s=5).problems == ()


def test_builds_are_counted_in_one_order(world: World) -> None:
    later = failed(world, "1.0.0")
    run(later, "1.1.0")
    assert list(status(later).builds) == ["queued", "failed"]
