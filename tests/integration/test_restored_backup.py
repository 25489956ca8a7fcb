"""A controller whose data folder was restored from a backup orders what devices take."""

import shutil
from pathlib import Path

from tests.support.agent_world import AgentProcess, ControllerWorld, running_controller
from tests.support.wait import wait_for


def followed(world: ControllerWorld, generation: int) -> None:
    wait_for(
        lambda: world.device("dev-1").applied_generation >= generation,
        60,
        f"the device to follow {generation}",
    )


def test_a_device_follows_the_controller_that_was_restored(tmp_path: Path) -> None:
    data, backup = tmp_path / "controller", tmp_path / "backup"
    agent = AgentProcess(tmp_path / "agent")
    with running_controller(data) as world:
        assert agent.enrol(world.url, world.token()).returncode == 0
        agent.start()
        try:
            followed(world, world.order("dev-1", "photo", None))
            world.stop()
            shutil.copytree(data, backup)
            world.start()
            last = max(world.order("dev-1", "photo", None) for _ in range(3))
            followed(world, last)
            world.stop()
            shutil.rmtree(data)
            shutil.copytree(backup, data)
            world.start()
            assert world.device("dev-1").applied_generation < last
            followed(world, last)  # it says so itself when it connects again
            next_one = world.order("dev-1", "photo", None)
            assert next_one == last + 1
            followed(world, next_one)
        finally:
            agent.stop()
