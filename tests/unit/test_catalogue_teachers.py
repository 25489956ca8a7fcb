"""Builds that learn from another variant: what is queued, what refuses, what is shared."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.optimize.spec import parse_spec
from controller.services.builds import BuildView, start_build
from controller.services.objects import NewObject, apply_objects
from tests.support.catalogue import World, digest_of, open_world, tiny_onnx

GENERIC, DISTILLED = "generic-x86-64", "onnxruntime-distilled-int8"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for opened in open_world(tmp_path):
        opened.push()
        opened.push_data()
        spec = {
            "match": {"arch": "x86_64"},
            "runtimes": ["onnxruntime"],
            "recipes": [DISTILLED, "by-huge"],
        }
        huge = {
            "runtime": "onnxruntime",
            "precision": "fp32",
            "passes": [{"train": {"teacher": "huge"}}],
        }
        objects = [NewObject("Recipe", "by-huge", huge), NewObject("Profile", GENERIC, spec)]
        apply_objects(opened.deps, opened.ctx, objects)
        yield opened


def start(world: World, version: str = "1.0.0", recipe: str = DISTILLED) -> dict[str, BuildView]:
    views = start_build(
        world.deps, world.ctx, model="digits", version=version, profiles=[GENERIC],
        recipes=[recipe],
    )  # fmt: skip
    return {view.variant: view for view in views}


def test_the_light_variant_learns_from_the_heavy_one(world: World) -> None:
    found = start(world)
    assert found["heavy"].state == "refused"
    assert "heavy is the teacher of recipe onnxruntime-distilled-int8" in found["heavy"].reason
    assert found["light"].state == "queued"
    job = world.claim()
    assert [one.role for one in job.inputs] == ["source", "calibration", "evaluation", "teacher0"]
    assert job.inputs[-1].digest == digest_of(tiny_onnx(1))
    assert job.spec["teachers"] == {"heaviest": {"role": "teacher0", "format": "onnx"}}
    spec = parse_spec(json.dumps(dict(job.spec)))
    assert spec.teachers["heaviest"].role == "teacher0"


def test_another_teacher_is_another_build(world: World) -> None:
    first = start(world)["light"]
    world.push("digits:1.1.0", [("heavy", tiny_onnx(3)), ("light", tiny_onnx(2))])
    second = start(world, "1.1.0")["light"]
    assert second.build_id != first.build_id, "the same student, taught by another one"
    world.push("digits:1.2.0", [("heavy", tiny_onnx(1)), ("light", tiny_onnx(2))])
    assert start(world, "1.2.0")["light"].build_id == first.build_id


def test_a_teacher_that_the_version_has_not_is_told(world: World) -> None:
    found = start(world, recipe="by-huge")
    assert {view.state for view in found.values()} == {"refused"}
    assert "no variant huge to learn from; it has heavy, light" in found["light"].reason
