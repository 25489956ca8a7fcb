"""Why builds are as they are: the gate line by line, overrides, what devices get, what is next."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.errors import NotFoundError
from controller.services.build_explanations import explain_builds
from controller.services.builds import list_builds, override_build, start_build
from controller.services.jobs import complete_job
from controller.store.tables import build_gate
from tests.support.catalogue import World, interval, open_world

PI, N100 = "raspberry-pi-5", "intel-n100"
FP32, INT8 = "onnxruntime-fp32", "onnxruntime-int8"
REF = "digits:1.0.0"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for opened in open_world(tmp_path):
        opened.push()
        yield opened


def build(world: World, profile: str = PI, **figures: Any) -> None:
    start_build(world.deps, world.ctx, model="digits", version="1.0.0", profiles=[profile])
    world.finish_all(**figures)


def explained(world: World, recipe: str = INT8, **names: str) -> list[tuple[str, str]]:
    """Topics and texts of one build of the heavy variant."""
    (found,) = explain_builds(
        world.deps, world.ctx, model="digits", version="1.0.0", variant="heavy", recipe=recipe,
        **names,
    )  # fmt: skip
    return [(fact.topic, fact.text) for fact in found.facts]


def texts(facts: list[tuple[str, str]], topic: str) -> list[str]:
    return [text for name, text in facts if name == topic]


def test_a_passed_build_says_what_held_and_who_gets_it(world: World) -> None:
    world.push_data()
    build(world)
    facts = explained(world)
    assert texts(facts, "state") == ["passed 2026-11-24T09:14:05Z"]
    gate = texts(facts, "gate")
    assert gate[0] == "holds    no NaN or infinity in the answers to 375 rows"
    assert gate[-2] == "holds    needs 80.0 MiB of 512.0 MiB"
    assert all(line.startswith("holds") for line in gate)
    assert len(gate) == 6
    (measured,) = texts(facts, "measured")
    assert measured == (
        "on x86_64 test, n=200: not a host of raspberry-pi-5, so its budget of 100 ms was not"
        " checked; on the devices the policy and the waves of a rollout decide"
    )
    used = {recipe: texts(explained(world, recipe), "used")[0] for recipe in (FP32, INT8)}
    assert sum(text.startswith("yes: devices of raspberry-pi-5 get it") for text in used.values())
    assert any("which is faster (p50 4 against 4 ms)" in text for text in used.values())


def test_a_host_of_the_class_is_told(world: World) -> None:
    world.push_data()
    build(world, N100, p95_ms=150.0)
    facts = explained(world)
    assert texts(facts, "measured") == ["on x86_64 test, n=200: a host of intel-n100"]
    assert texts(facts, "gate")[-1] == "refused  p95 150 ms, budget 100 ms, n=200"
    assert texts(facts, "used") == ["no: no build of heavy may go to intel-n100"]
    assert texts(facts, "next") == [
        f"figures: fleetctl build show {REF} --profile intel-n100 --variant heavy --recipe {INT8}",
        f"if you answer for it: fleetctl build override {REF} --profile intel-n100"
        f" --variant heavy --recipe {INT8} --reason TEXT",
    ]


def test_a_refusal_shows_also_what_held_and_that_another_build_is_used(world: World) -> None:
    world.push_data()
    build(world, agreement=interval(90.0))
    facts = explained(world)
    assert texts(facts, "state") == ["refused 2026-11-24T09:14:05Z"]
    marks = [line.split()[0] for line in texts(facts, "gate")]
    assert marks == ["holds", "holds", "refused", "holds", "holds", "holds"]
    assert texts(facts, "used") == [f"no: devices of raspberry-pi-5 get {FP32}, which passed"]
    assert texts(facts, "next") == ["nothing has to be done: another build of the variant is used"]


def test_an_override_is_told_with_who_when_and_why(world: World) -> None:
    world.push_data()
    build(world, agreement=interval(90.0))
    later = world.at(60).by("bo")
    override_build(
        later.deps, later.ctx, model="digits", version="1.0.0", profile=PI,
        reason="seen in the lab", variant="heavy",
    )  # fmt: skip
    facts = explained(world)
    assert texts(facts, "overridden") == ["by bo 2026-11-24T09:15:05Z: seen in the lab"]
    assert any(line.startswith("refused  agreement 90.0 %") for line in texts(facts, "gate"))


def test_a_failed_build_shows_the_last_lines_of_its_job(world: World) -> None:
    world.push_data()
    start_build(world.deps, world.ctx, model="digits", version="1.0.0", profiles=[PI])
    for _ in range(2):
        job = world.claim()
        complete_job(
            world.deps, world.ctx, job_id=job.job_id, lease=job.lease, ok=False,
            error="the job was killed for memory",
            last_lines=["a warning", "", *(f"line {n}" for n in range(20)), "MemoryError: 6 GiB"],
        )  # fmt: skip
    facts = explained(world)
    assert texts(facts, "state") == ["failed 2026-11-24T09:14:05Z: the job was killed for memory"]
    assert texts(facts, "job")[-1] == "MemoryError: 6 GiB"
    assert len(texts(facts, "job")) == 8
    assert texts(facts, "gate") == []
    assert f"once the cause is mended: fleetctl build retry {REF}" in texts(facts, "next")


def test_what_waits_and_what_was_never_made_say_so(world: World) -> None:
    start_build(world.deps, world.ctx, model="digits", version="1.0.0", profiles=[PI])
    assert texts(explained(world, FP32), "state") == ["queued: waits for a build worker"]
    world.claim()
    world.claim()
    assert texts(explained(world, FP32), "state") == ["running: starting, 0 %"]
    facts = explained(world, INT8)
    (state,) = texts(facts, "state")
    assert "before it was made: no dataset digits: int8 needs calibration" in state
    assert texts(facts, "next") == [
        f"once the reason is gone: fleetctl build run {REF} --profile raspberry-pi-5"
    ]


def test_unknown_names_and_nothing_built_are_errors(world: World) -> None:
    for names, said in (
        ({"variant": "heav"}, "digits:1.0.0 has no variant heav\ndid you mean heavy ?"),
        ({"recipe": "onnxruntime-int4"}, "did you mean onnxruntime-int8"),
        ({"profile": "raspberry-pi-6"}, "did you mean raspberry-pi-5"),
        ({}, "digits:1.0.0 has no such build\nmake it: fleetctl build run digits:1.0.0"),
    ):
        with pytest.raises(NotFoundError) as caught:
            explain_builds(world.deps, world.ctx, model="digits", version="1.0.0", **names)
        assert said in caught.value.text()


def test_a_list_can_be_narrowed(world: World) -> None:
    world.push_data()
    build(world)
    found = list_builds(
        world.deps, world.ctx, model="digits", version="1.0.0", variant="light", recipe=INT8
    )
    assert [(one.variant, one.recipe) for one in found] == [("light", INT8)]
    (view,) = found
    assert view.runtime == "onnxruntime"
    assert view.target_key.startswith("sha256:")
    assert view.recipe_spec is not None
    assert view.recipe_spec["precision"] == "int8"
    assert view.dataset_digest.startswith("sha256:")
    assert (view.attempts, view.worker) == (1, world.ctx.actor)
    assert view.asked_at is not None
    assert view.built_at is not None


def test_what_was_judged_before_findings_were_kept_shows_its_reason(world: World) -> None:
    world.push_data()
    build(world, agreement=interval(90.0))
    with world.deps.store.write() as conn:
        conn.execute(build_gate.update().values(findings=None))
    (line,) = texts(explained(world), "gate")
    assert line.startswith("refused  agreement 90.0 % with the source")
    # Asked for again, the gate looks again and keeps all of it.
    build(world)
    assert len(texts(explained(world), "gate")) == 6
