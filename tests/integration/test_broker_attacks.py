"""Holders of valid certificates attack the real broker. What arrives is asserted, no SUBACK."""

import gc
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.clock import SystemClock
from controller.mqtt.broker import Broker
from controller.mqtt.broker_config import BrokerLimits, render_acl, render_config
from controller.mqtt.client import take_over, tls_context
from controller.trust.authority import Authority, read_certificate
from controller.trust.names import Role, Subject
from examples.fleet.ports import free_port
from tests.support.gateway import Context, Mqtt, broker_files, client_context, identity
from tests.support.wait import wait_for

MINE, VICTIM = "mallory", "victim"
UP = f"lighterman/v1/device/{VICTIM}/up/report"
DOWN = f"lighterman/v1/device/{VICTIM}/down/desired"
FEED = "lighterman/v1/feed/default/device/victim/health"
VERSIONS = [pytest.param(4, id="3.1.1"), pytest.param(5, id="5")]


@dataclass(slots=True)
class Place:
    """A broker with the product's own configuration, and clients that are closed at the end."""

    broker: Broker
    authority: Authority
    folder: Path
    clients: list[Mqtt] = field(default_factory=list)

    def tls(self, role: Role, name: str) -> ssl.SSLContext:
        return client_context(self.folder, identity(self.authority, role, name))

    def join(self, role: Role, name: str, **more: object) -> Mqtt:
        client = Mqtt(self.tls(role, name), **more)  # type: ignore[arg-type]
        self.clients.append(client)
        assert client.open(self.broker.port), client.reasons
        return client

    def flush(self, listener: Mqtt, role: Role, name: str, topic: str) -> None:
        """Wait until a message that was sent after the attack has arrived: all before it has."""
        sender = self.join(role, name)
        sender.publish(topic, b"flush")
        wait_for(lambda: (topic, b"flush") in list(listener.arrived.queue), 20, "the flush")


