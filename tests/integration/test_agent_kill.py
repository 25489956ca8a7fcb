"""kill -9 after every step that a journal can record: a device always serves, and always settles.

Which steps there are says the machine itself (`tests.support.journaled_steps`); that a start is
defined after each of its records in every reachable state is `test_agent_update`'s.
"""

import contextlib
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.domain.assignment import ModelState, Slot
from agent.domain.events import Event
from agent.domain.update import step
from agent.store.slots import FileSlots
from controller.store.desired import get_desired
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.device_invariants import check_disk
from tests.support.journaled_steps import KEPT, journaled_steps
from tests.support.killed_agent import Grip
from tests.support.serving import make_release, products_for, scaled, slow
from tests.support.wait import wait_for

PROBATION = {"min_inferences": 5, "min_s": 0.1, "max_s": 600}


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
    for what in ("I1", "I2", "I4"):
        copy = tmp_path / what
        shutil.copytree(agent.state_dir, copy)
        if what == "I4":
            shutil.rmtree(copy / "slots")
        elif what == "I1":
            store = FileSlots(copy)
            current, previous, staged = store.slots("photo")
            assert current is not None
            store.set_slots("photo", other_length(current), previous, staged)
        else:
            next(p for p in (copy / "blobs").iterdir() if p.is_file()).write_bytes(b"other bytes")
        with pytest.raises(AssertionError, match=what):
            check_disk(copy)


def other_length(slot: Slot) -> Slot:
    """A pointer to the same file that says another size of it."""
    rung = slot.release.rungs[0]
    assert rung.target is not None
    target = replace(rung.target, length=rung.target.length + 1)
    return replace(slot, release=replace(slot.release, rungs=(replace(rung, target=target),)))


def last_state_is(
    controller: ControllerWorld, agent: AgentProcess, rollout: str, state: str
) -> bool:
    return controller.states(agent.device_id, rollout)[-1:] == [state]


def answer(agent: AgentProcess) -> float | None:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


@dataclass(slots=True)
class Kills:
    """One agent that is killed again and again; `factor` is what its proven version answers."""

    controller: ControllerWorld
    agent: AgentProcess
    grip: Grip
    factor: float
    wanted: float = 0.0
    number: int = 0
    seen: int = 0

    def start(self, wait_s: float = 60) -> None:
        """With the journal that can kill."""
        folder = str(self.grip.folder)
        self.agent.start(wait_s, ("-m", "tests.support.killed_agent", folder))

    def order(self, data: bytes, *, length: int = 0, **policy: Any) -> str:
        """The next version; gives its rollout. `length`: what the order says of its size."""
        self.number += 1
        release = make_release(f"2.{self.number}.0", {"heavy": data}, probation=PROBATION, **policy)
        rung = release.rungs[0]
        if length and rung.target is not None:
            target = replace(rung.target, length=length, digest="sha256:" + "7" * 64)
            release = replace(release, rungs=(replace(rung, target=target),))
        rollout = f"r-2.{self.number}.0"
        self.controller.publish(self.agent.device_id, release, rollout, [data])
        return rollout

    def order_good(self) -> str:
        """A version that can prove itself; `wanted` is what it answers."""
        self.wanted = 2.0 + self.number
        return self.order(scaled(self.wanted))

    def wait_dead(self, name: str) -> None:
        """Until it died at this step, under load."""
        process = self.agent.process
        assert process is not None

        def over() -> bool:
            facts = self.agent.facts()
            if facts is not None and facts.listen_grpc:
                answer(self.agent)
            return process.poll() is not None

        wait_for(over, 60, f"the kill at {name}\n{self.agent.tail()}")
        assert process.returncode == -signal.SIGKILL, self.agent.tail()
        assert self.grip.names("killed")[-1:] == [name]

    def settles(self, name: str, wanted: float, rollout: str, told: str) -> None:
        """Serve at once what it may, then what was ordered, and tell how that ended."""
        self.start()
        assert answer(self.agent) in (self.factor, wanted), f"{name}: it serves before it settles"
        ended = wanted if told == "COMMITTED" else self.factor
        what = f"{ended} to be answered after a kill at {name}"
        wait_for(lambda: answer(self.agent) == ended, 30, f"{what}\n{self.agent.tail()}")
        with Client(self.agent) as client:
            wait_for(
                lambda: not rollout or self.last_state(rollout) == told,
                30,
                f"the report of {told} after a kill at {name}\n{self.agent.tail()}",
            )
            # Told before, perhaps: a version that was fetched again is on trial again.
            wait_for(
                lambda: told != "COMMITTED" or self.is_committed(),
                30,
                f"a proven version after a kill at {name}\n{self.agent.tail()}",
            )
        assert client.failures == []
        assert settle(self.controller, self.agent) == ended, f"{name}\n{self.agent.tail()}"
        self.factor = ended

    def is_committed(self) -> bool:
        """Whether what runs is proven, by the disk of the device."""
        current, _, _ = FileSlots(self.agent.state_dir).slots("photo")
        return current is not None and current.committed

    def last_state(self, rollout: str) -> str:
        """What is stored of it."""
        return (self.controller.states(self.agent.device_id, rollout) or [""])[-1]


def die(kills: Kills, name: str, order: Callable[[], str]) -> str:
    """Order something, die at the step, look at the disk; gives the rollout."""
    kills.grip.aim(name)
    rollout = order()
    kills.wait_dead(name)
    kills.seen = check_disk(kills.agent.state_dir, kills.seen)
    return rollout


def good(kills: Kills, name: str, told: str = "COMMITTED") -> None:
    rollout = die(kills, name, kills.order_good)
    kills.settles(name, kills.wanted, rollout, told)


