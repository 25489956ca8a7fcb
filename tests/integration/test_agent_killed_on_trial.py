"""kill -9 of an agent while a good version is on trial: it is left, as one that crashes would be.

The agent cannot tell who ended it. An orderly stop is no verdict: the trial goes on.
"""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.faults.ends import CRASHED
from tests.support.agent_world import AgentProcess, ControllerWorld, running_controller
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for

QUICK = {"min_inferences": 2, "min_s": 0.0, "max_s": 600}
LONG = {"min_inferences": 2, "min_s": 600, "max_s": 6000}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path / "controller", presence_grace_s=1.0) as world:
        yield world


@pytest.fixture
def device(controller: ControllerWorld, tmp_path: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(tmp_path / "agent")
    assert made.enrol(controller.url, controller.token()).returncode == 0
    yield made.start()
    made.stop()


def answer(device: AgentProcess) -> float | None:
    try:
        return device.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


def on_trial(controller: ControllerWorld, device: AgentProcess) -> None:
    """1.0.0 is committed, 1.1.0 answers and has long to go."""
    first, second = scaled(2.0), scaled(3.0)
    controller.publish("dev-1", make_release("1.0.0", {"heavy": first}, probation=QUICK), "r-1",
                       [first])  # fmt: skip

    def committed() -> bool:
        return answer(device) == 2.0 and "COMMITTED" in controller.states("dev-1", "r-1")

    wait_for(committed, 60, f"1.0.0 to be committed\n{device.tail()}")
    controller.publish("dev-1", make_release("1.1.0", {"heavy": second}, probation=LONG), "r-2",
                       [second])  # fmt: skip
    wait_for(lambda: controller.states("dev-1", "r-2")[-1:] == ["PROBATION"], 60, "the trial")
    wait_for(lambda: answer(device) == 3.0, 30, "1.1.0 to answer")


def test_a_kill_on_trial_leaves_the_version_and_says_so(
    controller: ControllerWorld, device: AgentProcess
) -> None:
    on_trial(controller, device)
    device.kill()
    device.start()
    wait_for(lambda: answer(device) == 2.0, 30, f"the version before\n{device.tail()}")
    wait_for(lambda: controller.states("dev-1", "r-2")[-1:] == ["ROLLED_BACK"], 30, "the report")
    left = [e for e in controller.events("dev-1", "rolled_back") if e.version == "1.1.0"]
    assert [(e.reason, e.details["cause"]) for e in left] == [(CRASHED, "crash")]


def test_negative_control_an_orderly_stop_is_no_verdict(
    controller: ControllerWorld, device: AgentProcess
) -> None:
    on_trial(controller, device)
    assert device.stop() == 0
    device.start()
    wait_for(lambda: answer(device) == 3.0, 30, f"1.1.0 to answer again\n{device.tail()}")
    wait_for(lambda: controller.events("dev-1", "boot")[-1].reason == "started", 30, "its word")
    assert "ROLLING_BACK" not in controller.states("dev-1", "r-2")
    assert controller.events("dev-1", "rolled_back") == []
