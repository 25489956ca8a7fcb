"""Another version of the protocol on either side: refused with both ranges, and serving goes on."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from agent.domain.capability import Capabilities
from agent.link.authority import Endpoint
from agent.link.channel import Credentials
from agent.link.client import ControllerClient
from agent.link.errors import LinkError, LinkFault
from controller.services import protocol
from controller.services.tokens import create_token
from lighterman.v1 import device_pb2
from tests.support.agent_world import AgentProcess, ControllerWorld, running_controller
from tests.support.gateway import DeviceClient, Running, running
from tests.support.link_server import LinkServer, Trust
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for

CAPABILITIES = Capabilities("x86_64", "linux", "", "", ())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("versions")) as started:
        yield started


@pytest.fixture(scope="module")
def device(home: Running) -> DeviceClient:
    return home.enrol("speaker", create_token(home.deps, home.ctx()).text)


def speak(monkeypatch: pytest.MonkeyPatch, low: int, high: int) -> None:
    """Another controller, as far as the protocol goes."""
    monkeypatch.setattr(protocol, "PROTOCOL_MIN", low)
    monkeypatch.setattr(protocol, "PROTOCOL_MAX", high)


def hello(device: DeviceClient, low: int, high: int) -> device_pb2.HelloResponse:
    request = device_pb2.HelloRequest(protocol_min=low, protocol_max=high, boot_id="1-a")
    answer: device_pb2.HelloResponse = device.api().Hello(request, timeout=10)
    return answer


@pytest.mark.parametrize(
    ("low", "high", "newer"), [(1, 2, "the agent"), (0, 0, "the agent"), (5, 9, "the controller")]
)
def test_a_hello_below_or_above_names_both_ranges_and_who_is_to_be_updated(
    home: Running,
    device: DeviceClient,
    monkeypatch: pytest.MonkeyPatch,
    low: int,
    high: int,
    newer: str,
) -> None:
    speak(monkeypatch, 3, 4)
    with pytest.raises(grpc.RpcError) as caught:
        hello(device, low, high)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == (
        f"no common protocol: the agent speaks {low} to {high}, the controller 3 to 4\n"
        f"update {newer}"
    )
    assert [hello(device, *fine).protocol for fine in ((1, 3), (4, 9), (1, 9))] == [3, 4, 4]


def test_reports_of_another_version_are_refused_as_a_whole(
    home: Running, device: DeviceClient
) -> None:
    hello(device, 1, 1)
    request = device_pb2.ReportRequest()
    for number, version in ((1, 1), (2, 7)):
        request.envelopes.add(protocol=version, boot_id="1-a", seq=number).event.kind = "boot"
    with pytest.raises(grpc.RpcError) as caught:
        device.api().Report(request, timeout=10)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (caught.value.details() or "").startswith("an envelope of protocol 7, the controller")
    request.envelopes[1].protocol = 1
    assert device.api().Report(request, timeout=10).seq == 2


def test_a_controller_that_chooses_a_version_nobody_offered_is_not_believed() -> None:
    server = LinkServer(Trust.create())
    mine = server.trust.device("dev-1")
    authority = server.trust.authority.certificate_pem
    client = ControllerClient(
        Endpoint("127.0.0.1", server.port), Credentials(authority, mine.issued.pem, mine.key_pem)
    )
    try:
        server.script.protocol = 9
        with pytest.raises(LinkError) as caught:
            client.hello("1-a", CAPABILITIES, 0)
        said = "the controller chose protocol 9, this agent speaks 1 to 1"
        assert (caught.value.message, caught.value.fault) == (said, LinkFault.REFUSED)
        assert "update" in caught.value.hint
        server.script.protocol = 1
        assert client.hello("1-a", CAPABILITIES, 0).protocol == 1
    finally:
        client.close()
        server.stop()


def bring(world: ControllerWorld, agent: AgentProcess) -> None:
    """Roll a version out that doubles what it gets."""
    data = scaled(2.0)
    world.publish("old-1", make_release("1.0.0", {"heavy": data}), "r-1", [data])
    wait_for(lambda: doubles(agent), 30, f"the version to answer\n{agent.tail()}")


def doubles(agent: AgentProcess) -> bool:
    try:
        return agent.infer(1.0, 1.0, 1.0, 1.0)[0] == 2.0
    except grpc.RpcError:
        return False


@pytest.mark.parametrize(("low", "high", "newer"), [(2, 3, "the agent"), (0, 0, "the controller")])
def test_an_agent_that_is_refused_goes_on_serving_and_says_why_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: int, high: int, newer: str
) -> None:
    said = f"no common protocol: the agent speaks 1 to 1, the controller {low} to {high}"
    with running_controller(tmp_path / "controller") as world:
        agent = AgentProcess(tmp_path / "agent", "old-1")
        assert agent.enrol(world.url, world.token()).returncode == 0
        agent.start()
        try:
            bring(world, agent)
            assert agent.command("doctor").returncode == 0  # the negative control
            world.stop()
            speak(monkeypatch, low, high)
            world.start()
            wait_for(lambda: refusal(agent) == said, 60, f"the refusal\n{agent.tail()}")
            assert doubles(agent)
            shown = agent.command("status")
            assert shown.returncode == 0
            assert said in shown.stdout
            assert f"           update {newer}\n" in shown.stdout
            doctor = agent.command("doctor")
            assert doctor.returncode == 1
            assert f"; the controller refuses it: {said}\n" in doctor.stdout
            assert f"update {newer}" in doctor.stdout
            assert f"WARNING {said}; update {newer}\n" in agent.log.read_text()
            assert doubles(agent)
        finally:
            assert agent.stop() == 0


def refusal(agent: AgentProcess) -> str:
    facts = agent.facts()
    return facts.controller_state if facts is not None else ""
