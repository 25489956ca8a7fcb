"""Two roads to one controller: when one is open again, the other is tried soon. Real sockets."""

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import agent.link.mqtt
import agent.loop_session
from agent.clock import SystemClock
from agent.domain.capability import Capabilities
from agent.domain.ports import Identity
from agent.link.authority import Endpoint
from agent.link.backoff import Backoff
from agent.link.errors import LinkError, LinkFault
from agent.link.mqtt import MqttEvents, MqttLink, TlsFiles
from agent.link.seals import INLINE
from agent.loop_connection import Connection, ConnectionParts
from agent.loop_tell import Teller
from agent.store.identity import FileIdentityStore
from tests.support.link_server import LinkServer, Script, Trust
from tests.support.loop_world import BOOT, LoopWorld
from tests.support.wait import wait_for

# paho leaves the socket of a failed handshake to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CAPABILITIES = Capabilities("x86_64", "linux", "", "", ())


class Longest(random.Random):
    """Chance that always takes the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return b


def forever() -> Backoff:
    """Waits so long after a failure that only a hint can have brought the next try."""
    return Backoff(base_s=600.0, cap_s=600.0, chance=Longest())


class Door:
    """A listener that counts who knocks, and shuts the door again: a broker that is not well."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.knocks = 0
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with suppress(OSError):
            while True:
                other, _ = self._socket.accept()
                self.knocks += 1
                other.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


def identity_of(server: LinkServer, root: Path, mqtt_port: int) -> FileIdentityStore:
    mine = server.trust.device("dev-1")
    store = FileIdentityStore(root / "identity")
    keys = {key.key_id: key.public_key for key in server.trust.signer.public_keys()}
    store.keep_next(
        Identity(
            device_id="dev-1", project="default", certificate_pem=mine.issued.pem,
            key_pem=mine.key_pem, ca_pem=server.trust.authority.certificate_pem,
            signing_keys=keys, grpc_endpoint=server.grpc_endpoint,
            mqtt_endpoint=f"127.0.0.1:{mqtt_port}",
        )
    )  # fmt: skip
    store.promote()
    return store


def test_a_hint_ends_a_long_wait_and_only_a_hint_does(tmp_path: Path, door: Door) -> None:
    server = LinkServer(Trust.create())
    store = identity_of(server, tmp_path, door.port)
    ca_pem = server.trust.authority.certificate_pem
    told: list[str] = []
    link = MqttLink(
        "dev-1",
        lambda: Endpoint("127.0.0.1", door.port),
        lambda: TlsFiles(ca_pem, store.certificate_path(), store.key_path()),
        lambda _: b"",
        MqttEvents(lambda _: None, lambda _: None, lambda _, why: told.append(why)),
        forever(),
    )
    link.start()
    try:
        wait_for(lambda: told, 10, "the first try to fail")
        # The negative control: nobody knocks again by himself.
        with pytest.raises(AssertionError, match="a second knock"):
            wait_for(lambda: door.knocks > 1, 1, "a second knock")
        link.try_soon()
        wait_for(lambda: door.knocks > 1, 10, "a knock after the hint")
    finally:
        link.stop()
        server.stop()


@contextmanager
def connection(
    server: LinkServer, root: Path, door: Door
) -> Iterator[tuple[Connection, dict[str, Any]]]:
    shown: dict[str, Any] = {}
    world = LoopWorld(root / "state")
    store = identity_of(server, root, door.port)
    identity = store.current()
    assert identity is not None
    server.script.mqtt_endpoint = identity.mqtt_endpoint
    made = Connection(
        ConnectionParts(
            boot_id=BOOT, clock=SystemClock(), identities=store, identity=identity,
            spool=world.spool, loop=world.loop,
            teller=Teller(world.spool, SystemClock(), BOOT, lambda: None, lambda _: False),
            capabilities=lambda: CAPABILITIES, show=shown.update, poll_s=0.3,
            seals=INLINE,
        )
    )  # fmt: skip
    made.start()
    try:
        yield made, shown
    finally:
        made.stop()
        world.stop()


def test_the_broker_is_tried_when_the_controller_is_back(
    tmp_path: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.link.mqtt, "Backoff", lambda **_: forever())
    monkeypatch.setattr(agent.loop_session, "Backoff", lambda **_: Backoff(0.1, 0.2))
    server = LinkServer(Trust.create())
    with connection(server, tmp_path, door) as (_, shown):
        wait_for(lambda: shown.get("controller_state") == "connected", 10, "the controller")
        wait_for(lambda: door.knocks == 2, 10, "the first try and the one after the welcome")
        server.stop()
        wait_for(lambda: "does not answer" in shown["controller_state"], 10, "the outage")
        again = LinkServer(server.trust, Script(mqtt_endpoint=server.script.mqtt_endpoint),
                           server.port)  # fmt: skip
        wait_for(lambda: shown["controller_state"] == "connected", 10, "the controller again")
        wait_for(lambda: door.knocks == 3, 10, "a knock at the broker, soon after")
        again.stop()


PUT_OUT = "connection to the broker at 127.0.0.1:1 ended (Session taken over)"
CUT = "connection to the broker at 127.0.0.1:1 ended (Unspecified error)"


def come_and_go(made: Connection, times: int, why: str, put_out: bool) -> None:
    for _ in range(times):
        made._on_mqtt(True, "")
        made._on_mqtt(False, why)
        if put_out:
            made._on_turned_away()


def test_a_cause_for_which_it_is_put_out_is_said_once(
    tmp_path: Path, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "agent")
    server = LinkServer(Trust.create())
    with connection(server, tmp_path, door) as (made, shown):
        wait_for(lambda: shown.get("controller_state") == "connected", 10, "the controller")

        def said(what: str) -> int:
            return sum(what in record.getMessage() for record in caplog.records)

        come_and_go(made, 20, PUT_OUT, put_out=True)
        assert (said("connected to the broker"), said("taken over")) == (1, 1)
        # The negative control: a network that comes and goes is said every time.
        come_and_go(made, 3, CUT, put_out=False)
        assert said("Unspecified") == 3
        # Once the controller takes this device again, the next connection is news, and so is
        # what ends it.
        made._on_controller(LinkError("in quarantine", "", fault=LinkFault.DENIED))
        made._on_controller(None)
        before = said("connected to the broker")
        come_and_go(made, 2, PUT_OUT, put_out=True)
        assert (said("connected to the broker"), said("taken over")) == (before + 1, 2)
    server.stop()
