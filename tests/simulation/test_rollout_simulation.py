"""Rollouts over the real services and database: simulated devices, killed controllers."""

from collections.abc import Callable
from contextlib import suppress
from random import Random

import pytest

from controller.domain.rollout import AssignmentState, Intent, Phase
from controller.services.explain import explain_device
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollouts import get_rollout, set_intent, start_rollout
from controller.store import assignments
from tests.simulation.rollout_world import MODEL, KilledError, World

A = AssignmentState
MakeWorld = Callable[..., World]


def spec(version: str, **more: object) -> dict[str, object]:
    """A rollout to everybody."""
    return {
        "model": MODEL,
        "version": version,
        "selector": "all",
        "waves": ["1", "50%", "100%"],
        "soak_s": 3.0,
        "min_samples": 10,
        "deadline_s": 120.0,
    } | more


def start(world: World, version: str, **more: object) -> str:
    """Start it for every device."""
    view = start_rollout(world.deps, world.ctx(), spec(version, **more), len(world.devices))
    return view.rollout_id


def states(world: World, rollout_id: str) -> dict[str, AssignmentState]:
    """Where each device stands."""
    with world.store.read() as conn:
        rows = assignments.list_assignments(conn, rollout_id)
    return {row.device_id: row.state for row in rows}