def slow_one(kills: Kills, name: str) -> None:
    data = slow(50.0, products_for(0.03))
    rollout = die(kills, name, lambda: kills.order(data, slow_threshold_ms=15))
    kills.settles(name, kills.factor, rollout, "ROLLED_BACK")


def refused(kills: Kills, name: str) -> None:
    rollout = die(kills, name, lambda: kills.order(b"too large", length=1 << 39))
    kills.settles(name, kills.factor, rollout, "REFUSED")


def failed(kills: Kills, name: str) -> None:
    rollout = die(kills, name, lambda: kills.order(b"no model at all"))
    kills.settles(name, kills.factor, rollout, "FAILED")


def under_way(kills: Kills) -> str:
    """An order whose download does not begin."""
    kills.grip.hold()
    rollout = kills.order(scaled(666.0))
    wait_for(lambda: "DOWNLOADING" in kills.controller.states("dev-1", rollout), 30, "a download")
    return rollout


def superseded(kills: Kills, name: str) -> None:
    first = under_way(kills)
    rollout = die(kills, name, kills.order_good)
    kills.grip.release()
    kills.settles(name, kills.wanted, rollout, "COMMITTED")
    assert set(kills.controller.states("dev-1", first)) <= {"OFFERED", "DOWNLOADING", "SUPERSEDED"}


def withdrawn(kills: Kills, name: str) -> None:
    current, _, _ = FileSlots(kills.agent.state_dir).slots("photo")
    assert current is not None
    release = current.release
    first = under_way(kills)

    def call_back() -> str:
        kills.controller.publish("dev-1", release, release.rollout, [])
        return release.rollout

    rollout = die(kills, name, call_back)
    kills.grip.release()
    kills.settles(name, kills.factor, rollout, "COMMITTED")
    assert set(kills.controller.states("dev-1", first)) <= {"OFFERED", "DOWNLOADING", "WITHDRAWN"}


def damaged(kills: Kills, name: str) -> None:
    """The file of what runs is gone at a start: the spare answers until it was fetched again."""
    kills.order_good()
    assert settle(kills.controller, kills.agent) == kills.wanted
    assert kills.agent.stop() == 0
    store = FileSlots(kills.agent.state_dir)
    current, previous, _ = store.slots("photo")
    assert current is not None
    assert previous is not None
    Path(store.path(current.release.targets[0].digest)).unlink()
    kills.grip.aim(name)
    kills.start(wait_s=0)
    kills.wait_dead(name)
    kills.settles(name, kills.wanted, current.release.rollout, "COMMITTED")


def started_anew(kills: Kills, name: str) -> None:
    """What a start records of a crash, of a proven version."""
    kills.agent.kill()
    kills.grip.aim(name)
    kills.start(wait_s=0)
    kills.wait_dead(name)
    kills.seen = check_disk(kills.agent.state_dir, kills.seen)
    kills.settles(name, kills.factor, "", "COMMITTED")


# A crash in probation is a crash of the version: the device goes back and says so.
CASES: dict[str, Callable[[Kills, str], None]] = {
    "generation seen": good,
    "model OFFERED": good,
    "generation taken": good,
    "model DOWNLOADING": good,
    "model VERIFIED": good,
    "model STAGED": good,
    "model ACTIVATED": partial(good, told="ROLLED_BACK"),
    "model PROBATION": partial(good, told="ROLLED_BACK"),
    "model COMMITTED": good,
    "generation applied": good,
    "model ROLLING_BACK": slow_one,
    "model ROLLED_BACK": slow_one,
    "model REFUSED": refused,
    "model FAILED": failed,
    "model SUPERSEDED": superseded,
    "model WITHDRAWN": withdrawn,
    "model IDLE": damaged,
    KEPT: started_anew,
}


def check_all_killed(steps: frozenset[str], killed: set[str], journaled: set[str]) -> None:
    """Each step that there is was died at, and nothing was recorded that is none."""
    assert killed == steps, f"not killed at: {steps - killed}; no steps: {killed - steps}"
    assert journaled <= steps, f"recorded, but no step: {journaled - steps}"


@pytest.mark.slow
def test_killed_after_any_step_it_serves_and_settles(
    controller: ControllerWorld, agent: AgentProcess, tmp_path: Path
) -> None:
    kills = Kills(controller, agent, Grip(tmp_path), 1.0)
    kills.start()
    for name, case in CASES.items():
        case(kills, name)
    assert agent.stop() == 0
    check_disk(agent.state_dir, kills.seen)
    assert controller.events(agent.device_id, "device_quarantined") == []
    assert_no_gap(controller, agent)
    killed, journaled = (set(kills.grip.names(file)) for file in ("killed", "journaled"))
    check_all_killed(journaled_steps(), killed, journaled)


def test_negative_control_a_step_more_or_less_is_noticed() -> None:
    """Machines with another step, and with one less, are not those that the cases kill."""
    killed = set(CASES)

    def silent(state: ModelState, event: Event) -> Any:
        """One that never says that an order was superseded."""
        after, work = step(state, event)
        return after, tuple(i for i in work if getattr(i, "phase", None) != "SUPERSEDED")

    check_all_killed(journaled_steps(), killed, killed)
    with pytest.raises(AssertionError, match=r"no steps: .*SUPERSEDED"):
        check_all_killed(journaled_steps(silent), killed, killed)
    with pytest.raises(AssertionError, match=r"not killed at: .*STAGED"):
        check_all_killed(journaled_steps(), killed - {"model STAGED"}, killed)
    with pytest.raises(AssertionError, match=r"recorded, but no step: .*ladder"):
        check_all_killed(journaled_steps(), killed, killed | {"ladder rung"})


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
