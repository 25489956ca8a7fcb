"""kill -9 of the controller at random points of a rollout: it goes on where it was."""

import os
import random
import secrets
from pathlib import Path

import pytest

from examples.fleet.clock import monotonic, wait_until
from examples.fleet.processes import process_gone
from tests.support.e2e_world import DIGITS, WAVES, Fleet, now, say

ROUNDS = 3
LATEST_S = 6.0  # a rollout takes about ten


def brokers(fleet: Fleet) -> list[str]:
    """Processes of this controller's broker that still run."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or process_gone(int(folder.name)):
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = os.readlink(folder / "cwd")
        except OSError:
            continue
        if "mosquitto" in command and str(fleet.controller.data_dir) in f"{command} {where}":
            found.append(f"{folder.name}: {command}")
    return found


def kill_and_restart(fleet: Fleet) -> None:
    """No process of it is left, then it comes back on its data."""
    assert brokers(fleet), "there was no broker to be left over"
    fleet.controller.kill_hard()
    wait_until(lambda: not brokers(fleet), 15, "the broker to end with its controller")
    fleet.controller.start()


def pause(seconds: float) -> None:
    """Let the rollout run on to the point that the seed chose."""
    until = monotonic() + seconds
    wait_until(lambda: monotonic() >= until, seconds + 5, "the point of the kill", every_s=0.02)


@pytest.mark.slow
def test_a_killed_controller_finishes_its_rollout(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("E2E_SEED", secrets.randbelow(10**6)))
    chance = random.Random(seed)
    for number in range(ROUNDS):
        points = [chance.uniform(0, LATEST_S) for _ in range(1 + number % 2)]
        told = " and ".join(f"{point:.2f} s" for point in points)
        say(capsys, f"E2E_SEED={seed} round {number}: killed after {told}")
        version = fleet.push_digits()
        fleet.build(DIGITS, version)
        since = now()
        rollout = fleet.begin(DIGITS, version, waves=WAVES)
        for point in points:
            pause(point)
            kill_and_restart(fleet)
        shown = fleet.watch(rollout, 0)
        assert [wave["verdict"] for wave in shown["waves"]] == ["PASSED"] * 3, shown
        fleet.wait_running(version)
        assert fleet.failed(since) == []
        opened = [e["reason"] for e in fleet.events("--rollout", rollout, "--kind", "wave_opened")]
        assert opened == ["wave 1 is open", "wave 2 is open", "wave 3 is open"]
    assert len(brokers(fleet)) <= 2, brokers(fleet)  # the broker and its guardian
