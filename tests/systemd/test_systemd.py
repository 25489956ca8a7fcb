"""The agent as a service of a booted machine: it serves, hangs, dies, and is there again.

`make test-systemd`, as root; the controller runs outside. Each test leaves the service serving.
"""

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from examples.fleet.controller import ControllerProcess
from examples.fleet.ctl import Ctl
from examples.fleet.ports import free_ports
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.container import AGENT, STATE, UNIT, USER, Container, missing, wheels
from tests.support.hanging import POISON, hanging
from tests.support.wait import wait_for

# Who asks for these tests is told what they need; only a run of all tests may pass them by.
if os.environ.get("LIGHTERMAN_TEST_SYSTEMD") and missing():
    raise RuntimeError(missing())
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MODEL = "digits"
DEVICE = "systemd-1"
ROW, CLASSES = (1, 8, 8), 10
POLICY = """
kind: Policy
name: short
spec:
  model: "*"
  priority: 10
  slow_threshold_ms: 100
  slow_count: 5
  idle_gap_s: 2
  probation: {min_inferences: 10, min_s: 1, max_s: 600}
"""
PORTS = ("GRPC", "ENROLL", "MQTT", "WEB")


class World:
    """A controller outside, a machine with an agent inside, and an application."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = root / "config"
        ports = zip(PORTS, free_ports(4), strict=True)
        settings = {f"LIGHTERMAN_LISTEN_{name}": str(port) for name, port in ports}
        self.controller = ControllerProcess(
            binary("lighterman-controller"), root / "controller", config, root / "controller.log",
            settings,
        )  # fmt: skip
        self.ctl = Ctl(binary("fleetctl"), config)
        self.machine = Container(root)
        self.channel = grpc.insecure_channel(self.machine.serves)
        self.stub = pb_grpc.GRPCInferenceServiceStub(self.channel)

    def enrol(self) -> None:
        token = self.ctl.run("admin", "token", "create").out.strip()
        self.machine.do(
            *("runuser", "-u", USER, "--", AGENT, "enroll", "--device-id", DEVICE),
            *("--controller", f"https://{self.controller.endpoints['enroll']}", "--token", token),
        )

    def ask(self, timeout_s: float = 5, value: float = 1.0) -> str:
        """The version that answers one picture, or the status code."""
        request = pb.ModelInferRequest(model_name=MODEL)
        request.inputs.add(name="image", datatype="FP32", shape=[1, *ROW])
        request.raw_input_contents.append(np.full((1, *ROW), value, np.float32).tobytes())
        try:
            response = self.stub.ModelInfer(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return str(error.code().name) if isinstance(error, grpc.Call) else "?"
        return response.parameters["lighterman_version"].string_param

    def wait_answer(self, version: str, timeout_s: float = 60) -> None:
        wait_for(lambda: self.ask() == version, timeout_s, f"{version} to answer")

    def push(self, version: str, data: bytes) -> None:
        file = self.root / f"{version}.onnx"
        file.write_bytes(data)
        self.ctl.run("model", "push", f"{MODEL}:{version}", "--variant", f"heavy={file}")
        self.ctl.run("build", "run", f"{MODEL}:{version}", "--recipe", "onnxruntime-fp32", "--wait")

    def roll_out(self, version: str) -> str:
        answer: Any = self.ctl.json(
            "rollout", "start", f"{MODEL}:{version}", "--to", "all", "--waves", "1,100%",
            "--soak", "1s", "--min-samples", "5", "--yes=1",
        )  # fmt: skip
        return str(answer["rollout_id"])

    def commit(self, rollout: str, version: str) -> None:
        """Traffic until the rollout succeeded."""

        def done() -> bool:
            self.ask()
            return bool(self.ctl.json("rollout", "show", rollout)["phase"] == "SUCCEEDED")

        wait_for(done, 120, f"{version} to be committed")


def binary(name: str) -> list[str]:
    return [str(Path(sys.executable).with_name(name))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("systemd"))
    try:
        folder = tmp_path_factory.mktemp("wheels")
        wheels(folder)
        made.machine.install(folder)
        made.controller.start()
        made.ctl.run("apply", "-f", str(written(made.root / "policy.yaml", POLICY)))
        made.machine.boot()
        yield made
    finally:
        made.channel.close()
        made.machine.destroy()
        made.controller.stop()


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_it_waits_for_enrolment_and_serves_after_it(world: World) -> None:
    machine = world.machine
    machine.do("systemctl", "enable", "--now", "--no-block", UNIT)
    wait_for(lambda: machine.restarts() >= 2, 30, "it to try again")
    assert "this device is not enrolled" in machine.journal()
    world.enrol()
    wait_for(lambda: machine.unit("ActiveState") == "active", 30, "the service")
    wait_for(lambda: "connected" in machine.unit("StatusText"), 30, "the controller")
    world.push("1.0.0", hanging(ROW, CLASSES, 1, poisoned=False))
    rollout = world.roll_out("1.0.0")
    world.wait_answer("1.0.0")
    world.commit(rollout, "1.0.0")
    wait_for(lambda: f"serves {MODEL}:1.0.0" in machine.unit("StatusText"), 10, "its status")


def test_it_runs_behind_its_walls(world: World) -> None:
    pid = world.machine.unit("MainPID")
    said = world.machine.do("cat", f"/proc/{pid}/status")
    facts = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    assert facts["CapEff"].strip("0") == ""
    inside = ("nsenter", "--target", pid, "--mount", "--")
    assert world.machine.ask(*inside, "touch", "/usr/test").returncode != 0
    world.machine.do(*inside, "touch", f"{STATE}/test")


def test_a_killed_agent_serves_again(world: World) -> None:
    before = world.machine.restarts()
    world.machine.do("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
    wait_for(lambda: world.machine.restarts() > before, 30, "the restart")
    world.wait_answer("1.0.0")


def test_a_stopped_process_is_ended_by_the_watchdog(world: World) -> None:
    before = world.machine.restarts()
    world.machine.do("systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT)
    wait_for(lambda: world.machine.restarts() > before, 60, "the watchdog")
    world.wait_answer("1.0.0")
    assert "Watchdog timeout" in world.machine.journal()


def test_without_its_watchdog_a_stopped_process_stays(world: World) -> None:
    machine = world.machine
    machine.drop_in("zz-control", "[Service]\nWatchdogSec=0\n")
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", UNIT)
    before = machine.restarts()
    machine.do("systemctl", "kill", "--signal=STOP", "--kill-whom=main", UNIT)
    threading.Event().wait(12)  # twice what the watchdog takes: nothing is to happen in it
    assert (machine.restarts(), world.ask(timeout_s=1)) == (before, "DEADLINE_EXCEEDED")
    machine.do("systemctl", "kill", "--signal=CONT", "--kill-whom=main", UNIT)
    (machine.root / f"etc/systemd/system/{UNIT}.service.d/zz-control.conf").unlink()
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "restart", UNIT)
    world.wait_answer("1.0.0")


def test_an_inference_that_hangs_is_ended_and_its_version_left(world: World) -> None:
    before = world.machine.restarts()
    world.push("1.1.0", hanging(ROW, CLASSES, 2))
    rollout = world.roll_out("1.1.0")
    world.wait_answer("1.1.0")
    hung = threading.Thread(target=world.ask, args=(60, POISON))
    hung.start()
    wait_for(lambda: world.machine.restarts() > before, 60, "the watchdog")
    world.wait_answer("1.0.0", 30)
    hung.join()
    said = world.machine.journal()
    assert f"an inference of {MODEL} rung 'heavy' has been running for" in said
    assert "Fatal Python error: Aborted" in said

    def rolled_back() -> object:
        return bool(
            world.ctl.json("rollout", "show", rollout)["phase"] in ("ROLLED_BACK", "FAILED")
        )

    wait_for(rolled_back, 60, "the fleet to know")


def restarted(machine: Container, before: int) -> bool:
    return machine.restarts() > before


def test_many_quick_crashes_do_not_end_it(world: World) -> None:
    machine = world.machine
    begun = machine.restarts()
    for _ in range(20):
        before = machine.restarts()
        machine.do("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
        wait_for(partial(restarted, machine, before), 30, "the restart")
        wait_for(lambda: machine.unit("MainPID") != "0", 30, "a process")
    assert machine.restarts() >= begun + 20
    world.wait_answer("1.0.0", 90)


def test_with_a_start_limit_it_would_stay_dead(world: World) -> None:
    machine = world.machine
    limit = "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n"
    machine.drop_in("zz-control", limit)
    machine.do("systemctl", "daemon-reload")

    def dead() -> bool:
        machine.ask("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
        return machine.unit("ActiveState") == "failed"

    wait_for(dead, 60, "systemd to give up")
    (machine.root / f"etc/systemd/system/{UNIT}.service.d/zz-control.conf").unlink()
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "reset-failed", UNIT)
    machine.do("systemctl", "start", "--no-block", UNIT)
    world.wait_answer("1.0.0")


def test_a_machine_that_boots_without_its_controller_serves_the_last_good_model(
    world: World,
) -> None:
    world.controller.stop()
    world.machine.power_off()
    assert world.ask(timeout_s=1) == "UNAVAILABLE"
    world.machine.boot()
    world.wait_answer("1.0.0")
    wait_for(lambda: "not connected" in world.machine.unit("StatusText"), 10, "its status")
