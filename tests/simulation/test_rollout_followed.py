"""A committed version that is left while a newer rollout waits: both are told, nothing hangs."""

from collections.abc import Callable
from random import Random

from controller.domain.rollout import AssignmentState, Intent, Phase
from controller.services.rollouts import set_intent, start_rollout
from controller.store import assignments
from tests.simulation.rollout_world import MODEL, World

A = AssignmentState
MakeWorld = Callable[..., World]


def start(world: World, version: str, waves: list[str] | None = None, selector: str = "all") -> str:
    spec: dict[str, object] = {
        "model": MODEL,
        "version": version,
        "selector": selector,
        "waves": waves or ["1", "100%"],
        "min_samples": 5,
        "soak_s": 0.0,
        "override_first_wave_reason": "a lab",
    }
    devices = len(world.devices) if selector == "all" else 1
    return start_rollout(world.deps, world.ctx(), spec, devices).rollout_id


def state(world: World, rollout_id: str, device_id: str) -> AssignmentState:
    with world.store.read() as conn:
        row = assignments.get_assignment(conn, rollout_id, device_id)
    assert row is not None
    return row.state


def test_a_device_that_leaves_what_it_committed_is_heard_while_another_rollout_waits(
    make_world: MakeWorld,
) -> None:
    """It was refused with its whole spool, and those of all who spoke in the same moment."""
    world = make_world(3)
    world.add_version("1.2.0")
    assert world.run(Random(1), 300, world.is_over(start(world, "1.0.0")))
    started = start(world, "1.1.0")
    assert world.run(Random(1), 300, world.is_over(started))
    newer = start(world, "1.2.0")
    set_intent(world.deps, world.ctx(), newer, Intent.PAUSE, "later")
    world.tick()
    device = world.devices["pi-00"]
    back, device.serving = device.committed, device.before
    for step in (A.ROLLING_BACK, A.ROLLED_BACK):
        world._report(device, step, back, reason="5 in a row over 100 ms")
    world._deliver(device, twice=True)
    assert not device.spool
    world.tick()
    assert state(world, started, "pi-00") is A.ROLLED_BACK
    assert state(world, newer, "pi-00") is A.PLANNED
    device.committed = device.before
    set_intent(world.deps, world.ctx(), newer, Intent.RUN)
    assert world.run(Random(2), 300, world.is_over(newer))
    assert world.phase(newer) is Phase.SUCCEEDED
    world.check_settled()


def test_an_older_rollout_is_rolled_back_while_a_newer_one_waits(make_world: MakeWorld) -> None:
    world = make_world(4)
    world.add_version("1.2.0")
    assert world.run(Random(1), 300, world.is_over(start(world, "1.0.0")))
    older = start(world, "1.1.0", ["1", "50%", "100%"])
    assert world.run(Random(1), 300, lambda: world.rollout(older).current_wave == 2)
    newer = start(world, "1.2.0")
    set_intent(world.deps, world.ctx(), newer, Intent.PAUSE, "later")
    committed = [one for one in world.devices if state(world, older, one) is A.COMMITTED]
    assert committed
    set_intent(world.deps, world.ctx(), older, Intent.ROLL_BACK, "it is bad")
    world.tick()
    assert {state(world, older, one) for one in committed} == {A.SUPERSEDED}
    assert world.run(Random(2), 100, world.is_over(older))
    world.run(Random(2), 20)
    for one in committed:
        entry = world.devices[one].serving
        assert entry is not None
        assert entry["version"] == "1.0.0", "it left the bad version before the newer one came"
    set_intent(world.deps, world.ctx(), newer, Intent.RUN)
    assert world.run(Random(3), 300, world.is_over(newer))
    world.check_settled()


def test_who_gets_an_order_taken_back_does_not_return_to_what_was_called_back_meanwhile(
    make_world: MakeWorld,
) -> None:
    """A newer order over a version that turned out bad; both are taken back, the older first."""
    world = make_world(4)
    world.add_version("1.2.0")
    assert world.run(Random(1), 300, world.is_over(start(world, "1.0.0")))
    older = start(world, "1.1.0", ["1", "50%", "100%"])
    assert world.run(Random(1), 300, lambda: world.rollout(older).current_wave == 2)
    one = next(one for one in world.devices if state(world, older, one) is A.COMMITTED)
    newer = start(world, "1.2.0", ["100%"], f"device={one}")
    world.tick()
    assert state(world, newer, one) is A.OFFERED
    set_intent(world.deps, world.ctx(), older, Intent.ROLL_BACK, "it is bad")
    world.tick()
    set_intent(world.deps, world.ctx(), newer, Intent.ABORT, "not now")
    world.tick()
    world.run(Random(2), 60)
    entry = world.devices[one].serving
    assert entry is not None
    assert entry["version"] == "1.0.0", "it was ordered back to what is bad"