@contextmanager
def started(
    folder: Path, limits: BrokerLimits | None = None, broker_class: type[Broker] = Broker
) -> Iterator[Place]:
    authority = Authority.create(datetime.now(UTC))
    files = broker_files(authority, render_acl(["dash"]))
    broker = broker_class(folder / "broker", "127.0.0.1", free_port(), SystemClock(), files, limits)
    broker.start()
    place = Place(broker, authority, folder)
    try:
        yield place
    finally:
        for client in place.clients:
            client.close()
        broker.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with started(tmp_path_factory.mktemp("attacks")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def close_clients(place: Place) -> Iterator[None]:
    yield
    for client in place.clients:
        client.close()
    place.clients.clear()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "listen",
    [
        "#",
        "+/#",
        "lighterman/#",
        "lighterman/v1/#",
        "lighterman/v1/device/#",
        "lighterman/v1/device/+/up/#",
        "lighterman/v1/device/+/down/#",
        f"lighterman/v1/device/{VICTIM}/#",
        f"lighterman/v1/device/{VICTIM}/down/desired",
        "lighterman/v1/device/+/+/+",
        "lighterman/v1/feed/#",
        "lighterman/v1/feed/+/device/+/health",
        f"$share/g/{DOWN}",
        "$share/g/lighterman/v1/#",
        "$SYS/#",
        "$SYS/broker/clients/connected",
    ],
)
def test_a_device_hears_nothing_of_others(place: Place, listen: str, version: int) -> None:
    mallory = place.join(Role.DEVICE, MINE, version=version)
    mallory.subscribe(listen)
    mallory.subscribe(f"lighterman/v1/device/{MINE}/down/ack")
    controller = place.join(Role.CONTROLLER, "controller")
    controller.publish(DOWN, b"secret", retain=True)
    controller.publish(FEED, b"secret", retain=True)
    place.join(Role.DEVICE, VICTIM).publish(UP, b"secret")
    controller.publish(f"lighterman/v1/device/{MINE}/down/ack", b"mine")
    wait_for(lambda: mallory.topics(), 20, "what is mallory's own")
    assert {payload for _, payload in list(mallory.arrived.queue)} == {b"mine"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "topic",
    [
        UP,
        DOWN,
        f"lighterman/v1/device/{VICTIM}/up/presence",
        f"lighterman/v1/device/{VICTIM}/down/ack",
        f"lighterman/v1/device/{MINE}/down/desired",
        f"lighterman/v1/device/{MINE}/up/other",
        f"lighterman/v1/device/{MINE}/up/report/deeper",
        f"lighterman/v1/device/{MINE}/../{VICTIM}/up/report",
        f"lighterman/v1/device//{MINE}/up/report",
        f"lighterman/v1/device/{MINE.upper()}/up/report",
        FEED,
        "lighterman/v1/group/g1/down/desired",
        "lighterman/v2/anything",
        "elsewhere",
    ],
)
def test_a_device_is_not_heard_where_it_may_not_speak(
    place: Place, topic: str, version: int
) -> None:
    controller = place.join(Role.CONTROLLER, "controller")
    controller.subscribe("#", "lighterman/v1/#")
    mallory = place.join(Role.DEVICE, MINE, version=version)
    for retain in (False, True):
        mallory.publish(topic, b"poison", retain=retain)
    place.flush(controller, Role.DEVICE, MINE, f"lighterman/v1/device/{MINE}/up/event")
    assert b"poison" not in [payload for _, payload in list(controller.arrived.queue)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_will_on_a_foreign_topic_never_speaks(place: Place, version: int) -> None:
    controller = place.join(Role.CONTROLLER, "controller")
    controller.subscribe("lighterman/v1/#")
    mallory = Mqtt(place.tls(Role.DEVICE, MINE), version=version, will=(UP, b"poison"))
    if mallory.open(place.broker.port):
        sock = mallory.client.socket()
        assert sock is not None
        mallory.client.loop_stop()
        sock.close()  # without a goodbye: the broker would speak the will now
    place.clients.append(mallory)
    place.flush(controller, Role.DEVICE, MINE, f"lighterman/v1/device/{MINE}/up/event")
    assert b"poison" not in [payload for _, payload in list(controller.arrived.queue)]


@pytest.mark.parametrize(
    ("role", "name"), [(Role.CONSUMER, "dash"), (Role.OPERATOR, "ana"), (Role.WORKER, "w1")]
)
def test_people_and_programs_cannot_speak_for_devices(place: Place, role: Role, name: str) -> None:
    controller = place.join(Role.CONTROLLER, "controller")
    controller.subscribe("lighterman/v1/#")
    rogue = place.join(role, name)
    for topic in (UP, DOWN, FEED, f"lighterman/v1/feed/default/device/{name}/health"):
        rogue.publish(topic, b"poison", retain=True)
    place.flush(controller, Role.DEVICE, MINE, f"lighterman/v1/device/{MINE}/up/event")
    assert b"poison" not in [payload for _, payload in list(controller.arrived.queue)]


def test_a_consumer_reads_the_feed_and_nothing_else(place: Place) -> None:
    dash = place.join(Role.CONSUMER, "dash")
    dash.subscribe("#", "lighterman/v1/#", "lighterman/v1/feed/#", "lighterman/v1/device/+/down/#")
    stranger = place.join(Role.CONSUMER, "not-listed")
    stranger.subscribe("lighterman/v1/feed/#", f"lighterman/v1/device/{MINE}/down/ack")
    controller = place.join(Role.CONTROLLER, "controller")
    controller.publish(DOWN, b"secret")
    controller.publish(FEED, b"health")
    wait_for(lambda: FEED in dash.topics(), 20, "the feed")
    assert set(dash.topics()) == {FEED}
    assert stranger.topics() == []


def test_nobody_gets_in_without_a_certificate_of_this_authority(place: Place) -> None:
    ca = place.authority.certificate_pem.decode()
    bare = ssl.create_default_context(cadata=ca)
    assert not Mqtt(bare).open(place.broker.port)
    foreign = identity(Authority.create(datetime.now(UTC)), Role.DEVICE, MINE)
    mixed = Context("", place.authority.certificate_pem, foreign.certificate_pem, foreign.key_pem)
    assert not Mqtt(client_context(place.folder, mixed)).open(place.broker.port)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    expired = identity(place.authority, Role.DEVICE, MINE, long_ago)
    assert not Mqtt(client_context(place.folder, expired)).open(place.broker.port)
    server = identity(place.authority, Role.SERVER, "server")
    assert not Mqtt(client_context(place.folder, server)).open(place.broker.port)


def test_too_large_a_message_ends_only_its_sender(place: Place) -> None:
    controller = place.join(Role.CONTROLLER, "controller")
    controller.subscribe("lighterman/v1/#")
    mallory = place.join(Role.DEVICE, MINE)
    topic = f"lighterman/v1/device/{MINE}/up/report"
    mallory.client.publish(topic, b"x" * 300_000, qos=1)
    wait_for(mallory.lost.is_set, 20, "the broker to end the session")
    place.flush(controller, Role.DEVICE, MINE, f"lighterman/v1/device/{MINE}/up/event")
    assert topic not in controller.topics()


def takeover_steals(place: Place, version: int) -> bool:
    """Whether mallory gets messages that were queued for the victim, or ends its session."""
    victim = place.join(Role.DEVICE, VICTIM, client_id=VICTIM, clean=False)
    victim.subscribe(DOWN)
    controller = place.join(Role.CONTROLLER, "controller")
    controller.publish(DOWN, b"ready")
    wait_for(lambda: victim.topics(), 20, "the victim's subscription")
    mallory = Mqtt(place.tls(Role.DEVICE, MINE), client_id=VICTIM, version=version, clean=True)
    place.clients.append(mallory)
    mallory.open(place.broker.port)
    before = len(victim.topics())
    controller.publish(DOWN, b"order")
    witness = place.join(Role.CONTROLLER, "controller2", client_id="witness")
    witness.close()
    if victim.lost.is_set():
        return True
    wait_for(lambda: victim.lost.is_set() or len(victim.topics()) > before, 20, "the order")
    return victim.lost.is_set()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_id_takes_nobodys_session(place: Place, version: int) -> None:
    assert not takeover_steals(place, version)


def test_negative_control_without_the_binding_a_session_is_stolen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbound(host: str, port: int, user: str, limits: BrokerLimits) -> str:
        config = render_config(host, port, user, limits)
        assert "use_username_as_clientid true\n" in config
        return config.replace("use_username_as_clientid true\n", "")

    monkeypatch.setattr("controller.mqtt.broker.render_config", unbound)
    with started(tmp_path) as unsafe:
        assert takeover_steals(unsafe, 4)


def test_all_pairs_of_devices_hear_nothing_of_each_other(place: Place) -> None:
    names = [f"pair-{number:02d}" for number in range(50)]
    clients = {name: place.join(Role.DEVICE, name) for name in names}
    for name, client in clients.items():
        client.subscribe("lighterman/v1/device/+/down/#", "#")
        client.subscribe(f"lighterman/v1/device/{name}/down/#")
    controller = place.join(Role.CONTROLLER, "controller")
    for name in names:
        controller.publish(f"lighterman/v1/device/{name}/down/desired", name.encode())
    for name, client in clients.items():
        wait_for(lambda c=client: c.topics(), 20, f"the bell of {name}")  # type: ignore[misc]
    for name, client in clients.items():
        assert {payload for _, payload in list(client.arrived.queue)} == {name.encode()}


def test_a_revoked_device_is_kicked_and_stays_out_and_others_stay_in(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    with started(tmp_path) as place:
        lost = identity(place.authority, Role.DEVICE, "lost")
        client = Mqtt(client_context(place.folder, lost))
        place.clients.append(client)
        assert client.open(place.broker.port)
        bystander = place.join(Role.DEVICE, "fine")
        serial = read_certificate(lost.certificate_pem).serial
        acl = render_acl(["dash"])
        assert place.broker.reload(broker_files(place.authority, acl, {serial: now})())
        # A reload refuses new connections and leaves the live one: that is why there is a kick.
        assert not client.lost.is_set()
        fresh = place.authority.new_identity(Subject(Role.DEVICE, "lost"), now, 60.0)
        context = tls_context(
            place.authority.certificate_pem, fresh.issued.pem, fresh.key_pem, place.folder
        )
        assert take_over("127.0.0.1", place.broker.port, "lost", context, 3.0)
        wait_for(client.lost.is_set, 20, "the revoked session to end")
        assert not Mqtt(client_context(place.folder, lost)).open(place.broker.port)
        assert not bystander.lost.is_set()
        renewed = place.join(Role.DEVICE, "lost")  # enrolled anew: another serial
        assert renewed.connected.is_set()


# The client library forgets to close a socket whose handshake was cut.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_connections_are_limited(tmp_path: Path) -> None:
    with started(tmp_path, BrokerLimits(connections=3)) as place:
        joined = [place.join(Role.DEVICE, f"d{number}") for number in range(3)]

        def refused() -> bool:
            fourth = Mqtt(place.tls(Role.DEVICE, "d9"))
            if not fourth.open(place.broker.port, 5.0):
                return True
            fourth.close()
            # Only a place that one of the three left may be taken; they come back by themselves.
            assert any(client.lost.is_set() for client in joined)
            return False

        wait_for(refused, 30, "a fourth connection to be refused beside three")
        gc.collect()


def test_a_flood_leaves_others_served(place: Place) -> None:
    controller = place.join(Role.CONTROLLER, "controller")
    controller.subscribe("lighterman/v1/device/+/up/presence")
    mallory = place.join(Role.DEVICE, MINE)
    topic = f"lighterman/v1/device/{MINE}/up/event"
    for _ in range(5000):
        mallory.client.publish(topic, b"x" * 200, qos=0)
    presence = f"lighterman/v1/device/{VICTIM}/up/presence"
    place.join(Role.DEVICE, VICTIM).publish(presence, b"here")
    wait_for(lambda: presence in controller.topics(), 20, "the other device's presence")
