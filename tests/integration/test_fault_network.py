"""Partitions and bad links between an agent and its controller: it serves, converges, tells once.

Real controller, Mosquitto, TLS and agent process; both roads lead through a seeded relay. Each test
ends with the same claims: no request failed, every report was stored once, nobody is quarantined;
and all of them together with the invariants, on the device's disk and in the database.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from examples.fleet.ports import free_ports
from tests.proxy import Direction, Door, Faults
from tests.support.agent_world import AgentProcess, Client, ControllerWorld
from tests.support.roads import Roads, bad_network
from tests.support.serving import heavy_file, make_release, products_for, scaled, slow
from tests.support.wait import wait_for
from tests.support.world_invariants import check_agent, checked_controller

QUICK = {"min_inferences": 5, "min_s": 0.2, "max_s": 600}
LONG = {"min_inferences": 10, "min_s": 3.0, "max_s": 600}
PROVEN = ["OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION", "COMMITTED"]
RETURNED = [*PROVEN[:-1], "ROLLING_BACK", "ROLLED_BACK"]
# How long the controller is away; a true minute where somebody has the time.
AWAY_S = float(os.environ.get("FAULT_AWAY_S", "5"))
# After an outage roads are tried again within a minute, by chance.
BACK_S = 90.0
FILE_BYTES = 4_000_000
CUT_AT = 1_500_003


@dataclass(slots=True)
class World:
    """One controller, one agent, the roads between, and what was ordered."""

    controller: ControllerWorld
    agent: AgentProcess
    roads: Roads
    number: int = 0
    factor: float = 1.0

    def order(self, data: bytes, factor: float, probation: Any = None, **policy: Any) -> str:
        """The next version; gives its rollout."""
        self.number += 1
        version, rollout = f"1.{self.number}.0", f"r-{self.agent.device_id}-{self.number}"
        release = make_release(version, {"heavy": data}, probation=probation or QUICK, **policy)
        self.controller.publish(self.agent.device_id, release, rollout, [data])
        self.factor = factor
        return rollout

    def next_factor(self) -> float:
        """A number that no version before answered with."""
        return 2.0 + self.number

    def states(self, rollout: str) -> list[str]:
        """What is stored of it."""
        return self.controller.states(self.agent.device_id, rollout)

    def wait_states(self, rollout: str, wanted: list[str], timeout_s: float = BACK_S) -> None:
        """Until its last report is stored, and then exactly these ones."""
        wait_for(
            lambda: self.states(rollout)[-1:] == wanted[-1:], timeout_s,
            f"{wanted[-1]} of {rollout}, {self.states(rollout)} are stored\n{self.agent.tail()}",
        )  # fmt: skip
        assert self.states(rollout) == wanted

    def answers_with(self, factor: float, timeout_s: float = 60.0) -> None:
        """Until a version answers."""
        wait_for(lambda: answer(self.agent) == factor, timeout_s,
                 f"{factor} to be answered\n{self.agent.tail()}")  # fmt: skip

    def unacknowledged(self) -> int:
        """Reports that wait on the device."""
        facts = self.agent.facts()
        return facts.unacknowledged if facts else -1

    def check(self, client: Client) -> None:
        """No request failed, nothing waits, each report is stored once and in order (I6, I8)."""
        assert client.failures == []
        wait_for(lambda: self.unacknowledged() == 0, BACK_S, f"the spool\n{self.agent.tail()}")
        device = self.agent.device_id
        assert self.controller.events(device, "device_quarantined") == []
        numbers: dict[str, list[int]] = {}
        for event in self.controller.events(device):
            if event.boot_id and event.seq:
                numbers.setdefault(event.boot_id, []).append(event.seq)
        for boot, seen in numbers.items():
            assert sorted(seen) == list(range(1, len(seen) + 1)), f"{boot}: {sorted(seen)}"
        assert answer(self.agent) == self.factor


def answer(agent: AgentProcess) -> float | None:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0]
    except grpc.RpcError:
        return None


def make_world(controller: ControllerWorld, folder: Path, name: str, **settings: str) -> World:
    """An agent that answers with a committed first version, behind roads of its own."""
    agent = AgentProcess(
        folder / name, name, LIGHTERMAN_SERVE_GRPC=f"127.0.0.1:{free_ports(1)[0]}", **settings
    )
    done = agent.enrol(controller.url, controller.token())
    assert done.returncode == 0, done.stderr
    roads = Roads.lay(agent.state_dir, seed=20261124)
    agent._env["ROUTES"] = roads.routes
    agent.start(command=("-m", "tests.support.routed_agent", "run"))
    world = World(controller, agent, roads)
    rollout = world.order(scaled(2.0), 2.0)
    world.answers_with(2.0)
    with Client(agent):
        world.wait_states(rollout, PROVEN)
    assert all(proxy.connections for proxy in roads.both), "both roads lead through the relays"
    return world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def controller(folder: Path) -> Iterator[ControllerWorld]:
    with checked_controller(folder / "controller", presence_grace_s=1.0) as world:
        yield world


@pytest.fixture(scope="module")
def shared(controller: ControllerWorld, folder: Path) -> Iterator[World]:
    world = make_world(controller, folder, "dev-1")
    yield world
    world.agent.stop()
    world.roads.close()
    check_agent(controller.settings.data_dir, world.agent)


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    yield shared
    shared.roads.restore()


def partitioned(world: World) -> None:
    """The roads are cut in mid-probation; the version is committed all the same; they come back."""
    rollout = world.order(scaled(world.next_factor()), world.next_factor(), LONG)
    with Client(world.agent) as client:
        wait_for(lambda: "PROBATION" in world.states(rollout), 60, "probation")
        world.roads.cut()
        wait_for(lambda: since_commit(world.agent, rollout), 30, "a commit in the partition")
        assert world.states(rollout) == PROVEN[:-1], "nothing gets through"
        # A disk that others use takes its time between the commit and the report of it.
        wait_for(lambda: world.unacknowledged() > 0, 20, "the report of it to be kept")
        world.roads.restore()
        world.wait_states(rollout, PROVEN)
    world.check(client)


def since_commit(agent: AgentProcess, rollout: str) -> str:
    """What its log says from this commit on; its facts may still be those of the version before."""
    _, found, after = agent.tail().rpartition(f" of {rollout}: COMMITTED")
    return found and found + after


@pytest.mark.slow
def test_a_partition_costs_no_request_and_no_report(world: World) -> None:
    partitioned(world)


@pytest.mark.slow
def test_negative_control_an_agent_that_drops_what_it_sent(
    controller: ControllerWorld, folder: Path
) -> None:
    careless = make_world(controller, folder, "careless", BREAK="drops-reports")
    try:
        rollout = careless.order(scaled(9.0), 9.0, LONG)
        with Client(careless.agent):
            wait_for(lambda: "PROBATION" in careless.states(rollout), 60, "probation")
            # Half open: what is sent is taken by the socket and reaches nobody.
            careless.roads.set(Faults(half_open=True))
            wait_for(lambda: "dropped" in since_commit(careless.agent, rollout), 20, "the loss")
            careless.roads.cut()
            careless.roads.restore()
            # How its orders stand is told anew; what it dropped stays on record as a gap.
            careless.wait_states(rollout, PROVEN)
        (gap,) = controller.events("careless", "reports_forgotten")
        assert "were acknowledged and are not stored" in gap.reason
    finally:
        careless.agent.stop()
        careless.roads.close()


@pytest.mark.slow
def test_a_door_that_takes_and_closes_is_a_partition_too(world: World) -> None:
    rollout = world.order(scaled(world.next_factor()), world.next_factor(), LONG)
    with Client(world.agent) as client:
        wait_for(lambda: "PROBATION" in world.states(rollout), 60, "probation")
        world.roads.cut(Door.CLOSE)
        wait_for(lambda: since_commit(world.agent, rollout), 30, "a commit in the partition")
        world.roads.restore()
        world.wait_states(rollout, PROVEN)
    world.check(client)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["both", "mqtt"])
def test_half_open_roads_that_later_break(world: World, which: str) -> None:
    """Nothing passes and nobody is told; with the broker's road alone, reports take the other."""
    roads = world.roads.both if which == "both" else (world.roads.mqtt,)
    rollout = world.order(scaled(world.next_factor()), world.next_factor(), LONG)
    with Client(world.agent) as client:
        wait_for(lambda: "PROBATION" in world.states(rollout), 60, "probation")
        for proxy in roads:
            proxy.set(Faults(half_open=True))
        wait_for(lambda: since_commit(world.agent, rollout), 30, "a commit behind a dead road")
        if which == "mqtt":
            world.wait_states(rollout, PROVEN, 60)
        for proxy in roads:
            proxy.reset()
        world.roads.restore()
        world.wait_states(rollout, PROVEN)
    world.check(client)


