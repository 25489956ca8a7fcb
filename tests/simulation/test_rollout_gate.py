"""The gate over real services: slower inside the budget, lower rungs, and decisions made again."""

from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from controller.domain.rollout import Intent, Phase
from controller.services.objects import NewObject, apply_objects
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollouts import set_intent, start_rollout
from tests.simulation.rollout_world import MODEL, POLICY, World

MakeWorld = Callable[..., World]


def begin(make_world: MakeWorld, how: str, gate: dict[str, Any] | None) -> tuple[World, str]:
    """Ten devices with a past, and a rollout of a version that is bad in this way."""
    world = make_world(10, bad_versions={"1.1.0": how})
    if gate is not None:
        policy = NewObject("Policy", "default", {**POLICY, "gate": gate})
        apply_objects(world.deps, world.ctx(), [policy])
    ended = start(world, "1.0.0", ["1", "100%"])
    assert world.run(Random(0), 300, world.is_over(ended))
    world.run(Random(1), 60)
    return world, start(world, "1.1.0", ["1", "50%", "100%"])


def start(world: World, version: str, waves: list[str]) -> str:
    spec: dict[str, object] = {
        "model": MODEL,
        "version": version,
        "selector": "all",
        "waves": waves,
        "soak_s": 3.0,
        "min_samples": 30,
    }
    return start_rollout(world.deps, world.ctx(), spec, len(world.devices)).rollout_id


def compared(world: World, rollout_id: str) -> list[str]:
    facts = explain_rollout(world.deps, world.ctx(), rollout_id).facts
    return [fact.text for fact in facts if fact.topic == "compared"]


def test_slower_inside_the_budget_goes_back_where_the_owner_set_a_limit(
    make_world: MakeWorld,
) -> None:
    world, rollout_id = begin(make_world, "heavier", {"slower_pct": 10})
    assert world.run(Random(2), 400, world.is_over(rollout_id))
    row = world.rollout(rollout_id)
    assert row.phase is Phase.ROLLED_BACK
    assert row.current_wave < 3, "half of the fleet was never exposed"
    assert "over the limit of 10 %" in row.phase_reason
    (*_, last) = compared(world, rollout_id)
    assert last.startswith(f"wave {row.current_wave}: latency +")
    assert last.endswith("judged again from what was stored: the same")


@pytest.mark.parametrize(
    ("how", "gate"), [("heavier", None), ("", {"slower_pct": 10, "stepped_down_pts": 10})]
)
def test_without_a_limit_or_without_a_cause_it_passes(
    make_world: MakeWorld, how: str, gate: dict[str, Any] | None
) -> None:
    world, rollout_id = begin(make_world, how, gate)
    assert world.run(Random(2), 600, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.SUCCEEDED
    assert [text.partition(":")[0] for text in compared(world, rollout_id)] == [
        "wave 1",
        "wave 2",
        "wave 3",
    ]


def test_what_grows_slowly_is_found_on_the_first_wave(make_world: MakeWorld) -> None:
    """The canary passed long ago, and the second wave is as fast as before."""
    world, rollout_id = begin(make_world, "leaky", {"slower_pct": 20})
    assert world.run(Random(2), 400, lambda: world.rollout(rollout_id).current_wave == 2)
    for _ in range(25):
        world.now += timedelta(minutes=1)
        for device in world.devices.values():
            world._sample(device, 20)
    assert world.run(Random(2), 400, world.is_over(rollout_id))
    row = world.rollout(rollout_id)
    assert (row.phase, row.current_wave) == (Phase.ROLLED_BACK, 2)
    assert "on 1 device of wave 1 by now beside 5 untouched ones" in row.phase_reason


def test_a_version_that_pushes_devices_to_the_light_rung_waits_for_a_person(
    make_world: MakeWorld,
) -> None:
    world, rollout_id = begin(make_world, "light", {"stepped_down_pts": 20, "worse": "hold"})
    assert world.run(Random(2), 400, lambda: world.phase(rollout_id) is Phase.PAUSED)
    reason = world.rollout(rollout_id).phase_reason
    assert "answers below the heaviest rung +100.0 points" in reason
    set_intent(world.deps, world.ctx(), rollout_id, Intent.ROLL_BACK, "not so")
    assert world.run(Random(3), 200, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.ROLLED_BACK
