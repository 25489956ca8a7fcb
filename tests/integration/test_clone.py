"""A copied state folder: two agents with one certificate at one real controller and broker."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import agent.link.mqtt
from agent.link.authority import parse_endpoint
from agent.link.backoff import Backoff
from agent.link.mqtt import MqttEvents, MqttLink, TlsFiles
from controller.services.devices import accept_device
from lighterman.v1 import fleet_pb2
from tests.support.agent_world import AgentProcess, Client, ControllerWorld, running_controller
from tests.support.gateway import Running, running
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for

PROBATION = {"min_inferences": 10, "min_s": 0.2, "max_s": 60}
ROUNDS = 6


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[ControllerWorld]:
    with running_controller(tmp_path / "controller", presence_grace_s=1.0) as world:
        yield world


@pytest.fixture
def original(controller: ControllerWorld, tmp_path: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(tmp_path / "agent")
    done = made.enrol(controller.url, controller.token())
    assert done.returncode == 0, done.stderr
    yield made.start()
    made.stop()


@pytest.fixture
def copy(original: AgentProcess) -> Iterator[AgentProcess]:
    """The same folder elsewhere, not started yet."""
    made = AgentProcess(original.state_dir.with_name("copy"))
    yield made
    if made.process is not None:
        made.stop()


def answers(agent: AgentProcess) -> list[float]:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)
    except grpc.RpcError:
        return []


def state(controller: ControllerWorld) -> str:
    return str(controller.device("dev-1").state)


def test_a_copied_device_is_put_aside_serves_on_and_comes_back_alone(
    controller: ControllerWorld, original: AgentProcess, copy: AgentProcess
) -> None:
    data = scaled(2.0)
    release = make_release("1.0.0", {"heavy": data}, probation=PROBATION)
    generation = controller.publish("dev-1", release, "r-1", [data])
    wait_for(lambda: answers(original), 30, "the model to answer")
    with Client(original) as client:
        applied = "the version to be applied"
        wait_for(lambda: controller.device("dev-1").applied_generation == generation, 30, applied)
        shutil.copytree(original.state_dir, copy.state_dir, ignore=shutil.ignore_patterns("lock"))
        copy.start()
        wait_for(lambda: state(controller) == "QUARANTINED", 30, "the quarantine")
        (told,) = controller.events("dev-1", "device_quarantined")
        assert "two holders of one identity" in told.reason
        # Both are told by the controller, and neither stops to serve.
        for one in (original, copy):
            wait_for(lambda one=one: "in quarantine" in one.tail(), 30, "it to be told")  # type: ignore[misc]
        assert copy.infer(1.0, 1.0, 1.0, 1.0) == [2.0] * 4
        copy.stop()
        accept_device(controller.deps, controller.ctx(), "dev-1")
        again = controller.publish(
            "dev-1", make_release("1.1.0", {"heavy": data}, probation=PROBATION), "r-2", [data]
        )
        wait_for(lambda: controller.device("dev-1").applied_generation == again, 60,
                 f"the original to be back\n{original.tail()}")  # fmt: skip
    assert client.failures == []
    assert state(controller) == "ACTIVE"
    assert len(controller.events("dev-1", "device_quarantined")) == 1


# -- at the broker ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("clone")) as started:
        yield started


def _takeovers(home: Running, folder: Path, name: str) -> tuple[int, int]:
    """Brief connections in a row of two links of one name, once they met `ROUNDS` times."""
    made = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10)
    device = home.enrol(name, made.token)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(device.context.certificate_pem)
    key.write_bytes(device.context.key_pem)
    files = TlsFiles(device.context.ca_pem, str(certificate), str(key))
    ups: list[str] = []

    def link(which: str, brief: Backoff) -> MqttLink:
        def connected(up: bool, _: str) -> None:
            if up:
                ups.append(which)

        return MqttLink(
            name, lambda: parse_endpoint(device.mqtt_endpoint), lambda: files, lambda _: b"",
            MqttEvents(lambda _: None, lambda _: None, connected), Backoff(0.01, 0.2), brief,
        )  # fmt: skip

    briefs = [Backoff(base_s=0.01, cap_s=0.2) for _ in range(2)]
    links = [link(which, brief) for which, brief in zip("ab", briefs, strict=True)]
    for one in links:
        one.start()
    try:
        wait_for(lambda: min(ups.count("a"), ups.count("b")) >= ROUNDS, 60, "them to meet")
        return briefs[0].tries, briefs[1].tries
    finally:
        for one in links:
            one.stop()


def test_two_of_one_name_wait_longer_each_time(home: Running, tmp_path: Path) -> None:
    assert min(_takeovers(home, tmp_path, "twins")) >= ROUNDS - 2


def test_negative_control_whoever_was_up_tries_again_at_once(
    home: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.link.mqtt, "STEADY_S", 0.0)
    assert max(_takeovers(home, tmp_path, "hasty-twins")) <= 2
