"""An agent and the real controller: enrolment, presence, a version up, a bad one back, spooling."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.domain.desired import DesiredModel
from tests.support.agent_world import (
    AgentProcess,
    Client,
    ControllerWorld,
    running_controller,
)
from tests.support.serving import make_release, products_for, scaled, slow
from tests.support.wait import wait_for

PROBATION = {"min_inferences": 10, "min_s": 0.2, "max_s": 60}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path / "controller", presence_grace_s=1.0) as world:
        yield world


@pytest.fixture
def agent(controller: ControllerWorld, tmp_path: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(tmp_path / "agent")
    done = made.enrol(controller.url, controller.token())
    assert done.returncode == 0, done.stderr
    yield made
    if made.process is not None:
        made.stop()


def release_of(version: str, data: bytes, **policy: Any) -> DesiredModel:
    return make_release(version, {"heavy": data}, **{"probation": PROBATION, **policy})


def bring(controller: ControllerWorld, agent: AgentProcess, version: str, factor: float) -> None:
    """Roll a good version out until it is committed."""
    data = scaled(factor)
    generation = controller.publish(agent.device_id, release_of(version, data), f"r-{version}",
                                    [data])  # fmt: skip
    wait_for(lambda: answers(agent) == factor, 30, f"{version} to answer\n{agent.tail()}")
    with Client(agent):
        wait_for(
            lambda: controller.device(agent.device_id).applied_generation == generation,
            30,
            f"{version} to be applied\n{agent.tail()}",
        )


def phases(agent: AgentProcess) -> list[tuple[str, str]]:
    facts = agent.facts()
    return [(m["version"], m["phase"]) for m in facts.models] if facts else []


def unacknowledged(agent: AgentProcess) -> int:
    facts = agent.facts()
    return facts.unacknowledged if facts else -1


def answers(agent: AgentProcess) -> float | None:
    import grpc

    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


def test_a_device_enrols_says_hello_and_is_online(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    wait_for(lambda: controller.device("dev-1").online, 20, f"presence online\n{agent.tail()}")
    wait_for(lambda: controller.events("dev-1", "boot"), 20, "the boot event")
    assert len(controller.events("dev-1", "boot")) == 1
    shown = agent.command("status", "--output", "json")
    assert shown.returncode == 0
    assert '"controller_state": "connected"' in shown.stdout
    assert '"broker_state": "connected"' in shown.stdout
    wait_for(lambda: unacknowledged(agent) == 0, 10, "the spool to empty")
    assert agent.stop() == 0
    wait_for(lambda: not controller.device("dev-1").online, 10, "presence offline")


def test_a_killed_agent_is_offline_by_its_last_will(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    wait_for(lambda: controller.device("dev-1").online, 20, "presence online")
    agent.kill()
    wait_for(lambda: not controller.device("dev-1").online, 20, "the last will")


def test_a_version_comes_up_and_every_state_is_told_once(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    states = controller.states("dev-1", "r-1.0.0")
    assert states == [
        "OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION", "COMMITTED",
    ]  # fmt: skip


def test_a_swap_under_load_fails_no_request(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    data = scaled(3.0)
    with Client(agent, pause_s=0.002) as client:
        generation = controller.publish("dev-1", release_of("1.1.0", data), "r-2", [data])
        wait_for(
            lambda: controller.device("dev-1").applied_generation == generation, 30, "the swap"
        )
    assert client.failures == []
    assert set(client.answers) == {2.0, 3.0}
    assert client.answers == sorted(client.answers), "never back and forth"


def test_a_slow_version_is_left_before_the_sixth_inference(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    data = slow(5.0, products_for(0.05))
    bad = release_of("1.2.0", data, slow_threshold_ms=25)
    controller.publish("dev-1", bad, "r-bad", [data])
    with Client(agent) as client:
        wait_for(lambda: controller.events("dev-1", "rolled_back"), 60,
                 f"the way back\n{agent.tail()}")  # fmt: skip
        wait_for(lambda: client.answers[-5:] == [2.0] * 5, 10, "the previous version")
    assert client.failures == []
    assert 5 <= client.answers.count(5.0) <= 6
    event = controller.events("dev-1", "rolled_back")[0]
    assert (event.version, event.details["to"]) == ("1.2.0", "1.0.0")
    assert event.details["cause"] == "slow"
    assert len(event.details["last_service_s"].split()) == 5
    assert float(event.details["rolled_back_in_s"]) < 1.0
    states = controller.states("dev-1", "r-bad")
    assert states[-3:] == ["PROBATION", "ROLLING_BACK", "ROLLED_BACK"]


def test_the_controller_may_go_away_and_reports_arrive_once(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    data = scaled(3.0)
    controller.publish("dev-1", release_of("1.1.0", data, probation={
        "min_inferences": 10, "min_s": 4.0, "max_s": 60}), "r-2", [data])  # fmt: skip
    wait_for(lambda: "PROBATION" in controller.states("dev-1", "r-2"), 30, "probation")
    controller.stop()
    with Client(agent) as client:
        wait_for(
            lambda: ("1.1.0", "COMMITTED") in phases(agent),
            30,
            f"a commit without a controller\n{agent.tail()}",
        )
    assert client.failures == []
    controller.start()
    wait_for(lambda: "COMMITTED" in controller.states("dev-1", "r-2"), 60, "the spooled report")
    wait_for(lambda: unacknowledged(agent) == 0, 20, "the spool to empty")
    states = controller.states("dev-1", "r-2")
    assert states == [
        "OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION", "COMMITTED",
    ]  # fmt: skip
    assert controller.events("dev-1", "device_quarantined") == []


def test_a_restart_serves_the_last_good_ladder_without_a_controller(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    bring(controller, agent, "1.0.0", 2.0)
    assert agent.stop() == 0
    controller.stop()
    agent.start()
    assert agent.infer(1.0, 1.0, 1.0, 1.0) == [2.0] * 4
