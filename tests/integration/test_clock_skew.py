"""A clock that is off by a year, on either side: devices serve on, and errors name the clock."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import controller.app
from controller.app_identity import ServerIdentity
from controller.errors import UnavailableError
from controller.trust.authority import Authority
from tests.support.agent_world import AgentProcess, Client, ControllerWorld
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for
from tests.support.world_invariants import check_agent, checked_controller

# The controller's own MQTT client meets the certificate of a wrong time in this process too, and
# paho leaves the sockets that TLS refused to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collected_here() -> Iterator[None]:
    """Collect them while the filter above holds: elsewhere they would be another test's fault."""
    yield
    gc.collect()


YEAR = timedelta(days=365)
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
WRONG = "one of the two clocks is wrong"
EARLY = "by this device's clock its certificate is not valid yet"
LATE = "by this device's clock its certificate has ended"


def clock_off(shift: timedelta) -> type:
    """The machine's clock, had it been set wrong."""

    class Off:
        def now(self) -> datetime:
            return datetime.now(UTC) + shift

        def monotonic(self) -> float:
            return time.monotonic()

    return Off


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda shift: monkeypatch.setattr(controller.app, "SystemClock", clock_off(shift))


def serving_agent(world: ControllerWorld, folder: Path) -> AgentProcess:
    """Enrolled, connected, and answering by a proven version."""
    agent = AgentProcess(folder / "agent", "dev-clock")
    assert agent.enrol(world.url, world.token()).returncode == 0
    agent.start()
    data = scaled(2.0)
    quick = {"min_inferences": 5, "min_s": 0.1, "max_s": 600}
    release = make_release("1.0.0", {"heavy": data}, probation=quick)
    world.publish("dev-clock", release, "r-1", [data])
    wait_for(lambda: "PROBATION" in world.states("dev-clock", "r-1"), 60, "the model to serve")
    with Client(agent):
        wait_for(lambda: "COMMITTED" in world.states("dev-clock", "r-1"), 60, "its commit")
    return agent


def status_with(agent: AgentProcess, words: str) -> str:
    """What `lighterman-agent status` shows, once these words are in it."""
    shown = agent.command("status").stdout
    return shown if words in shown else ""


