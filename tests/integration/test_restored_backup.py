"""A controller whose data folder was restored from a backup orders what devices take."""

import shutil
from pathlib import Path

import grpc

from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for

QUICK = {"min_inferences": 5, "min_s": 0.2, "max_s": 600}


def followed(world: ControllerWorld, generation: int) -> None:
    wait_for(
        lambda: world.device("dev-1").applied_generation >= generation,
        60,
        f"the device to follow {generation}",
    )


def order(world: ControllerWorld, version: str, factor: float) -> str:
    """A version that answers with its factor; gives its rollout."""
    data, rollout = scaled(factor), f"r-{version.replace('.', '-')}"
    release = make_release(version, {"heavy": data}, probation=QUICK)
    world.publish("dev-1", release, rollout, [data])
    return rollout


def committed(world: ControllerWorld, rollout: str) -> None:
    wait_for(lambda: world.states("dev-1", rollout)[-1:] == ["COMMITTED"], 60, rollout)


def answers(agent: AgentProcess) -> bool:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0] == 2.0
    except grpc.RpcError:
        return False


def test_a_device_follows_the_controller_that_was_restored(tmp_path: Path) -> None:
    """Orders are above what it followed; what it reports is taken, and the gap is on record."""
    data, backup = tmp_path / "controller", tmp_path / "backup"
    agent = AgentProcess(tmp_path / "agent")
    with running_controller(data) as world:
        assert agent.enrol(world.url, world.token()).returncode == 0
        agent.start()
        try:
            first = order(world, "1.0.0", 2.0)
            wait_for(lambda: answers(agent), 60, "the first version")
            with Client(agent) as client:
                committed(world, first)
                world.stop()
                shutil.copytree(data, backup)
                world.start()
                forgotten = order(world, "1.1.0", 3.0)
                committed(world, forgotten)
                last = world.device("dev-1").applied_generation
                world.stop()
                shutil.rmtree(data)
                shutil.copytree(backup, data)
                world.start()
                assert world.device("dev-1").applied_generation < last
                assert world.states("dev-1", forgotten) == []
                followed(world, last)  # it says so itself when it connects again
                committed(world, forgotten)  # told anew, without a restart
                committed(world, order(world, "1.2.0", 4.0))
                assert world.device("dev-1").applied_generation == last + 1
            assert client.failures == []
            (gap,) = world.events("dev-1", "reports_forgotten")
            assert "were acknowledged and are not stored" in gap.reason
            facts = agent.facts()
            assert facts is not None
            mine = sorted(
                e.seq for e in world.events("dev-1") if e.boot_id == facts.boot_id and e.seq
            )
            since, _, until = str(gap.details["reports"]).partition(" to ")
            lost = set(range(int(since), int(until) + 1))
            assert set(mine) | lost == set(range(1, mine[-1] + 1)), "no gap but the one on record"
            assert not set(mine) & lost
        finally:
            agent.stop()
