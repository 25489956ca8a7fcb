"""A broker that cannot run: at the start an error with its last words, later a problem with a name.

Devices keep serving and their reports arrive over gRPC meanwhile.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controller.mqtt import broker as broker_room
from examples.fleet.ports import free_ports
from lighterman.v1 import fleet_pb2
from tests.support.agent_world import AgentProcess, running_controller
from tests.support.gateway import Running
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for


def broken_mosquitto(folder: Path) -> Path:
    """A program of that name that says why it cannot run."""
    folder.mkdir()
    program = folder / "mosquitto"
    program.write_text("#!/bin/sh\necho 'mosquitto: libcjson.so.1: cannot open' >&2\nexit 127\n")
    program.chmod(0o755)
    return folder


def serve(folder: Path, path: str) -> "subprocess.CompletedProcess[str]":
    ports = zip(("grpc", "enroll", "mqtt", "web"), free_ports(4), strict=True)
    flags = [f"--set=listen.{name}={port}" for name, port in ports]
    data = str(folder / "data")
    return subprocess.run(
        [sys.executable, "-m", "controller", "serve", "--data-dir", data, "--no-context", *flags],
        env={**os.environ, "PATH": path, "LIGHTERMAN_WORKERS": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_broken_broker_at_the_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    path = f"{broken_mosquitto(tmp_path / 'bin')}:{os.environ['PATH']}"
    done = serve(tmp_path, path)
    assert done.returncode == 1
    assert "ready" not in done.stdout
    error = done.stderr[done.stderr.index("error: ") :]
    assert "broker" in error
    assert "libcjson.so.1: cannot open" in error
    assert "Traceback" not in done.stderr


def test_a_broker_that_dies_and_stays_away_is_a_problem_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_controller(tmp_path / "controller") as world:
        agent = AgentProcess(tmp_path / "agent", "dev-1")
        assert agent.enrol(world.url, world.token()).returncode == 0
        agent.start()
        assert world._controller is not None
        assert world.listening is not None
        home = Running(world._controller, world.listening, world.settings.data_dir)
        try:
            wait_for(lambda: world.device("dev-1").online, 30, "the device to be there")
            real = broker_room.SEARCH
            folder = broken_mosquitto(tmp_path / "bin")
            monkeypatch.setenv("PATH", str(folder))
            monkeypatch.setattr(broker_room, "SEARCH", str(folder))
            pid = world.settings.data_dir / "run" / "broker" / "mosquitto.pid"
            os.kill(int(pid.read_text()), signal.SIGKILL)

            def problems() -> str:
                answer = home.fleet().GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
                return "" if answer.broker_ok else " ".join(answer.problems)

            assert "broker" in wait_for(problems, 30, "the problem to be told")
            data = scaled(2.0)
            world.publish("dev-1", make_release("1.0.0", {"heavy": data}), "r-1", [data])
            # No doorbell rings: the device asks by itself, more often while it is deaf.
            wait_for(lambda: "PROBATION" in world.states("dev-1", "r-1"), 90, "reports by gRPC")
            assert agent.infer()[0] == pytest.approx(2.0)
            monkeypatch.setattr(broker_room, "SEARCH", real)
            monkeypatch.undo()
            wait_for(lambda: not problems(), 60, "the broker to be back by itself")
        finally:
            for one in home.channels:
                one.close()
            assert agent.stop() == 0