def fleetctl(world: ControllerWorld) -> "subprocess.CompletedProcess[str]":
    context = str(world.settings.data_dir / "operator.json")
    return subprocess.run(
        [sys.executable, "-m", "controller.cli", "--context", context, "status"],
        env={**os.environ, "LIGHTERMAN_CONFIG_DIR": str(world.settings.data_dir / "config")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_controller_a_year_ahead_is_named_and_forgiven(tmp_path: Path, set_clock: Any) -> None:
    with checked_controller(tmp_path / "controller") as world:
        agent = serving_agent(world, tmp_path)
        try:
            world.stop()
            set_clock(YEAR)
            world.start()
            shown = wait_for(lambda: status_with(agent, WRONG), 60, "the device to see it")
            assert EARLY in shown
            assert "set the wrong one; what is installed is served meanwhile" in shown
            assert agent.infer()[0] == pytest.approx(2.0)
            late = AgentProcess(tmp_path / "late", "dev-late").enrol(world.url, world.token())
            assert late.returncode == 5
            assert f"does not answer ({EARLY})" in late.stderr
            assert WRONG in late.stderr
            said = fleetctl(world)
            assert said.returncode == 5
            assert "by this machine's clock its certificate is not valid yet" in said.stderr
            assert WRONG in said.stderr
            world.stop()
            set_clock(timedelta())
            world.start()
            wait_for(lambda: world.device("dev-clock").online, 90, "the device to be back")
            assert fleetctl(world).returncode == 0, "what was issued ahead of time is made anew"
        finally:
            assert agent.stop() == 0
        check_agent(world.settings.data_dir, agent)


def test_a_controller_behind_its_own_authority_does_not_start(
    tmp_path: Path, set_clock: Any
) -> None:
    with checked_controller(tmp_path / "controller") as world:
        world.stop()
        before = {p: p.read_bytes() for p in (tmp_path / "controller" / "trust").iterdir()}
        set_clock(-YEAR)
        with pytest.raises(UnavailableError, match="clock of this machine says") as caught:
            world.start()
        assert "set the clock; nothing was changed" in caught.value.lines
        assert {p: p.read_bytes() for p in (tmp_path / "controller" / "trust").iterdir()} == before
        set_clock(timedelta())
        world.start()
        assert fleetctl(world).returncode == 0


def test_a_controller_a_year_behind_is_named_by_devices(tmp_path: Path, set_clock: Any) -> None:
    set_clock(-2 * YEAR)
    with checked_controller(tmp_path / "controller") as world:
        token = world.token(ttl_s=3600.0)
        said = AgentProcess(tmp_path / "agent", "dev-1").enrol(world.url, token)
        assert said.returncode == 5
        assert f"does not answer ({LATE})" in said.stderr
        assert WRONG in said.stderr
        assert "certificate has ended" in fleetctl(world).stderr


def test_a_clock_that_was_set_right_gets_a_certificate_of_today() -> None:
    now = datetime.now(UTC)
    authority = Authority.create(now - YEAR)

    class Moved:
        ahead = YEAR

        def now(self) -> datetime:
            return now + self.ahead

        def monotonic(self) -> float:
            return 0.0

    clock = Moved()
    server = ServerIdentity(authority, clock, ["127.0.0.1"])
    refresh = server.refresher()
    assert server.current().issued.not_before > now
    assert refresh() is None
    clock.ahead = timedelta()
    assert refresh() is not None
    assert server.current().issued.not_before <= now


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: faketime)")
@pytest.mark.parametrize(("shift", "story"), [("-365d", EARLY), ("+365d", LATE)])
def test_a_device_a_year_off_serves_on_and_is_told(tmp_path: Path, shift: str, story: str) -> None:
    with checked_controller(tmp_path / "controller") as world:
        agent = serving_agent(world, tmp_path)
        try:
            assert agent.stop() == 0
            right = dict(agent._env)
            agent._env |= {
                "LD_PRELOAD": str(FAKETIME), "FAKETIME": shift, "DONT_FAKE_MONOTONIC": "1"
            }  # fmt: skip
            agent.start()
            assert agent.infer()[0] == pytest.approx(2.0)
            assert story in wait_for(lambda: status_with(agent, WRONG), 60, "it to be told")
            assert "this device's clock says" in agent.command("doctor").stdout
            other = AgentProcess(tmp_path / "new", "dev-new")
            other._env |= agent._env | {"LIGHTERMAN_STATE_DIR": str(tmp_path / "new")}
            refused = other.enrol(world.url, world.token())
            assert refused.returncode == 5
            assert story in refused.stderr
            assert WRONG in refused.stderr
            assert agent.infer()[0] == pytest.approx(2.0)
            assert agent.stop() == 0
            agent._env = right
            agent.start()
            wait_for(lambda: world.device("dev-clock").online, 60, "the device to be back")
            assert agent.infer()[0] == pytest.approx(2.0)
        finally:
            agent.stop()
        check_agent(world.settings.data_dir, agent)


def test_negative_control_another_authority_is_not_blamed_on_the_clock(tmp_path: Path) -> None:
    with checked_controller(tmp_path / "controller") as world:
        agent = AgentProcess(tmp_path / "agent", "dev-other")
        assert agent.enrol(world.url, world.token()).returncode == 0
        world.stop()
        (tmp_path / "controller" / "trust" / "authority.pem").unlink()
        world.start()
        agent.start()
        try:
            wait_for(
                lambda: "not from the authority" in agent.command("status").stdout, 60, "the story"
            )
            assert "clock" not in agent.command("status").stdout
        finally:
            agent.stop()
