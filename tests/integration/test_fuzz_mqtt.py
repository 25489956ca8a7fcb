"""Whatever bytes reach a topic through a real broker: counted, ignored, and the next word is taken.

The topics are those of `topics.py`: a new one is fuzzed without a change here.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import select

from controller.domain.device import DeviceState
from controller.mqtt import backlog
from controller.mqtt.client import Outgoing
from controller.mqtt.convert import BODY_OF
from controller.services.samples import flush_samples
from controller.store import devices
from controller.store.tables import metadata
from lighterman.v1 import device_pb2, fleet_pb2, topics
from tests.support.agent_world import AgentProcess, running_controller
from tests.support.fuzz import Known, Wild, no_message, wild_messages
from tests.support.gateway import DeviceClient, Mqtt, Running, client_context, running
from tests.support.serving import make_release, scaled
from tests.support.wait import wait_for

UP = sorted(value for name, value in vars(topics).items() if name.startswith("UP_"))
DOWN = sorted(value for name, value in vars(topics).items() if name.startswith("DOWN_"))
DOWN_BODY = {
    topics.DOWN_DESIRED: device_pb2.Doorbell.DESCRIPTOR,
    topics.DOWN_ACK: device_pb2.Ack.DESCRIPTOR,
}
ENVELOPE = device_pb2.Envelope.DESCRIPTOR
BROKEN, WILD = 40, 120
MOST = 60 * 1024  # the broker hangs up on larger ones
KNOWN: Known = {
    "boot_id": ("1-a",), "seq": (0, 1, 2, 3), "protocol": (1,), "model": ("digits",),
    "version": ("1.0.0",), "kind": ("boot", "rung_changed"), "rung": ("heavy",), "count": (1,),
    "index": (1,), "bucket": (1,), "scale": (3,), "sum_s": (0.1,), "zero_count": (0,),
    "rollout": ("r-222222",), "temperature_c": (50.0,),
}  # fmt: skip


@dataclass(slots=True)
class Speaker:
    """An enrolled device on the broker."""

    device: DeviceClient
    mqtt: Mqtt
    seq: int = 0

    def say(self, suffix: str, payload: bytes) -> None:
        self.mqtt.publish(topics.device(self.device.device_id, suffix), payload)

    def good_event(self) -> None:
        """One good word, and the controller's word that it is stored."""
        self.seq += 1
        envelope = device_pb2.Envelope(protocol=1, boot_id="1-a", seq=self.seq)
        envelope.event.kind = "good"
        self.say(topics.UP_EVENT, envelope.SerializeToString())
        wanted = device_pb2.Ack(boot_id="1-a", seq=self.seq).SerializeToString()
        down = topics.device(self.device.device_id, topics.DOWN_ACK)
        wait_for(lambda: (down, wanted) in list(self.mqtt.arrived.queue), 20, "the good word")


@dataclass(frozen=True, slots=True)
class Desk:
    """A controller, one device that babbles, one that does not."""

    home: Running
    wild: Speaker
    good: Speaker

    def count(self, what: str) -> int:
        side = self.home.controller._side
        return side.ingest.counts[what]

    def stored(self, *leave_out: str) -> dict[str, str]:
        """A digest of every table."""
        found = {}
        with self.home.deps.store.read() as conn:
            for table in metadata.sorted_tables:
                if table.name not in ("outbox", *leave_out):
                    rows = sorted(map(repr, conn.execute(select(table))))
                    found[table.name] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        return found

    def rearm(self) -> None:
        """Let the wild one speak again, whatever boot it said it was."""
        with self.home.deps.store.write() as conn:
            devices.update_device(
                conn, self.wild.device.device_id, state=DeviceState.ACTIVE, boot_id="1-a"
            )


def _speaker(home: Running, device_id: str, folder: Path) -> Speaker:
    token = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10).token
    device = home.enrol(device_id, token)
    hello = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
    device.api().Hello(hello, timeout=10)
    mqtt = Mqtt(client_context(folder, device.context), version=5)
    assert mqtt.open(int(home.listening.mqtt.rpartition(":")[2])), mqtt.reasons
    mqtt.subscribe(topics.device_down(device_id))
    return Speaker(device, mqtt)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
)
def desk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """On both databases: one keeps no NUL and no number beyond 2^31."""
    folder, database = tmp_path_factory.mktemp("fuzz-mqtt"), ""
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres_server").new_database()
    with running(folder, database=database) as home:
        made = Desk(home, _speaker(home, "wild", folder), _speaker(home, "good", folder))
        yield made
        made.wild.mqtt.close()
        made.good.mqtt.close()


