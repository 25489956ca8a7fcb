"""Which runtimes are built for by default, what a worker lacks, and which build a device gets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.domain.build import Recipe, parse_recipe
from controller.domain.device import Profile, parse_profile
from controller.domain.gate import recipes_of
from controller.errors import RefusedError
from controller.services.build_explanations import explain_builds
from controller.services.builds import list_builds, retry_build, start_build
from controller.services.desired import load_members, make_composer
from controller.services.jobs import complete_job, put_output
from controller.services.shipped import shipped_objects
from controller.store.devices import put_capabilities, update_device
from tests.support.catalogue import World, digest_of, open_world, result_row, states, tiny_onnx
from tests.support.stores import seed_device

GENERIC = "generic-x86-64"
ORT = {"onnxruntime-fp32", "onnxruntime-int8"}
OV = {"openvino-fp32", "openvino-int8"}
MEDIA_TYPES = {
    "onnxruntime": "application/onnx",
    "openvino": "application/vnd.lighterman.openvino-ir",
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for opened in open_world(tmp_path):
        opened.push(variants=[("heavy", tiny_onnx(1))])
        opened.push_data()
        yield opened


def enrol(world: World, device_id: str, *runtimes: str, state: str = "ACTIVE") -> None:
    with world.deps.store.write() as conn:
        seed_device(conn, device_id, state)
        update_device(conn, device_id, profile=GENERIC)
        reported = {"arch": "x86_64", "runtimes": dict.fromkeys(runtimes, "1.0")}
        put_capabilities(conn, device_id, reported, world.ctx.now)


def start(world: World, **more: Any) -> dict[str, str]:
    """States by recipe."""
    views = start_build(world.deps, world.ctx, model="digits", version="1.0.0", **more)
    return {recipe: state for (_, _, recipe), state in states(views).items()}


def test_a_runtime_that_no_device_reports_is_not_built_for(world: World) -> None:
    enrol(world, "lean", "onnxruntime")
    assert set(start(world)) == ORT
    enrol(world, "rich", "onnxruntime", "openvino")
    assert set(start(world)) == ORT | OV


def test_a_device_that_left_counts_no_more(world: World) -> None:
    enrol(world, "gone", "onnxruntime", "openvino", state="RETIRED")
    assert set(start(world, profiles=[GENERIC])) == ORT


def test_without_devices_the_first_runtime_counts(world: World) -> None:
    assert set(start(world, profiles=[GENERIC])) == ORT


def test_a_named_recipe_is_built_whatever_devices_report(world: World) -> None:
    enrol(world, "lean", "onnxruntime")
    assert start(world, recipes=["openvino-int8"]) == {"openvino-int8": "queued"}
    assert start(world, recipes=["openvino-bf16"]) == {"openvino-bf16": "refused"}


def shipped(kind: str) -> dict[str, Any]:
    return {name: spec for found, name, spec in shipped_objects() if found == kind}


def test_the_rule_over_all_shipped_profiles() -> None:
    recipes = {name: parse_recipe(name, spec) for name, spec in shipped("Recipe").items()}
    for name, spec in shipped("Profile").items():
        profile = parse_profile(name, spec)
        assert set(profile.recipes) <= set(recipes)
        assert {recipes[one].runtime for one in profile.recipes} == set(profile.runtimes)
        assert set(recipes_of(profile, recipes, ())) == ORT
        for runtime in profile.runtimes:
            built = {recipes[one].runtime for one in recipes_of(profile, recipes, [runtime])}
            assert built == {runtime}


def test_what_a_profile_names_and_cannot_run_is_told_not_left_out() -> None:
    recipes = {name: parse_recipe(name, spec) for name, spec in shipped("Recipe").items()}
    odd = Profile("odd", runtimes=("onnxruntime",), recipes=("openvino-int8", "onnxruntime-fp32"))
    assert recipes_of(odd, recipes, ["onnxruntime"]) == ("onnxruntime-fp32", "openvino-int8")
    free = Profile("free", runtimes=("onnxruntime",))
    more = {"onnxruntime-fp16", "onnxruntime-int8-dynamic"}
    assert set(recipes_of(free, recipes, ["onnxruntime"])) == ORT | more
    unknown: dict[str, Recipe] = {}
    assert recipes_of(odd, unknown, ()) == ("onnxruntime-fp32", "openvino-int8")


def finish(world: World, lacking: frozenset[str] = frozenset(), **p50_ms: float) -> None:
    """Answer a job as a worker does that has not what some recipes need.

    ``p50_ms`` by runtime.
    """
    job = world.claim()
    rows = []
    for build in job.spec["builds"]:
        name, data = build["build_id"], f"compiled {build['build_id']}".encode()
        if build["recipe"] in lacking:
            said = "it needs nncf, which this worker has not\npip install it"
            rows.append({"build_id": name, "ok": False, "error": said, "lacking": True})
            continue
        put_output(
            world.deps, world.ctx, job_id=job.job_id, lease=job.lease,
            digest=digest_of(data), length=len(data), chunks=[data],
        )  # fmt: skip
        speed = p50_ms.get(build["spec"]["runtime"], 4.0)
        row = result_row(name, data, p50_ms=speed, p95_ms=speed, fp32_p50_ms=9.0)
        rows.append({**row, "media_type": MEDIA_TYPES[build["spec"]["runtime"]]})
    result = json.dumps({"schema": 1, "host": {}, "builds": rows})
    complete_job(
        world.deps, world.ctx, job_id=job.job_id, lease=job.lease, ok=True, result_json=result
    )


def test_what_a_worker_lacks_refuses_those_builds_alone(world: World) -> None:
    enrol(world, "rich", "onnxruntime", "openvino")
    start(world)
    finish(world, frozenset({"openvino-int8"}))
    views = {view.recipe: view for view in list_builds(world.deps, world.ctx)}
    assert {name: view.state for name, view in views.items()} == {
        **dict.fromkeys(ORT | {"openvino-fp32"}, "passed"),
        "openvino-int8": "refused",
    }
    assert "needs nncf" in views["openvino-int8"].reason
    (why,) = explain_builds(
        world.deps, world.ctx, model="digits", version="1.0.0", recipe="openvino-int8"
    )
    told = {fact.topic: fact.text for fact in why.facts}
    assert "before it was made: it needs nncf" in told["state"]
    assert "another build of the variant is used" in told["next"]
    assert views["openvino-int8"].last_lines == ()
    # A worker that has it by now builds it, and nothing else again.
    assert retry_build(world.deps, world.ctx, model="digits", version="1.0.0")
    finish(world)
    states_now = {view.recipe: view.state for view in list_builds(world.deps, world.ctx)}
    assert states_now == dict.fromkeys(ORT | OV, "passed")
    with pytest.raises(RefusedError, match=r"no build of digits:1\.0\.0 failed"):
        retry_build(world.deps, world.ctx, model="digits", version="1.0.0")


def test_a_device_gets_the_fastest_of_those_it_can_run(world: World) -> None:
    enrol(world, "lean", "onnxruntime")
    enrol(world, "rich", "onnxruntime", "openvino")
    start(world)
    finish(world, onnxruntime=4.0, openvino=2.0)
    with world.deps.store.read() as conn:
        composer = make_composer(conn, "default", "digits", "1.0.0", {})
        found = {}
        for member in load_members(conn, "default"):
            (rung,) = composer.ladder(member).rungs
            assert rung.build is not None
            found[member.subject.device_id] = (rung.build.runtime, rung.build.media_type)
    assert found == {
        "lean": ("onnxruntime", "application/onnx"),
        "rich": ("openvino", "application/vnd.lighterman.openvino-ir"),
    }