def held_bytes(world: World) -> list[int]:
    """Sizes of the partial file as it was seen, the newest last."""
    partial = world.agent.state_dir / "blobs" / "partial"
    with contextlib.suppress(FileNotFoundError):
        return [path.stat().st_size for path in partial.iterdir()]
    return []


def grows(world: World, held: list[int]) -> bool:
    """What is held of the download never gets less; empties once the file is whole."""
    now = held_bytes(world)
    if now:
        assert now[-1] >= max(held, default=0), f"{now[-1]} bytes are held after {held}"
        held[:] = now
    return True


def download_with_cuts(world: World) -> int:
    """A version whose download is cut every 1.5 MB; gives the bytes that came down this road."""
    factor = world.next_factor()
    data = heavy_file(factor, FILE_BYTES, world.number)
    before = world.roads.grpc.passed_bytes(Direction.DOWN)
    with bad_network(world.roads, Faults(cut_after_bytes=CUT_AT), Direction.DOWN):
        # Connections that are open have not passed that much yet: the relay counts from now.
        world.roads.grpc.reset()
        rollout = world.order(data, factor)
        with Client(world.agent) as client:
            held = held_bytes(world)
            wait_for(lambda: grows(world, held) and world.states(rollout)[-1:] == PROVEN[-1:], 120,
                     f"the download\n{world.agent.tail()}")  # fmt: skip
            world.wait_states(rollout, PROVEN)
        world.check(client)
    return world.roads.grpc.passed_bytes(Direction.DOWN) - before


