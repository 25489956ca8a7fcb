"""Standard output on a full disk, for every program but fleetctl: one line, and 1; or it serves on.

Without Python's own variable the interpreter holds output back until the end; with it, it does not.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lighterman.output
from examples.fleet.ports import free_ports
from tests.support.agent_world import AgentProcess, ControllerWorld, running_controller
from tests.support.wait import wait_for

SAID = "error: the output cannot be written: No space left on device"
SERVES_ON = "warning: the output cannot be written: No space left on device; serving goes on"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path_factory.mktemp("full") / "controller") as made:
        yield made


def bare(held_back: bool, **more: str) -> dict[str, str]:
    """An environment of almost nothing, as a service manager gives it."""
    return more if held_back else {"PYTHONUNBUFFERED": "1", **more}


def started(words: list[str], env: dict[str, str], stdout: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=env, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


def onto_full_disk(words: list[str], held_back: bool) -> tuple[int, list[str]]:
    """Exit code and what was said on standard error."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        child = started(words, bare(held_back), full)
        _, said = child.communicate(timeout=120)
    return child.returncode, said.splitlines()


@pytest.mark.parametrize("held_back", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        ["agent", "doctor", "--state-dir", "{new}"],
        ["agent", "status", "--output", "json", "--state-dir", "{new}"],
        ["agent", "enroll", "--controller", "{url}", "--token", "{token}", "--state-dir", "{new}"],
        ["agent", "service-file"],
        ["agent", "--help"],
        ["controller", "operator", "list", "--data-dir", "{data}"],
        ["controller", "operator", "issue", "ana-{n}", "--out", "-", "--data-dir", "{data}"],
        ["controller", "migrate", "--data-dir", "{new}"],
        ["controller", "serve", "--help"],
        ["agent.sim", "--controller", "{url}", "--token", "{token}", "--count", "1", "--prefix",
         "full-{n}", "--for", "60"],
        ["agent.sim", "--help"],
        ["controller.cli", "--help"],
    ],
    ids=lambda words: "-".join(one for one in words if "{" not in one),
)  # fmt: skip
def test_a_full_disk_behind_the_output_is_told_in_one_line(
    world: ControllerWorld, tmp_path: Path, words: list[str], held_back: bool
) -> None:
    filled = {
        "new": str(tmp_path / "new"),
        "url": world.url,
        "token": world.token(),
        "data": str(world.settings.data_dir),
        "n": f"{held_back:d}",
    }
    code, said = onto_full_disk([one.format(**filled) for one in words], held_back)
    noted = [line for line in said if not line.startswith(("issued ", "  "))]
    assert (code, noted) == (1, [SAID]), said


def test_negative_control_the_interpreter_alone_says_it_in_its_own_words() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        child = subprocess.run(
            [sys.executable, "-c", "print('x')"], env={}, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False, timeout=60,
        )  # fmt: skip
    assert child.returncode == 120
    assert SAID not in child.stderr


def test_who_reads_no_more_is_told_nothing(tmp_path: Path) -> None:
    child = started(["agent", "doctor", "--state-dir", str(tmp_path)], {}, subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == ""
    assert child.wait(60) == 1


@pytest.mark.parametrize("held_back", [True, False])
def test_an_agent_serves_although_nobody_can_be_told(
    world: ControllerWorld, tmp_path: Path, held_back: bool
) -> None:
    agent = AgentProcess(tmp_path / "agent", f"full-{held_back:d}")
    assert agent.enrol(world.url, world.token()).returncode == 0
    with open("/dev/full", "w", encoding="utf-8") as full, agent.log.open("w") as log:
        env = {name: text for name, text in agent._env.items() if name.startswith("LIGHTERMAN_")}
        agent.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run"], env=bare(held_back, **env), stdout=full,
            stderr=log,
        )  # fmt: skip
    try:
        wait_for(agent._serves, 60, f"the agent to serve\n{agent.tail()}")
        wait_for(lambda: world.device(agent.device_id).online, 30, f"presence\n{agent.tail()}")
        assert SERVES_ON in agent.log.read_text().splitlines()
    finally:
        assert agent.stop() == 0


def test_a_controller_serves_although_nobody_can_be_told(tmp_path: Path) -> None:
    listen = zip(("grpc", "enroll", "mqtt", "web"), free_ports(4), strict=True)
    words = ["controller", "serve", "--no-context", "--data-dir", str(tmp_path / "data")]
    words += [f"--set=listen.{name}={port}" for name, port in listen]
    env = {"PATH": os.environ["PATH"], "LIGHTERMAN_WORKERS": "0"}
    with open("/dev/full", "w", encoding="utf-8") as full:
        child = started(words, env, full)
    assert child.stderr is not None
    with child.stderr:
        wait_for(lambda: SERVES_ON in str(child.stderr.readline()), 60, "it to say so")  # type: ignore[union-attr]
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        child.stderr.read()
    assert child.wait(60) == 0


def test_a_program_without_standard_output_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert lighterman.output.with_output(lambda: 7) == 7