@pytest.mark.parametrize("suffix", UP)
def test_bytes_that_are_no_envelope_are_counted_and_change_nothing(desk: Desk, suffix: str) -> None:
    random = Random(suffix)
    desk.rearm()
    desk.good.good_event()
    before, counted = desk.stored(), desk.count("malformed")
    for _ in range(BROKEN):
        good = Wild(random, KNOWN, tame=10).message(ENVELOPE)
        desk.wild.say(suffix, no_message(ENVELOPE, good, random, MOST))
    wait_for(lambda: desk.count("malformed") == counted + BROKEN, 20, "all to be counted")
    assert desk.stored() == before
    assert desk.count("failed") == 0
    desk.good.good_event()


@pytest.mark.parametrize("suffix", UP)
def test_bodies_of_other_topics_are_counted_and_change_nothing(desk: Desk, suffix: str) -> None:
    desk.rearm()
    desk.good.good_event()
    before, counted = desk.stored(), desk.count("malformed")
    others = [name for name in BODY_OF.values() if name != BODY_OF[suffix]]
    for body in others:
        envelope: Any = device_pb2.Envelope(protocol=1, boot_id="1-a", seq=1)
        getattr(envelope, body).SetInParent()
        desk.wild.say(suffix, envelope.SerializeToString())
    wait_for(lambda: desk.count("malformed") == counted + len(others), 20, "all to be counted")
    assert desk.stored() == before


@pytest.mark.parametrize("suffix", UP)
def test_wild_envelopes_stop_nothing_and_touch_their_own_device_only(
    desk: Desk, suffix: str
) -> None:
    """What a device says of itself is stored; what belongs to others and to people is not moved."""
    theirs = ("device", "device_boot", "event", "sample", "capability")
    before, sent = desk.stored(*theirs), 0
    envelope: Any
    for envelope in wild_messages(ENVELOPE, KNOWN, suffix, WILD, longest=150):
        if sent % 3:
            body = getattr(envelope, BODY_OF[suffix])
            body.CopyFrom(Wild(Random(sent), KNOWN, 7, 150).message(body.DESCRIPTOR))
            envelope.protocol = 1  # of others nothing is read
        payload = envelope.SerializeToString()
        if len(payload) <= MOST:
            desk.rearm()
            desk.wild.say(suffix, payload)
            sent += 1
    desk.good.good_event()
    assert sent > WILD / 4
    assert desk.count("failed") == 0
    flush_samples(desk.home.deps)
    assert desk.stored(*theirs) == before
    desk.home.fleet().GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    shown = desk.home.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device_id="good"), timeout=10)
    assert (shown.state, shown.applied_generation) == ("active", 0)


def test_negative_control_a_reader_that_takes_anything_fails_the_check(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        backlog, "parse_envelope", lambda _, data: device_pb2.Envelope.FromString(data)
    )
    counted = desk.count("failed")
    desk.wild.say(topics.UP_EVENT, b"\xff\xff")
    wait_for(lambda: desk.count("failed") > counted, 20, "the failure to be seen")
    monkeypatch.undo()
    desk.home.controller._side.ingest.counts["failed"] = counted
    desk.good.good_event()


def test_garbage_from_the_broker_changes_nothing_on_a_device(tmp_path: Path) -> None:
    """Down the road as well: a broker, or whoever owns it, may say anything."""
    with running_controller(tmp_path / "controller") as world:
        agent = AgentProcess(tmp_path / "agent", "listener")
        assert agent.enrol(world.url, world.token()).returncode == 0
        agent.start()
        try:
            wait_for(lambda: world.device("listener").online, 30, "the device to be there")
            told = world._controller._side.client  # type: ignore[union-attr]
            for suffix in DOWN:
                random, kind = Random(suffix), DOWN_BODY[suffix]
                for number in range(40):
                    good = Wild(random, KNOWN, tame=5 if number % 2 else 9, longest=9_000).message(
                        kind
                    )
                    payload = good.SerializeToString()
                    if number % 2:
                        payload = no_message(kind, good, random, MOST)
                    topic = topics.device("listener", suffix)
                    told.publish(Outgoing(topic, payload[:MOST], retain=False))
            release = make_release("1.0.0", {"heavy": scaled(2.0)})
            world.publish("listener", release, "r-good", [scaled(2.0)])
            wait_for(
                lambda: "PROBATION" in world.states("listener", "r-good"), 60, "the good order"
            )
            assert agent.process is not None
            assert agent.process.poll() is None
            assert "Traceback" not in agent.tail()
            assert agent.infer(1.0, 1.0, 1.0, 1.0)[0] == pytest.approx(2.0)
        finally:
            assert agent.stop() == 0