def deploy(world: World, random: Random, version: str = "1.0.0") -> None:
    """Bring everybody to a good version."""
    rollout_id = start(world, version)
    assert world.run(random, 400, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.SUCCEEDED, world.rollout(rollout_id).phase_reason


def test_a_good_version_reaches_everybody_wave_by_wave(make_world: MakeWorld) -> None:
    world, random = make_world(6), Random(1)
    deploy(world, random)
    world.check_settled()
    assert {device.serving["version"] for device in world.devices.values() if device.serving} == {
        "1.0.0"
    }
    deploy(world, random, "1.1.0")
    world.check_settled()


def test_a_slow_canary_halts_the_fleet_and_returns(make_world: MakeWorld) -> None:
    world, random = make_world(6, bad_versions={"1.1.0": "slow"}), Random(2)
    deploy(world, random)
    rollout_id = start(world, "1.1.0")
    assert world.run(random, 300, world.is_over(rollout_id))
    row = world.rollout(rollout_id)
    assert row.phase is Phase.ROLLED_BACK
    assert row.phase_reason.startswith("FAILED: 5 inferences in a row over 100 ms on pi-")
    assert "(131 118 124 140 122), device returned by itself in 0.2 s" in row.phase_reason
    found = sorted(states(world, rollout_id).values())
    assert found == [A.ROLLED_BACK, *[A.WITHDRAWN] * 5]
    assert sum(rollout_id in device.told for device in world.devices.values()) == 1
    world.run(random, 20)
    world.check_settled()
    texts = [fact.text for fact in explain_rollout(world.deps, world.ctx(), rollout_id).facts]
    assert "1 of 6 devices (cap 1) · 1 back on 1.0.0 · 5 never saw it" in texts


def test_a_version_that_no_device_can_load_is_failed(make_world: MakeWorld) -> None:
    world, random = make_world(4, bad_versions={"1.1.0": "refuses to load"}), Random(3)
    deploy(world, random)
    rollout_id = start(world, "1.1.0")
    assert world.run(random, 300, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.ROLLED_BACK
    assert "no device of the wave could take it" in world.rollout(rollout_id).phase_reason
    world.run(random, 20)
    world.check_settled()


def test_a_version_slower_than_before_is_called_back(make_world: MakeWorld) -> None:
    """No device minds: only the fleet, comparing each device with its own past, sees it."""
    world, random = make_world(4, bad_versions={"1.1.0": "sluggish"}), Random(10)
    deploy(world, random)
    world.run(random, 40)
    rollout_id = start(world, "1.1.0", min_samples=60)
    assert world.run(random, 300, world.is_over(rollout_id))
    row = world.rollout(rollout_id)
    assert row.phase is Phase.ROLLED_BACK
    assert "over the budget of 100 ms" in row.phase_reason
    assert "ms on the same devices" in row.phase_reason
    assert row.current_wave == 1
    world.run(random, 10)
    world.check_settled()


def test_silence_holds_the_rollout_for_a_person(make_world: MakeWorld) -> None:
    world, random = make_world(4), Random(4)
    deploy(world, random)
    for device in world.devices.values():
        device.silent = True
    rollout_id = start(world, "1.1.0")
    assert world.run(random, 300, lambda: world.phase(rollout_id) is Phase.PAUSED)
    view = get_rollout(world.deps, world.ctx(), rollout_id)
    assert view.waves[0].verdict == "INCONCLUSIVE"
    assert "nothing is committed by silence" in view.pause_reasons[0]
    assert view.exposed == 1
    assert not world.run(random, 60, world.is_over(rollout_id))
    for device in world.devices.values():
        device.silent = False
    set_intent(world.deps, world.ctx(), rollout_id, Intent.RUN, "traffic is back")
    assert world.run(random, 400, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.SUCCEEDED


def test_an_offline_device_joins_late(make_world: MakeWorld) -> None:
    world, random = make_world(5), Random(5)
    world.set_online("pi-03", False)
    rollout_id = start(world, "1.0.0")
    assert not world.run(random, 150, world.is_over(rollout_id))
    view = get_rollout(world.deps, world.ctx(), rollout_id)
    assert (view.exposed, view.offline) == (4, ("pi-03",))
    assert "waiting for 1 device to be online" in view.phase_reason
    world.set_online("pi-03", True)
    assert world.run(random, 200, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.SUCCEEDED


def test_a_person_rolls_back_what_is_committed(make_world: MakeWorld) -> None:
    world, random = make_world(6), Random(6)
    deploy(world, random)
    rollout_id = start(world, "1.1.0")
    assert world.run(random, 300, lambda: world.rollout(rollout_id).current_wave == 2)
    set_intent(world.deps, world.ctx(), rollout_id, Intent.ROLL_BACK, "customer asked")
    assert world.run(random, 100, world.is_over(rollout_id))
    row = world.rollout(rollout_id)
    assert row.phase is Phase.ROLLED_BACK
    assert row.phase_reason == "rolled back by ana: customer asked"
    world.check_settled()
    assert {d.serving["version"] for d in world.devices.values() if d.serving} == {"1.0.0"}


def test_abort_withdraws_what_is_underway_and_leaves_the_rest(make_world: MakeWorld) -> None:
    world, random = make_world(6), Random(7)
    deploy(world, random)
    rollout_id = start(world, "1.1.0")
    assert world.run(random, 300, lambda: A.DOWNLOADING in states(world, rollout_id).values())
    set_intent(world.deps, world.ctx(), rollout_id, Intent.ABORT, "wrong file")
    world.tick()
    assert world.phase(rollout_id) is Phase.ABORTED
    assert A.PLANNED not in states(world, rollout_id).values()
    world.run(random, 20)
    world.check_settled()


def test_a_newer_rollout_supersedes_an_older_one(make_world: MakeWorld) -> None:
    world, random = make_world(6), Random(8)
    deploy(world, random)
    world.add_version("1.2.0")
    older = start(world, "1.1.0")
    assert world.run(random, 300, lambda: A.DOWNLOADING in states(world, older).values())
    newer = start(world, "1.2.0")
    assert world.run(random, 400, world.is_over(newer))
    assert world.phase(older) is Phase.ABORTED
    assert world.rollout(older).phase_reason.startswith(f"superseded by {newer}")
    assert world.phase(newer) is Phase.SUCCEEDED
    world.check_settled()


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_controller_goes_on_where_it_was(make_world: MakeWorld, seed: int) -> None:
    """Killed in the middle of transactions and between them, again and again."""
    random = Random(seed)
    bad = {"1.1.0": "slow"} if seed % 2 else {}
    world = make_world(5, bad_versions=bad)
    deploy(world, random)
    rollout_id = start(world, "1.1.0")

    def over() -> bool:
        if random.random() < 0.3:
            world.fragile.dies_in = random.randrange(3)
        if random.random() < 0.2:
            world.restart()
        device = random.choice(list(world.devices.values()))
        world.set_online(device.device_id, random.random() < 0.8)
        return world.is_over(rollout_id)()

    world.run(random, 60, over)
    world.fragile.dies_in = -1
    for device_id in world.devices:
        world.set_online(device_id, True)
    if not world.is_over(rollout_id)():
        assert world.run(random, 400, world.is_over(rollout_id)), world.rollout(rollout_id)
    assert world.kills > 0
    expected = Phase.ROLLED_BACK if bad else Phase.SUCCEEDED
    assert world.phase(rollout_id) is expected
    world.run(random, 30)
    world.check_settled()


def _die_with(world: World, rollout_id: str, intent: Intent, reason: str) -> None:
    """A person's word, and the controller dies within its next work and once more after it."""
    set_intent(world.deps, world.ctx(), rollout_id, intent, reason)
    world.fragile.dies_in = 0
    with suppress(KilledError):
        world.tick()
    world.fragile.dies_in = -1
    world.restart()


@pytest.mark.parametrize(
    ("last", "phase"),
    [
        (Intent.RUN, Phase.SUCCEEDED),
        (Intent.ABORT, Phase.ABORTED),
        (Intent.ROLL_BACK, Phase.ROLLED_BACK),
    ],
)
def test_what_people_said_outlives_a_killed_controller(
    make_world: MakeWorld, last: Intent, phase: Phase
) -> None:
    world, random = make_world(4), Random(11)
    deploy(world, random)
    rollout_id = start(world, "1.1.0")
    assert world.run(random, 300, lambda: world.rollout(rollout_id).current_wave == 2)
    _die_with(world, rollout_id, Intent.PAUSE, "3 a.m.")
    before = states(world, rollout_id)
    world.run(random, 60)
    assert world.phase(rollout_id) is Phase.PAUSED
    assert world.rollout(rollout_id).phase_reason == "paused by ana: 3 a.m."
    # Nobody new is offered it while it is paused.
    untouched = {d for d, state in before.items() if state is A.PLANNED}
    assert untouched
    assert {states(world, rollout_id)[d] for d in untouched} == {A.PLANNED}
    _die_with(world, rollout_id, last, "breakfast")
    assert world.run(random, 400, world.is_over(rollout_id)), world.rollout(rollout_id)
    assert world.phase(rollout_id) is phase
    world.run(random, 30)
    world.check_settled()


def test_a_device_explains_itself(make_world: MakeWorld) -> None:
    world, random = make_world(2), Random(9)
    deploy(world, random)
    facts = {fact.topic: fact.text for fact in explain_device(world.deps, world.ctx(), "pi-00")}
    assert facts["version"].startswith("1.0.0: rollout r-")
    assert "after 10 inferences" in facts["version"]
    assert facts["build"].startswith("light: onnxruntime-fp32 10 ms")
