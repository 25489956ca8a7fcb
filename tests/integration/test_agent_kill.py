"""kill -9 right after every record of the journal: a device always serves, and always settles."""

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.store.desired import get_desired
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.device_invariants import check_disk
from tests.support.serving import make_release, products_for, scaled, slow
from tests.support.wait import wait_for

PROBATION = {"min_inferences": 5, "min_s": 0.1, "max_s": 600}
# seen, OFFERED … COMMITTED, taken, applied, and what a start writes before them.
RECORDS = range(1, 12)


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path_factory.mktemp("controller"), presence_grace_s=1.0) as world:
        yield world


@pytest.fixture(scope="module")
def agent(
    controller: ControllerWorld, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    made = AgentProcess(tmp_path_factory.mktemp("devices") / "agent")
    done = made.enrol(controller.url, controller.token())
    assert done.returncode == 0, done.stderr
    made.start()
    order(controller, made, "1.0.0", scaled(1.0))
    settle(controller, made)
    assert made.stop() == 0
    yield made
    if made.process is not None:
        made.stop()


def order(controller: ControllerWorld, agent: AgentProcess, version: str, data: bytes,
          **policy: Any) -> int:  # fmt: skip
    release = make_release(version, {"heavy": data}, probation=PROBATION, **policy)
    return controller.publish(agent.device_id, release, f"r-{version}", [data])


def settle(controller: ControllerWorld, agent: AgentProcess) -> float:
    """Wait until the newest generation is applied; gives what is answered then."""
    with controller.deps.store.read() as conn:
        desired = get_desired(conn, agent.device_id)
    assert desired is not None
    wait_for(lambda: answer(agent) is not None, 30, f"an answer\n{agent.tail()}")
    with Client(agent) as client:
        wait_for(
            lambda: controller.device(agent.device_id).applied_generation == desired.generation,
            40,
            f"generation {desired.generation} to be applied\n{agent.tail()}",
        )
    assert client.failures == []
    settled = answer(agent)
    assert settled is not None
    return settled


def test_negative_control_of_what_is_looked_for(agent: AgentProcess, tmp_path: Path) -> None:
    seen = check_disk(agent.state_dir)
    with pytest.raises(AssertionError, match="I3"):
        check_disk(agent.state_dir, seen + 1)
    for what in ("I2", "I4"):
        copy = tmp_path / what
        shutil.copytree(agent.state_dir, copy)
        if what == "I4":
            shutil.rmtree(copy / "slots")
        else:
            next(p for p in (copy / "blobs").iterdir() if p.is_file()).write_bytes(b"other bytes")
        with pytest.raises(AssertionError, match=what):
            check_disk(copy)


def last_state_is(
    controller: ControllerWorld, agent: AgentProcess, rollout: str, state: str
) -> bool:
    return controller.states(agent.device_id, rollout)[-1:] == [state]


def answer(agent: AgentProcess) -> float | None:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


def run_until_killed(agent: AgentProcess, record: int) -> bool:
    """Run with the killing journal under load; False when it lived through the whole update."""
    agent.start(command=("-m", "tests.support.killed_agent", str(record)), wait_s=0)
    process = agent.process
    assert process is not None

    def over() -> bool:
        if process.poll() is not None:
            return True
        if agent.facts() is not None and agent.facts().listen_grpc:  # type: ignore[union-attr]
            for _ in range(5):
                answer(agent)
        return False

    try:
        wait_for(over, 12, "the kill")
    except AssertionError:
        agent.kill()
        return False
    return True


@pytest.mark.slow
def test_killed_after_any_record_an_update_still_settles(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    factor, killed, seen = 1.0, 0, 0
    for record in RECORDS:
        wanted = float(record + 1)
        order(controller, agent, f"2.{record}.0", scaled(wanted))
        killed += run_until_killed(agent, record)
        seen = check_disk(agent.state_dir, seen)
        agent.start()
        assert answer(agent) in (factor, wanted), "it serves before it settles"
        settled = settle(controller, agent)
        # A crash in probation is a crash of the version: the device goes back and says so.
        told = "COMMITTED" if settled == wanted else "ROLLED_BACK"
        wait_for(
            partial(last_state_is, controller, agent, f"r-2.{record}.0", told),
            20,
            f"the report of {told} after a kill at record {record}",
        )
        assert settled in (wanted, factor)
        factor = settled
        assert agent.stop() == 0
    assert killed >= 8, f"only {killed} kills happened"
    assert controller.events(agent.device_id, "device_quarantined") == []
    assert_no_gap(controller, agent)


@pytest.mark.slow
def test_killed_on_the_way_back_the_previous_version_answers(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    before = settle(controller, agent)
    assert agent.stop() == 0
    data = slow(50.0, products_for(0.03))
    seen, killed = 0, 0
    # From PROBATION over ROLLING_BACK and ROLLED_BACK to what says that the generation is applied.
    for record in range(7, 13):
        order(controller, agent, f"3.{record}.0", data, slow_threshold_ms=15)
        killed += run_until_killed(agent, record)
        seen = check_disk(agent.state_dir, seen)
        agent.start()
        assert settle(controller, agent) == before, agent.tail()
        wait_for(
            partial(last_state_is, controller, agent, f"r-3.{record}.0", "ROLLED_BACK"),
            20,
            f"the report of the way back after a kill at record {record}",
        )
        assert agent.stop() == 0
    assert killed >= 4, f"only {killed} kills happened"
    assert_no_gap(controller, agent)


@pytest.mark.slow
def test_killed_at_any_moment_it_serves_and_settles(
    controller: ControllerWorld, agent: AgentProcess
) -> None:
    agent.start()
    before = settle(controller, agent)
    assert agent.stop() == 0
    moments = random.Random(20261124)
    for number in range(1, 7):
        wanted = 100.0 + number
        order(controller, agent, f"4.{number}.0", scaled(wanted))
        agent.start(wait_s=0)
        process = agent.process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.2, 2.0))
        assert process.returncode is None, f"it ended by itself\n{agent.tail()}"
        agent.kill()
        check_disk(agent.state_dir)
        agent.start()
        assert answer(agent) in (before, wanted), "it serves before it settles"
        settled = settle(controller, agent)
        told = "COMMITTED" if settled == wanted else "ROLLED_BACK"
        wait_for(
            partial(last_state_is, controller, agent, f"r-4.{number}.0", told), 20, f"{told} told"
        )
        before = settled
        assert agent.stop() == 0
    assert controller.events(agent.device_id, "device_quarantined") == []
    assert_no_gap(controller, agent)


def assert_no_gap(controller: ControllerWorld, agent: AgentProcess) -> None:
    """I8: numbers of every boot are stored once each, from 1 on."""
    numbers: dict[str, list[int]] = {}
    for event in controller.events(agent.device_id):
        if event.boot_id and event.seq:
            numbers.setdefault(event.boot_id, []).append(event.seq)
    for boot, seen in numbers.items():
        assert sorted(seen) == list(range(1, len(seen) + 1)), boot
