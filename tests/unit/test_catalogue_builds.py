"""Builds: what is queued, shared, gated, refused, overridden and run again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.errors import InvalidError, NotFoundError, RefusedError
from controller.services.builds import (
    list_builds,
    override_build,
    retry_build,
    start_build,
)
from controller.services.jobs import claim_job, complete_job
from controller.services.objects import NewObject, apply_objects, get_object
from controller.store import events
from controller.store.builds import passed_builds
from controller.store.devices import update_device
from tests.support.catalogue import HOST, World, interval, open_world, states, tiny_npz, tiny_onnx
from tests.support.stores import seed_device

PI, N100 = "raspberry-pi-5", "intel-n100"
FP32, INT8 = "onnxruntime-fp32", "onnxruntime-int8"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def _start(world: World, *profiles: str, version: str = "1.0.0", **more: Any) -> dict[Any, str]:
    views = start_build(
        world.deps, world.ctx, model="digits", version=version, profiles=profiles, **more
    )
    return states(views)


def _events(world: World, kind: str) -> list[events.EventRow]:
    with world.deps.store.read() as conn:
        return events.list_events(conn, "default", kinds=[kind])


def test_one_job_per_variant_with_all_its_recipes(world: World) -> None:
    world.push(labels=[str(n) for n in range(10)])
    world.push_data()
    found = _start(world, PI, N100)
    assert set(found.values()) == {"queued"}
    assert len(found) == 8
    jobs = sorted((world.claim(), world.claim()), key=lambda job: str(job.spec["variant"]))
    assert claim_job(world.deps, world.ctx, HOST) is None
    assert [job.spec["variant"] for job in jobs] == ["heavy", "light"]
    for job in jobs:
        assert sorted(build["recipe"] for build in job.spec["builds"]) == [FP32, INT8]
        assert [one.role for one in job.inputs] == ["source", "calibration", "evaluation"]
    spec = dict(jobs[0].spec)
    assert spec.pop("builds")[0]["spec"]["runtime"] == "onnxruntime"
    assert spec.pop("signature")["inputs"][0]["name"] == "image"
    assert isinstance(spec.pop("seed"), int)
    assert spec == {
        "schema": 1,
        "job_id": jobs[0].job_id,
        "model": "digits",
        "version": "1.0.0",
        "variant": "heavy",
        "source": {"role": "source", "format": "onnx"},
        "labels_count": 10,
        "calibration": True,
        "evaluation": True,
        "limits": {
            "memory_bytes": world.deps.limits.job_memory_bytes,
            "time_s": world.deps.limits.job_time_s,
        },
    }


def test_results_are_gated_per_profile(world: World) -> None:
    world.push()
    world.push_data()
    _start(world, PI, N100)
    world.finish_all(p95_ms=150.0)
    views = list_builds(world.deps, world.ctx, model="digits", version="1.0.0")
    found = states(views)
    # HOST is an N100: its latency budget binds there, and says nothing of a Raspberry Pi.
    assert {state for (profile, _, _), state in found.items() if profile == PI} == {"passed"}
    assert {state for (profile, _, _), state in found.items() if profile == N100} == {"refused"}
    by_profile = {view.profile: view for view in views}
    assert "latency not measured on this class" in by_profile[PI].reason
    assert "p95 150 ms, budget 100 ms" in by_profile[N100].reason
    assert (by_profile[PI].measured_on_class, by_profile[N100].measured_on_class) == (False, True)
    evidence = by_profile[PI].evidence
    assert evidence is not None
    assert (evidence.size_bytes, evidence.peak_rss_bytes) == (
        by_profile[PI].size_bytes,
        80 * 2**20,
    )
    assert len(_events(world, "build_passed")) == 4
    assert all("budget 100 ms" in row.reason for row in _events(world, "build_refused"))


def test_answers_that_are_no_numbers_are_refused_by_every_recipe(world: World) -> None:
    world.push()
    data = world.push_data()
    _start(world, PI, N100)
    world.finish_all(rows_checked=128, rows_not_finite=3)
    views = list_builds(world.deps, world.ctx, model="digits", version="1.0.0")
    assert {view.state for view in views} == {"refused"}
    assert {view.recipe for view in views} == {FP32, INT8}
    for view in views:
        assert "3 of 128 rows gave NaN or infinity" in view.reason
        assert view.evidence is not None
        assert view.evidence.dataset_digest == data.digest, "a figure leads to its rows"


def test_builds_that_nobody_looked_at_are_no_longer_taken_for_good(world: World) -> None:
    """What older workers send, or sent: it is refused, and made again at the next run."""
    world.push()
    world.push_data()
    _start(world, PI)
    world.finish_all(rows_checked=None, rows_not_finite=None)
    views = list_builds(world.deps, world.ctx, model="digits", version="1.0.0")
    assert {view.state for view in views} == {"refused"}
    assert all("no row's outputs were looked at" in view.reason for view in views)


def test_the_same_source_is_compiled_once(world: World) -> None:
    heavy, light = ("heavy", tiny_onnx(1)), ("light", tiny_onnx(2))
    world.push(variants=[heavy])
    world.push_data()
    _start(world, PI)
    world.finish_all()
    world.at(9).push("digits:1.1.0", variants=[heavy, light])
    found = _start(world.at(10), PI, N100, version="1.1.0")
    assert found[PI, "heavy", INT8] == found[N100, "heavy", INT8] == "passed"
    assert found[PI, "light", INT8] == "queued"
    views = list_builds(world.deps, world.ctx, model="digits", version="1.1.0")
    assert {view.variant for view in views if view.cached} == {"heavy"}
    assert world.claim().spec["variant"] == "light"


def test_variants_of_the_same_bytes_share_a_job(world: World) -> None:
    world.push(variants=[("a", tiny_onnx(1)), ("b", tiny_onnx(1))])
    _start(world, PI, recipes=[FP32])
    world.finish(world.claim())
    assert claim_job(world.deps, world.ctx, HOST) is None
    found = states(list_builds(world.deps, world.ctx, model="digits"))
    assert found == {(PI, "a", FP32): "passed", (PI, "b", FP32): "passed"}


def test_another_dataset_or_recipe_is_another_target(world: World) -> None:
    world.push(variants=[("heavy", tiny_onnx(1))])
    world.push_data()
    _start(world, PI)
    world.finish_all()
    world.at(5).push_data(data=tiny_npz(seed=9))
    assert set(_start(world.at(6), PI).values()) == {"queued"}
    world.finish_all()
    recipe = get_object(world.deps, world.ctx, "Recipe", INT8)
    gate = {"gate": {"min_agreement_pct": 50}}
    apply_objects(world.deps, world.ctx, [NewObject("Recipe", INT8, {**recipe.spec, **gate})])
    assert _start(world, PI) == {(PI, "heavy", FP32): "passed", (PI, "heavy", INT8): "queued"}


def test_int8_without_a_dataset_is_refused_with_that_reason(world: World) -> None:
    world.push()
    found = _start(world, PI)
    assert found[PI, "heavy", INT8] == "refused"
    assert found[PI, "heavy", FP32] == "queued"
    views = list_builds(world.deps, world.ctx, model="digits")
    (refused, *_) = [view for view in views if view.state == "refused"]
    assert "no dataset digits" in refused.reason
    assert refused.build_id == ""
    job = world.claim()
    assert [build["recipe"] for build in job.spec["builds"]] == [FP32]
    assert [one.role for one in job.inputs] == ["source"]
    assert (job.spec["calibration"], job.spec["evaluation"]) == (False, False)


def test_labels_that_the_model_has_no_class_for_are_refused(world: World) -> None:
    world.push(variants=[("heavy", tiny_onnx(1, classes=4))])
    world.push_data()
    with pytest.raises(RefusedError) as caught:
        _start(world, PI)
    assert caught.value.lines == (
        "its labels go up to 9, the model's output scores[batch,4] FP32 has the classes 0 to 3",
    )


def test_a_named_dataset_must_exist_and_fit(world: World) -> None:
    world.push()
    world.push_data(name="digit-photos")
    with pytest.raises(NotFoundError) as caught:
        _start(world, PI, dataset="digit-photo")
    assert caught.value.lines == ("did you mean digit-photos ?",)
    world.push_data(name="large", data=tiny_npz(side=9))
    with pytest.raises(RefusedError, match="does not fit digits"):
        _start(world, PI, dataset="large")
    assert _start(world, PI, dataset="digit-photos")[PI, "heavy", INT8] == "queued"


def test_default_profiles_are_those_of_enrolled_devices(world: World) -> None:
    world.push()
    with pytest.raises(RefusedError, match="no enrolled device"):
        _start(world)
    with world.deps.store.write() as conn:
        seed_device(conn, "a")
        update_device(conn, "a", profile=N100)
    assert {profile for profile, _, _ in _start(world)} == {N100}


def test_unknown_profiles_and_recipes_come_with_a_suggestion(world: World) -> None:
    world.push()
    with pytest.raises(NotFoundError) as caught:
        _start(world, "raspbery-pi-5")
    assert "raspberry-pi-5" in caught.value.lines[0]
    with pytest.raises(NotFoundError, match="recipe onnxruntime-int4"):
        _start(world, PI, recipes=["onnxruntime-int4"])


def test_a_recipe_that_the_profile_does_not_use_is_refused(world: World) -> None:
    spec = dict(get_object(world.deps, world.ctx, "Profile", PI).spec) | {"recipes": [FP32]}
    apply_objects(world.deps, world.ctx, [NewObject("Profile", PI, spec)])
    world.push(variants=[("heavy", tiny_onnx(1))])
    world.push_data()
    assert _start(world, PI) == {(PI, "heavy", FP32): "queued"}
    assert _start(world, PI, recipes=[INT8])[PI, "heavy", INT8] == "refused"


def test_a_failed_job_is_shown_with_its_last_lines_and_runs_again(world: World) -> None:
    world.push(variants=[("heavy", tiny_onnx(1))])
    world.push_data()
    _start(world, PI)
    job = world.claim()
    complete_job(
        world.deps,
        world.ctx,
        job_id=job.job_id,
        lease=job.lease,
        ok=False,
        error="killed by signal 9",
        last_lines=["exporting", "Killed"],
    )
    views = list_builds(world.deps, world.ctx, model="digits")
    assert {view.state for view in views} == {"failed"}
    assert views[0].reason == "killed by signal 9"
    assert views[0].last_lines == ("exporting", "Killed")
    again = retry_build(world.deps, world.ctx, model="digits", version="1.0.0")
    assert {view.state for view in again} == {"queued"}
    world.finish_all()
    assert set(states(list_builds(world.deps, world.ctx)).values()) == {"passed"}
    with pytest.raises(RefusedError, match="no build of digits"):
        retry_build(world.deps, world.ctx, model="digits", version="1.0.0")


def test_starting_again_runs_failed_ones_again(world: World) -> None:
    world.push(variants=[("heavy", tiny_onnx(1))])
    _start(world, PI, recipes=[FP32])
    job = world.claim()
    complete_job(world.deps, world.ctx, job_id=job.job_id, lease=job.lease, ok=False)
    assert _start(world, PI, recipes=[FP32]) == {(PI, "heavy", FP32): "queued"}
    assert world.claim().job_id != job.job_id


def _refused(world: World) -> None:
    world.push()
    world.push_data()
    _start(world, PI)
    world.finish_all(agreement=interval(90.0), accuracy_delta_pts=interval(-5.0))


def _override(world: World, reason: str = "seen in the lab", **more: Any) -> list[Any]:
    return override_build(
        world.deps,
        world.ctx,
        model="digits",
        version="1.0.0",
        profile=PI,
        reason=reason,
        **more,
    )


def test_an_override_is_an_event_and_lets_the_build_out(world: World) -> None:
    _refused(world)
    with world.deps.store.read() as conn:
        before = passed_builds(conn, "default", "digits", "1.0.0", PI)
    assert {one.recipe for one in before} == {FP32}
    (view,) = _override(world.by("bo"), variant="light")
    assert (view.variant, view.recipe, view.state) == ("light", INT8, "overridden")
    assert (view.override_reason, view.override_by) == ("seen in the lab", "bo")
    assert "accuracy" in view.reason  # what the gate said stays
    (event,) = _events(world, "build_overridden")
    assert (event.actor, event.reason, event.version) == ("bo", "seen in the lab", "1.0.0")
    assert event.details["refused"] == view.reason
    with world.deps.store.read() as conn:
        found = passed_builds(conn, "default", "digits", "1.0.0", PI)
        assert passed_builds(conn, "default", "digits", "1.0.0", N100) == []
    assert [(one.variant, one.recipe, one.overridden) for one in found] == [
        ("heavy", FP32, False),
        ("light", FP32, False),
        ("light", INT8, True),
    ]


def test_an_override_holds_when_the_build_runs_again(world: World) -> None:
    _refused(world)
    _override(world, variant="light")
    found = _start(world, PI)
    assert found[PI, "light", INT8] == "overridden"
    assert found[PI, "heavy", INT8] == "refused"


def test_an_override_speaks_of_one_profile_and_says_why(world: World) -> None:
    _refused(world)
    for reason in ("", "  ", "x" * 501):
        with pytest.raises(InvalidError, match="needs a reason"):
            _override(world, reason)
    assert len(_override(world)) == 2
    with pytest.raises(RefusedError, match="was refused by its gate") as caught:
        _override(world)
    assert any("overridden" in line for line in caught.value.lines)
    with pytest.raises(RefusedError, match="was not built for"):
        override_build(
            world.deps, world.ctx, model="digits", version="1.0.0", profile=N100, reason="why"
        )
    assert len(_events(world, "build_overridden")) == 2


def test_what_was_never_compiled_cannot_be_overridden(world: World) -> None:
    world.push()
    _start(world, PI, recipes=[INT8])
    with pytest.raises(RefusedError, match="was refused by its gate") as caught:
        _override(world)
    assert any("no dataset" in line for line in caught.value.lines)


def test_asking_again_tells_nothing_new_and_shows_what_was_asked_for(world: World) -> None:
    world.push()
    world.push_data()

    def run(profile: str) -> list[str]:
        views = start_build(
            world.deps, world.ctx, model="digits", version="1.0.0", profiles=[profile]
        )
        return sorted({view.profile for view in views})

    def asked() -> int:
        with world.deps.store.read() as conn:
            return len(events.list_events(conn, "default", kinds=["build_requested"]))

    assert run("intel-n100") == ["intel-n100"]
    world.finish_all()
    assert (run("raspberry-pi-5"), asked()) == (["raspberry-pi-5"], 2)
    for _ in range(2):
        assert run("intel-n100") == ["intel-n100"]
    assert asked() == 2


def test_a_version_twice_as_slow_needs_a_person_and_then_is_what_counts(world: World) -> None:
    world.push_data()
    slow = {"p50_ms": 10.0, "p50_interval_ms": interval(10.0, n=200, half=0.1), "fp32_p50_ms": 20.0}
    for number, figures in enumerate(({}, slow, slow)):
        version = f"1.{number}.0"
        world.push(f"digits:{version}", variants=[("heavy", tiny_onnx(number))])
        _start(world, PI, version=version, recipes=[INT8])
        world.finish_all(**figures)
        (view,) = list_builds(world.deps, world.ctx, model="digits", version=version)
        if number == 1:
            assert (view.state, view.reason) == (
                "refused",
                "p50 10 ms is more than 2 times that of 1.0.0, 4 ms:"
                " somebody has to override it by name and reason",
            )
            override_build(
                world.deps, world.by("bo").ctx, model="digits", version=version, profile=PI,
                reason="the larger network is wanted",
            )  # fmt: skip
            (event,) = _events(world, "build_overridden")
            assert (event.actor, event.reason) == ("bo", "the larger network is wanted")
        else:
            assert view.state == "passed", view.reason
        assert number < 2 or "p50 10 ms, of 1.1.0 10 ms" in view.reason


def test_the_same_file_again_has_no_drift(world: World) -> None:
    world.push_data()
    for version in ("1.0.0", "1.1.0"):
        world.push(f"digits:{version}", variants=[("heavy", tiny_onnx(1))])
        _start(world, PI, version=version, recipes=[FP32])
        world.finish_all()
        (view,) = list_builds(world.deps, world.ctx, model="digits", version=version)
        assert (view.state, "of 1.0.0" in view.reason) == ("passed", False)