@pytest.mark.slow
def test_a_download_cut_mid_byte_goes_on_at_the_byte(world: World) -> None:
    connections = world.roads.grpc.connections
    came = download_with_cuts(world)
    assert world.roads.grpc.connections - connections >= FILE_BYTES // CUT_AT + 1
    # Each cut costs a handshake and what was under way: read from the wire, not by the agent yet.
    assert FILE_BYTES < came < 1.6 * FILE_BYTES, f"{came} bytes for {FILE_BYTES}"


@pytest.mark.slow
def test_negative_control_a_download_that_begins_anew_never_ends(
    controller: ControllerWorld, folder: Path
) -> None:
    world = make_world(controller, folder, "forgetful", BREAK="forgets-partials")
    data = heavy_file(9.0, FILE_BYTES, 99)
    try:
        world.roads.grpc.set(Faults(cut_after_bytes=CUT_AT), Direction.DOWN)
        world.roads.grpc.reset()
        world.order(data, 9.0)
        with pytest.raises(AssertionError, match=r"9\.0 to be answered"):
            world.answers_with(9.0, 20)
        assert world.roads.grpc.passed_bytes(Direction.DOWN) > 2 * CUT_AT
    finally:
        world.agent.stop()
        world.roads.close()


@pytest.mark.slow
def test_a_narrow_road_brings_a_version_all_the_same(world: World) -> None:
    factor = world.next_factor()
    data = heavy_file(factor, 1_500_000, world.number)
    with bad_network(world.roads, Faults(bytes_per_s=300_000)), Client(world.agent) as client:
        rollout = world.order(data, factor)
        world.wait_states(rollout, PROVEN, 60)
    world.check(client)


@pytest.mark.slow
def test_a_slow_uneven_road_brings_one_up_and_a_bad_one_back(world: World) -> None:
    with (
        bad_network(world.roads, Faults(delay_s=0.15, jitter_s=0.15)),
        Client(world.agent) as client,
    ):
        rollout = world.order(scaled(world.next_factor()), world.next_factor())
        world.wait_states(rollout, PROVEN, 60)
        good = world.factor
        bad = world.order(slow(50.0, products_for(0.05)), good, LONG, slow_threshold_ms=25)
        world.wait_states(bad, RETURNED, 60)
    world.check(client)


@pytest.mark.slow
def test_a_controller_away_for_a_while_hears_everything_once(world: World) -> None:
    """One version is committed and one is left while it is away (FAULT_AWAY_S seconds at least)."""
    good = world.order(scaled(world.next_factor()), world.next_factor(), LONG)
    with Client(world.agent) as client:
        wait_for(lambda: "PROBATION" in world.states(good), 60, "probation")
        world.controller.stop()
        served = len(client.answers)
        wait_for(lambda: since_commit(world.agent, good), 30, "a commit")
        assert client._stop.wait(AWAY_S) is False
        assert len(client.answers) > served
        assert world.unacknowledged() > 0
        world.controller.start()
        world.wait_states(good, PROVEN)
    world.check(client)
    wait_for(lambda: world.controller.device("dev-1").online, BACK_S, "presence")


def kill_broker(world: World) -> int:
    """kill -9 of the supervised Mosquitto; gives its process id."""
    path = world.controller.settings.data_dir / "run" / "broker" / "mosquitto.pid"
    pid = int(path.read_text())
    os.kill(pid, 9)
    return pid


@pytest.mark.slow
def test_a_killed_broker_comes_back_and_nothing_is_lost(world: World) -> None:
    rollout = world.order(scaled(world.next_factor()), world.next_factor(), LONG)
    with Client(world.agent) as client:
        wait_for(lambda: "PROBATION" in world.states(rollout), 60, "probation")
        first = kill_broker(world)
        world.wait_states(rollout, PROVEN)
        path = world.controller.settings.data_dir / "run" / "broker" / "mosquitto.pid"
        wait_for(lambda: int(path.read_text()) != first, 30, "another broker")
        # The doorbell was in the broker that died: a new order still reaches the device.
        rollout = world.order(scaled(world.next_factor()), world.next_factor())
        world.wait_states(rollout, PROVEN)
        wait_for(lambda: world.controller.device("dev-1").online, BACK_S, "presence")
    world.check(client)
