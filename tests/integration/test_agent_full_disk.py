"""A device whose disk gets full: the old model answers on, the error names the disk, nothing stays.

A real file system of a fixed size below a real agent; it is filled while a download runs (down a
road that is narrow enough to meet it half-way), while reports are kept, and before a start.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.proxy import Direction, Faults
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, infer_on
from tests.support.roads import Roads
from tests.support.serving import _model, make_release, scaled
from tests.support.wait import wait_for
from tests.support.world_invariants import check_agent, checked_controller

MIB = 1024**2
DISK_MIB, LARGE_MIB = 96, 32
NARROW = 4_000_000  # bytes a second: some seconds of a download
QUICK = {"min_inferences": 5, "min_s": 0.1, "max_s": 600}
FULL = "the disk of this device is full"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the agent's state."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system mounts no disk for us: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Within: not one byte is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    try:
        yield
    finally:
        filler.unlink()


def large(factor: float) -> bytes:
    """y = factor · x, and some weights that nobody asks for."""
    ballast = np.random.default_rng(int(factor)).integers(0, 255, LARGE_MIB * MIB, np.uint8)
    k = numpy_helper.from_array(np.array([factor], np.float32), "k")
    extra = numpy_helper.from_array(ballast, "ballast")
    return _model([helper.make_node("Mul", ["x", "k"], ["y"])], [k, extra])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ControllerWorld]:
    with checked_controller(tmp_path / "controller") as made:
        yield made


@pytest.fixture
def enrolled(world: ControllerWorld, disk: Path) -> AgentProcess:
    made = AgentProcess(disk / "state", "dev-full")
    made.log = disk.parent / "agent.log"
    assert made.enrol(world.url, world.token()).returncode == 0
    return made


@pytest.fixture
def roads(enrolled: AgentProcess) -> Iterator[Roads]:
    """Between the agent and its controller."""
    laid = Roads.lay(enrolled.state_dir)
    yield laid
    laid.close()


@pytest.fixture
def agent(world: ControllerWorld, enrolled: AgentProcess, roads: Roads) -> Iterator[AgentProcess]:
    """Serves 1.0.0, proven: y = 2 · x. Afterwards: I1 to I8."""
    made = enrolled
    made._env["ROUTES"] = roads.routes
    start(made)
    data = scaled(2.0)
    first = make_release("1.0.0", {"heavy": data}, probation=QUICK)
    world.publish("dev-full", first, "r-1", [data])
    with Client(made):
        wait_for(lambda: "COMMITTED" in world.states("dev-full", "r-1"), 60, "1.0.0 to be proven")
    yield made
    made.stop()
    check_agent(world.settings.data_dir, made)


def start(agent: AgentProcess, wait_s: float = 60) -> None:
    agent.start(wait_s, ("-m", "tests.support.routed_agent", "run"))


def partial_bytes(agent: AgentProcess) -> int:
    folder = agent.state_dir / "blobs" / "partial"
    found = folder.iterdir() if folder.is_dir() else ()
    return max((p.stat().st_size for p in found), default=0)


def stop_in_the_middle(agent: AgentProcess) -> None:
    """SIGSTOP while some, but not all, of a large file is there."""
    assert agent.process is not None
    wait_for(lambda: partial_bytes(agent), 60, f"the download\n{agent.tail()}")
    agent.process.send_signal(signal.SIGSTOP)
    assert 0 < partial_bytes(agent) < LARGE_MIB * MIB, "it had not begun, or was over"


def test_a_disk_that_fills_during_a_download(
    world: ControllerWorld, agent: AgentProcess, disk: Path, roads: Roads
) -> None:
    with Client(agent) as client:
        data = large(3.0)
        roads.grpc.set(Faults(bytes_per_s=NARROW), Direction.DOWN)
        world.publish("dev-full", make_release("1.1.0", {"heavy": data}), "r-2", [data])
        stop_in_the_middle(agent)
        roads.restore()
        assert agent.process is not None
        with full(disk):
            agent.process.send_signal(signal.SIGCONT)
            wait_for(lambda: FULL in agent.tail(), 60, "the log to say it")
            assert agent.infer()[0] == pytest.approx(2.0)
            assert agent.process.poll() is None
        wait_for(lambda: "FAILED" in world.states("dev-full", "r-2"), 60, agent.tail())
        (told,) = [
            e.reason
            for e in world.events("dev-full")
            if e.rollout_id == "r-2" and (e.details or {}).get("state") == "FAILED"
        ]
        assert told.startswith(FULL)
        wait_for(lambda: partial_bytes(agent) == 0, 30, "what came of it to be removed")
        assert agent.infer()[0] == pytest.approx(2.0)
        small = scaled(4.0)
        world.publish("dev-full", make_release("1.2.0", {"heavy": small}), "r-3", [small])
        wait_for(lambda: "PROBATION" in world.states("dev-full", "r-3"), 60, agent.tail())
        wait_for(lambda: agent.infer()[0] == pytest.approx(4.0), 20, "1.2.0 to answer")
    assert client.failures == []


def test_a_full_disk_under_journal_and_spool(
    world: ControllerWorld, agent: AgentProcess, disk: Path
) -> None:
    """An order that needs no room for files still needs the journal and the spool."""
    with Client(agent) as client:
        small = scaled(3.0)
        with full(disk):
            world.publish("dev-full", make_release("1.1.0", {"heavy": small}), "r-2", [small])
            wait_for(lambda: FULL in agent.tail(), 60, "the log to say it")
            assert agent.infer()[0] == pytest.approx(2.0)
        # With room again everything that has to be told is told, and orders are done.
        last = scaled(5.0)
        world.publish("dev-full", make_release("1.2.0", {"heavy": last}), "r-3", [last])
        wait_for(lambda: "PROBATION" in world.states("dev-full", "r-3"), 90, agent.tail())
        wait_for(lambda: agent.infer()[0] == pytest.approx(5.0), 20, "1.2.0 to answer")
    assert client.failures == []


def test_a_start_on_a_full_disk_serves_the_last_good_model(
    world: ControllerWorld, agent: AgentProcess, disk: Path
) -> None:
    assert agent.stop() == 0
    with full(disk):
        start(agent, wait_s=0)
        address = wait_for(lambda: _address(agent), 60, "it to serve")
        assert address
        assert _infer(address) == pytest.approx(2.0)
        assert FULL in agent.tail()
    wait_for(lambda: world.device("dev-full").online, 60, "it to be back")


def _address(agent: AgentProcess) -> str:
    """As printed: the file of facts could not be written."""
    lines = [line for line in agent.tail().splitlines() if "grpc://" in line]
    facts = [line.split("grpc://")[1].split()[0] for line in lines]
    return facts[-1] if len(facts) > 1 else ""


def _infer(address: str) -> float:
    with grpc.insecure_channel(address) as channel:
        return infer_on(channel)[0]


def test_negative_control_a_disk_with_room_takes_the_same_order(
    world: ControllerWorld, agent: AgentProcess, disk: Path
) -> None:
    data = large(3.0)
    world.publish("dev-full", make_release("1.1.0", {"heavy": data}), "r-2", [data])
    wait_for(lambda: "PROBATION" in world.states("dev-full", "r-2"), 60, agent.tail())
    assert os.statvfs(disk).f_bavail > 0
