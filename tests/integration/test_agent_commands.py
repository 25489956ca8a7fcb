"""What people type on a device: enroll, status, doctor, run; what they read, and exit codes."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.store.identity import FileIdentityStore
from controller.services.devices import retire_device
from controller.trust.authority import Authority
from examples.fleet.ports import free_port
from tests.support.agent_world import AgentProcess, ControllerWorld, running_controller
from tests.support.wait import wait_for


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path_factory.mktemp("controller"), presence_grace_s=1.0) as world:
        yield world


def test_a_device_that_is_not_enrolled_is_told_how(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "agent")
    said = agent.command("run")
    assert said.returncode == 1
    assert "this device is not enrolled" in said.stderr
    assert "lighterman-agent enroll --controller https://HOST:7444" in said.stderr
    assert agent.command("doctor").returncode == 1
    assert agent.command("status").returncode == 1


def test_a_token_is_good_once(controller: ControllerWorld, tmp_path: Path) -> None:
    token = controller.token()
    first, second = AgentProcess(tmp_path / "a", "once-a"), AgentProcess(tmp_path / "b", "once-b")
    done = first.enrol(controller.url, token)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("enrolled once-a at 127.0.0.1:")
    again = second.enrol(controller.url, token)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    twice = first.enrol(controller.url, controller.token())
    assert twice.returncode == 1
    assert "this device is enrolled already, as once-a" in twice.stderr


def test_a_pending_device_waits_for_an_operator(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path / "agent", "pending-1")
    done = agent.enrol(controller.url, controller.token(pending=True))
    assert done.returncode == 0
    assert "fleetctl device accept pending-1" in done.stdout
    agent.start()
    try:
        wait_for(lambda: (f := agent.facts()) is not None and f.pending, 20, "it to know")
    finally:
        agent.stop()


def test_an_unreachable_controller_is_said_with_tries(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path / "agent")
    said = agent.enrol(f"https://127.0.0.1:{free_port()}", controller.token())
    assert said.returncode == 5
    assert "does not answer (connection refused), tried 4 times" in said.stderr


@pytest.mark.parametrize(
    ("url", "token", "story"),
    [
        ("http://127.0.0.1", "lm1.x.y", "is not the address of a controller"),
        ("https://127.0.0.1", "lm1.x.y", "this is not an enrolment token"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, url: str, token: str, story: str) -> None:
    said = AgentProcess(tmp_path / "agent").enrol(url, token)
    assert said.returncode == 1
    assert story in said.stderr


def test_an_empty_device_id_uses_no_token_up(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, "")
    done = agent.command(
        *("enroll", "--controller", "https://127.0.0.1:1", "--token", "x", "--device-id", "")
    )
    assert done.returncode == 2
    assert "--device-id: it is empty; leave the option out" in done.stderr


def test_without_a_device_id_one_is_given(controller: ControllerWorld, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, "unused")
    done = agent.command(*("enroll", "--controller", controller.url, "--token", controller.token()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("enrolled d-")


def test_doctor_finds_nothing_on_a_healthy_device_and_names_what_breaks(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path / "agent", "healthy-1")
    assert agent.enrol(controller.url, controller.token()).returncode == 0
    agent.start()
    try:
        said = agent.command("doctor")
        assert said.returncode == 0, said.stdout
        assert said.stdout.endswith("nothing is wrong\n")
        for what in ("controller", "broker", "certificate", "disk", "runtimes", "clock", "heat"):
            assert f" {what} " in said.stdout, what
        second = agent.command("run")
        assert second.returncode == 1
        assert "an agent uses" in second.stderr
        controller.stop()
        said = agent.command("doctor")
        assert said.returncode == 1
        assert said.stdout.count("does not answer (connection refused)") == 2
    finally:
        controller.start()
        assert agent.stop() == 0
    said = agent.command("doctor")
    assert said.returncode == 1
    assert "does not run" in said.stdout


def test_a_retired_device_is_told_so_by_status_and_doctor(
    controller: ControllerWorld, tmp_path: Path
) -> None:
    agent = AgentProcess(tmp_path / "agent", "retired-1")
    assert agent.enrol(controller.url, controller.token()).returncode == 0
    agent.start()

    def state() -> str:
        return facts.controller_state if (facts := agent.facts()) is not None else ""

    try:
        wait_for(lambda: controller.device("retired-1").online, 20, "presence online")
        wait_for(lambda: state() == "connected", 20, "a connection")
        said = agent.command("doctor")
        assert "answers and takes this device" in said.stdout, said.stdout
        retire_device(controller.deps, controller.ctx(), "retired-1")
        # Well before the next question of its own, which is due in a quarter of an hour.
        wait_for(lambda: "was revoked at" in state(), 20, f"status to tell\n{agent.tail()}")
        shown = agent.command("status").stdout
        assert "the certificate of retired-1 was revoked at" in shown
        assert "reason: retired by test" in shown
        said = agent.command("doctor")
        assert said.returncode == 1
        assert "the certificate of retired-1 was revoked at" in said.stdout
        assert "enrol anew: stop the agent, move" in said.stdout
        assert "check the network" not in said.stdout
    finally:
        agent.stop()


@pytest.mark.parametrize(("wish", "raw"), [("", False), ("INFO", True)])
def test_grpc_logs_raw_lines_only_to_those_who_asked(
    controller: ControllerWorld, tmp_path: Path, wish: str, raw: bool
) -> None:
    settings = {"GRPC_VERBOSITY": wish} if wish else {}
    agent = AgentProcess(tmp_path / "agent", f"quiet-{raw:d}", **settings)
    assert agent.enrol(controller.url, controller.token()).returncode == 0
    store = FileIdentityStore(tmp_path / "agent" / "identity")
    mine = store.current()
    assert mine is not None
    foreign = Authority.create(SystemClock().now()).certificate_pem
    store.keep_next(replace(mine, ca_pem=foreign))
    store.promote()
    agent.start()
    try:
        told = "its certificate is not from the authority of this device"
        wait_for(lambda: told in agent.tail(), 20, f"the refusal\n{agent.tail()}")
    finally:
        agent.stop()
    assert bool(re.search(r"^[IWEF]\d{4} ", agent.tail(), re.MULTILINE)) is raw, agent.tail()


def test_status_is_a_promise_in_json(controller: ControllerWorld, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "agent", "status-1")
    assert agent.enrol(controller.url, controller.token()).returncode == 0
    agent.start()
    try:
        body = json.loads(agent.command("status", "-o", "json").stdout)
        assert body["schema_version"] == 1
        assert (body["running"], body["answers"]) == (True, True)
        assert body["device_id"] == "status-1"
        shown = agent.command("status")
        assert shown.returncode == 0
        assert "status-1" in shown.stdout
        assert "nothing yet: no rollout reached this device" in shown.stdout
    finally:
        agent.stop()
    body = json.loads(agent.command("status", "-o", "json").stdout)
    assert (body["running"], body["answers"]) == (False, False)


def test_heavy_libraries_stay_out_until_a_model_or_an_order_comes() -> None:
    program = (
        "import sys, agent.app\n"
        "heavy = {'numpy', 'onnxruntime', 'cryptography', 'torch', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"
