"""Who does not answer at all is said to be silent, not another controller; who is slow is heard.

A stopped process takes connections (the kernel does that for it) and says nothing: so does a
listening socket that nobody reads.
"""

import socket
from collections.abc import Iterator

import pytest

import agent.link.channel
import controller.cli.connection
from agent.link.authority import Endpoint, find_authority
from agent.link.channel import Credentials
from agent.link.client import ControllerClient
from agent.link.errors import EnrolError, LinkError, LinkFault
from controller.cli.connection import Connection
from controller.cli.contexts import OperatorContext
from controller.cli.problem import EXIT_UNREACHABLE, CliError
from tests.proxy import Faults, Proxy
from tests.support.link_server import LinkServer, Trust


@pytest.fixture(scope="module")
def trust() -> Trust:
    return Trust.create()


@pytest.fixture
def server(trust: Trust) -> Iterator[LinkServer]:
    made = LinkServer(trust)
    yield made
    made.stop()


@pytest.fixture
def frozen() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def credentials(trust: Trust) -> Credentials:
    device = trust.device("dev-1")
    return Credentials(trust.authority.certificate_pem, device.issued.pem, device.key_pem)


def asked(trust: Trust, port: int, call_s: float) -> LinkError:
    client = ControllerClient(Endpoint("127.0.0.1", port), credentials(trust), call_s)
    try:
        with pytest.raises(LinkError) as caught:
            client.get_desired(0)
    finally:
        client.close()
    return caught.value


def short_patience(monkeypatch: pytest.MonkeyPatch, connect_ms: int) -> None:
    name = "grpc.min_reconnect_backoff_ms"
    kept = [one for one in agent.link.channel._OPTIONS if one[0] != name]
    monkeypatch.setattr(agent.link.channel, "_OPTIONS", [*kept, (name, connect_ms)])


@pytest.mark.parametrize(("connect_ms", "call_s"), [(10_000, 0.5), (300, 5.0)])
def test_to_an_agent_a_frozen_controller_gives_no_answer(
    trust: Trust, frozen: int, monkeypatch: pytest.MonkeyPatch, connect_ms: int, call_s: float
) -> None:
    """Whichever ends first, the call or the attempt to connect."""
    short_patience(monkeypatch, connect_ms)
    error = asked(trust, frozen, call_s)
    said = f"controller at 127.0.0.1:{frozen} does not answer (no answer in time)"
    assert (error.message, error.hint, error.fault) == (said, "", LinkFault.UNREACHABLE)
    with pytest.raises(EnrolError, match="no answer in time"):
        find_authority(Endpoint("127.0.0.1", frozen), "0" * 64, 0.3)


def test_a_half_open_line_is_no_answer(trust: Trust, server: LinkServer) -> None:
    with Proxy("127.0.0.1", server.port) as proxy:
        proxy.set(Faults(half_open=True))
        assert "(no answer in time)" in asked(trust, proxy.port, 0.5).message


def answers(trust: Trust, port: int) -> bool:
    client = ControllerClient(Endpoint("127.0.0.1", port), credentials(trust), 10.0)
    try:
        client.get_desired(0)
    except LinkError as error:
        return error.fault is not LinkFault.UNREACHABLE
    finally:
        client.close()
    return True


def test_a_handshake_may_take_seconds(
    trust: Trust, server: LinkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut after 0.2 to 2 s: over a slow link no agent ever got through."""
    server.set_manifest({"generation": 1})
    with Proxy("127.0.0.1", server.port) as proxy:
        proxy.set(Faults(delay_s=0.6))
        assert answers(trust, proxy.port)
        short_patience(monkeypatch, 200)  # the negative control: as it was
        assert not answers(trust, proxy.port)


def refused(trust: Trust, port: int) -> CliError:
    person = trust.device("ana")
    context = OperatorContext(
        name="factory",
        controller=f"127.0.0.1:{port}",
        project="default",
        ca_pem=trust.authority.certificate_pem.decode(),
        certificate_pem=person.issued.pem.decode(),
        key_pem=person.key_pem.decode(),
    )
    connection = Connection(context)
    with pytest.raises(CliError) as caught:
        _ = connection.stub
    return caught.value


def test_to_a_person_a_frozen_controller_is_silent_and_no_other_one(
    trust: Trust, server: LinkServer, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CONNECT_TRIES", 1), ("CONNECT_TRY_S", 0.3), ("LOOK_S", 1.0)):
        monkeypatch.setattr(controller.cli.connection, name, value)
    silent = "nothing answered there in 1 s: the controller hangs or is overloaded"
    error = refused(trust, frozen)
    assert error.exit_code == EXIT_UNREACHABLE
    assert silent in error.text
    with Proxy("127.0.0.1", server.port) as proxy:
        proxy.set(Faults(half_open=True))
        assert silent in refused(trust, proxy.port).text
    # The negative controls: who speaks is judged by what it says.
    assert "TLS fails: another controller" in refused(Trust.create(), server.port).text
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = int(gone.getsockname()[1])
    assert "connection refused" in refused(trust, closed).text
