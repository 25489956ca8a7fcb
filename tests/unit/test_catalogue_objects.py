"""Documented objects: applied whole or not at all, idempotent, shipped until changed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.domain.device import Capabilities, match_profile, parse_profile
from controller.domain.ladder import parse_policy
from controller.errors import InvalidError, NotFoundError
from controller.services.objects import (
    Change,
    NewObject,
    apply_objects,
    get_object,
    list_kind,
    load_shipped,
)
from controller.services.shipped import shipped_objects
from controller.store import events
from controller.store.objects import find_object, put_object
from tests.support.catalogue import World, open_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


PI: dict[str, Any] = {
    "match": {"arch": "aarch64", "device_model": "Lab board*"},
    "priority": 20,
    "runtimes": ["onnxruntime"],
    "recipes": ["onnxruntime-int8"],
    "memory_budget_bytes": "256MiB",
}
LAB = NewObject("Profile", "lab", PI)


def _applied_events(world: World) -> list[str]:
    with world.deps.store.read() as conn:
        rows = events.list_events(conn, "default", kinds=["object_applied"])
    return [row.reason for row in rows]


def test_apply_is_idempotent_and_says_what_changed(world: World) -> None:
    (first,) = apply_objects(world.deps, world.ctx, [LAB])
    assert first.change is Change.CREATED
    assert "spec.match.device_model: – -> Lab board*" in first.diff
    (second,) = apply_objects(world.deps, world.ctx, [LAB])
    assert (second.change, second.diff) == (Change.UNCHANGED, ())
    wider = replace(LAB, spec=PI | {"priority": 30, "recipes": ["onnxruntime-fp32"]})
    (third,) = apply_objects(world.deps, world.ctx, [wider])
    assert third.change is Change.CHANGED
    assert third.diff == (
        "spec.priority: 20 -> 30",
        "spec.recipes: [onnxruntime-int8] -> [onnxruntime-fp32]",
    )
    assert _applied_events(world) == ["Profile lab created", "Profile lab changed"]


def test_a_dry_run_writes_nothing(world: World) -> None:
    (result,) = apply_objects(world.deps, world.ctx, [LAB], dry_run=True)
    assert result.change is Change.CREATED
    with pytest.raises(NotFoundError):
        get_object(world.deps, world.ctx, "Profile", "lab")
    assert _applied_events(world) == []


def test_one_bad_object_keeps_all_out(world: World) -> None:
    bad = NewObject("Policy", "fast", {"slow_count": 0})
    with pytest.raises(InvalidError, match="slow_count"):
        apply_objects(world.deps, world.ctx, [LAB, bad])
    with pytest.raises(NotFoundError):
        get_object(world.deps, world.ctx, "Profile", "lab")


@pytest.mark.parametrize(
    ("kind", "name", "spec", "said"),
    [
        ("Gadget", "x", {}, "kind 'Gadget' is unknown"),
        ("Profile", "X", PI, "not a profile name"),
        ("Profile", "x", PI | {"mach": {}}, "unknown keys: mach"),
        ("Profile", "x", PI | {"memory_budget_bytes": "lots"}, "a size is needed"),
        ("Profile", "x", PI | {"recipes": ["onnxruntime-int9"]}, "recipe onnxruntime-int9"),
        ("Policy", "x", {"rungs": [{"rung": "off"}]}, "no local rung"),
        ("Recipe", "x", {"runtime": "onnxruntime", "precision": "int3"}, "precision"),
    ],
)
def test_what_the_domain_refuses_is_not_stored(
    world: World, kind: str, name: str, spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        apply_objects(world.deps, world.ctx, [NewObject(kind, name, spec)])


def test_nothing_and_twice_are_refused(world: World) -> None:
    with pytest.raises(InvalidError, match="nothing to apply"):
        apply_objects(world.deps, world.ctx, [])
    with pytest.raises(InvalidError, match="stands twice"):
        apply_objects(world.deps, world.ctx, [LAB, LAB])


def test_a_profile_may_use_a_recipe_applied_with_it(world: World) -> None:
    recipe = NewObject("Recipe", "mine", {"runtime": "onnxruntime", "precision": "fp32"})
    profile = replace(LAB, spec=PI | {"recipes": ["mine"]})
    results = apply_objects(world.deps, world.ctx, [profile, recipe])
    assert [one.kind for one in results] == ["Recipe", "Profile"]


def test_a_changed_policy_says_when_it_takes_effect(world: World) -> None:
    spec = dict(get_object(world.deps, world.ctx, "policy", "default").spec)
    changed = NewObject("Policy", "default", spec | {"slow_threshold_ms": 80})
    (result,) = apply_objects(world.deps, world.ctx, [changed])
    assert result.diff == ("spec.slow_threshold_ms: 100 -> 80",)
    assert "takes effect with the next rollout" in result.notes[0]
    assert "shipped until now" in result.notes[1]


def test_a_new_release_leaves_alone_what_people_changed(world: World) -> None:
    mine = NewObject("Policy", "default", {"slow_count": 7})
    apply_objects(world.deps, world.ctx, [mine])
    with world.deps.store.write() as conn:  # as an older release shipped it
        row = find_object(conn, "default", "Profile", "raspberry-pi-5")
        assert row is not None
        put_object(conn, "default", replace(row, spec={"description": "old"}))
    assert load_shipped(world.deps, world.ctx) == 1
    assert load_shipped(world.deps, world.ctx) == 0
    view = get_object(world.deps, world.ctx, "Profile", "raspberry-pi-5")
    assert view.shipped
    assert view.spec["latency_budget_ms"] == 100
    kept = get_object(world.deps, world.ctx, "Policy", "default")
    assert (dict(kept.spec), kept.shipped) == ({"slow_count": 7}, False)


def test_unknown_objects_come_with_a_suggestion(world: World) -> None:
    with pytest.raises(NotFoundError) as caught:
        get_object(world.deps, world.ctx, "profile", "raspbery-pi-5")
    assert caught.value.lines[0].startswith("did you mean raspberry-pi-5")


def test_the_shipped_policy_is_the_default_of_the_domain() -> None:
    spec = {name: spec for kind, name, spec in shipped_objects() if kind == "Policy"}
    assert set(spec) == {"default"}
    assert parse_policy("default", spec["default"]) == parse_policy("default", {})


def test_unverified_and_container_only_are_said(world: World) -> None:
    profiles = {view.name: view for view in list_kind(world.deps, world.ctx, "Profile")}
    assert {name for name, view in profiles.items() if view.spec.get("container_only")} == {
        "jetson-xavier-nx",
        "jetson-nano",
    }
    for name in ("jetson-xavier-nx", "jetson-nano"):
        assert profiles[name].spec["verified"] is False


@pytest.mark.parametrize(
    ("arch", "device_model", "cpu_model", "profile"),
    [
        ("aarch64", "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", "raspberry-pi-5"),
        ("aarch64", "Raspberry Pi 4 Model B Rev 1.5", "Cortex-A72", "raspberry-pi-4"),
        (
            "aarch64",
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "Cortex-A78AE",
            "jetson-orin-nano-jp6",
        ),
        ("aarch64", "NVIDIA Jetson Xavier NX Developer Kit", "Carmel", "jetson-xavier-nx"),
        ("aarch64", "NVIDIA Jetson Nano Developer Kit", "Cortex-A57", "jetson-nano"),
        ("x86_64", "MINI PC", "Intel(R) N100", "intel-n100"),
        ("x86_64", "", "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", "intel-i7-1165g7"),
        ("x86_64", "", "AMD EPYC", "generic-x86-64"),
        ("aarch64", "Some board", "Cortex-A55", "generic-aarch64"),
        ("riscv64", "", "", None),
    ],
)
def test_shipped_profiles_match_what_devices_report(
    arch: str, device_model: str, cpu_model: str, profile: str | None
) -> None:
    shipped = [parse_profile(n, spec) for kind, n, spec in shipped_objects() if kind == "Profile"]
    device = Capabilities(
        arch=arch,
        device_model=device_model,
        cpu_model=cpu_model,
        runtimes={"onnxruntime": "1.32.0"},
    )
    found = match_profile(device, shipped)
    assert (found.name if found else None) == profile
