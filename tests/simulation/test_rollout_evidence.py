"""What counts as evidence of a rollout where a device ran the version before it, and what stays."""

from collections.abc import Callable
from datetime import timedelta
from random import Random

import pytest

from controller.domain.evidence import WaveFacts
from controller.domain.rollout import AssignmentState, Phase
from controller.services.explain import explain_device
from controller.services.rollout_facts import wave_facts
from controller.services.rollout_plans import plan_rollout
from controller.services.rollouts import start_rollout
from controller.store import assignments, reported, rollouts, waves
from controller.store.assignments import AssignmentRow
from tests.simulation.rollout_world import MODEL, World
from tests.support.stores import PROJECT

A = AssignmentState
MakeWorld = Callable[..., World]


def start(world: World, version: str, selector: str, count: int, **more: object) -> str:
    spec: dict[str, object] = {
        "model": MODEL,
        "version": version,
        "selector": selector,
        "waves": ["1", "100%"],
        "soak_s": 1.0,
        "min_samples": 5,
    }
    return start_rollout(world.deps, world.ctx(), spec | more, count).rollout_id


def finish(world: World, rollout_id: str) -> Phase:
    assert world.run(Random(0), 300, world.is_over(rollout_id))
    return world.phase(rollout_id)


def assigned(world: World, rollout_id: str) -> list[AssignmentRow]:
    with world.store.read() as conn:
        return assignments.list_assignments(conn, rollout_id)


def told(world: World, rollout_id: str, device_id: str, inferences: int) -> None:
    """The device says that it has committed, after so many inferences by its own count."""
    with world.store.write() as conn:
        reported.record_report(
            conn, device_id, rollout_id, A.COMMITTED, "", {"inferences": inferences}, world.now
        )


def facts_of(world: World, rollout_id: str) -> WaveFacts:
    with world.store.read() as conn:
        row = rollouts.get_rollout(conn, PROJECT, rollout_id)
        assert row is not None
        wave = waves.list_waves(conn, rollout_id)[row.current_wave - 1]
        return wave_facts(conn, row, wave, world.now)


def test_what_was_inferred_before_the_rollout_is_no_evidence_of_it(make_world: MakeWorld) -> None:
    world = make_world(1)
    assert finish(world, start(world, "1.0.0", "all", 1)) is Phase.SUCCEEDED
    device = world.devices["pi-00"]
    again = start(world, "1.0.0", "all", 1, min_samples=5000)
    world.tick()
    told(world, again, "pi-00", 6943)
    # Answers of the minute in which it was offered may be from before the offer.
    world._sample(device, 30)
    facts = facts_of(world, again)
    assert (facts.committed, facts.samples, facts.short) == (1, 0, ("pi-00",))
    assert facts.last_evidence_at is None
    world.now += timedelta(minutes=2)
    world._sample(device, 30)
    assert facts_of(world, again).samples == 30


def test_where_the_rollout_brought_the_version_its_count_is_evidence(make_world: MakeWorld) -> None:
    world = make_world(1)
    rollout_id = start(world, "1.0.0", "all", 1, min_samples=5000)
    world.tick()
    told(world, rollout_id, "pi-00", 12)
    assert facts_of(world, rollout_id).samples == 12


def test_a_device_that_has_the_version_is_no_canary(make_world: MakeWorld) -> None:
    for chosen in ("pi-00", "pi-01", "pi-02"):  # whichever would come first by its hash
        world = make_world(3)
        assert finish(world, start(world, "1.0.0", f"device={chosen}", 1)) is Phase.SUCCEEDED
        spec = {"model": MODEL, "version": "1.0.0", "selector": "all", "waves": ["1", "100%"]}
        assert plan_rollout(world.deps, world.ctx(), spec).notes == (
            "1 device runs 1.0.0 already: last in line, no canary",
        )
        rows = assigned(world, start(world, "1.0.0", "all", 3))
        assert [row.device_id == chosen for row in rows] == [False, False, True]
        assert [row.wave for row in rows] == [1, 2, 2]


def test_a_record_that_ended_is_not_written_over(make_world: MakeWorld) -> None:
    world = make_world(1)
    rollout_id = start(world, "1.0.0", "all", 1)
    assert finish(world, rollout_id) is Phase.SUCCEEDED
    (before,) = assigned(world, rollout_id)
    assert before.evidence["inferences"] == 10
    world.now += timedelta(minutes=20)
    told(world, rollout_id, "pi-00", 1)
    (after,) = assigned(world, rollout_id)
    assert (after.evidence, after.updated_at) == (before.evidence, before.updated_at)


def test_a_way_back_that_was_used_is_not_offered_again(make_world: MakeWorld) -> None:
    world = make_world(1, bad_versions={"1.2.0": "slow"})
    world.add_version("1.2.0")

    def ways_back() -> list[str]:
        facts = explain_device(world.deps, world.ctx(), "pi-00")
        return [fact.text for fact in facts if fact.topic == "can return"]

    finish(world, start(world, "1.0.0", "all", 1))
    assert finish(world, start(world, "1.1.0", "all", 1)) is Phase.SUCCEEDED
    assert ways_back() == [f"{MODEL}:1.0.0"]
    assert finish(world, start(world, "1.2.0", "all", 1)) is Phase.ROLLED_BACK
    assert world.devices["pi-00"].serving == world.devices["pi-00"].committed
    assert ways_back() == []


@pytest.mark.parametrize("judged", [True, False], ids=["after the halt", "control: before it"])
def test_who_fetches_after_the_halt_never_gets_the_bad_version(
    make_world: MakeWorld, judged: bool
) -> None:
    """All are offered it at once; one finds it bad before the others have looked."""
    world = make_world(6, bad_versions={"1.1.0": "slow"})
    assert finish(world, start(world, "1.0.0", "all", 6)) is Phase.SUCCEEDED
    spec = {"waves": ["100%"], "override_first_wave_reason": "a lab"}
    rollout_id = start(world, "1.1.0", "all", 6, **spec)
    world.tick()
    assert {row.state for row in assigned(world, rollout_id)} == {A.OFFERED}
    first, *others = world.devices.values()
    random = Random(2)
    while rollout_id not in first.bad or first.spool:
        world.now += timedelta(seconds=1)
        world.step_device(first, random)
    if judged:
        world.tick()
        assert world.phase(rollout_id) in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
    for device in others:
        world._fetch(device)
    got = {device.order["version"] for device in others if device.order is not None}
    assert got == ({"1.0.0"} if judged else {"1.1.0"})
