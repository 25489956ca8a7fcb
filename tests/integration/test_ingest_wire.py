"""What devices say over MQTT ends in rows, acknowledgements, the feed; garbage in a count."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.app_database import issue_beside
from controller.domain.histogram import histogram_of
from controller.services.devices import DeviceView, get_device
from controller.store import outbox, samples
from controller.store.desired import put_desired
from controller.store.outbox import OutboxKind
from lighterman.v1 import device_pb2, fleet_pb2, topics
from tests.support.gateway import (
    Context,
    DeviceClient,
    Mqtt,
    Running,
    client_context,
    running,
)
from tests.support.stores import digest
from tests.support.wait import wait_for


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("ingest"), presence_grace_s=1.0) as started:
        yield started


class Speaker:
    """A device that says what a test wants."""

    def __init__(self, home: Running, device_id: str, folder: Path, boot_id: str = "1-a") -> None:
        made = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10)
        self.device: DeviceClient = home.enrol(device_id, made.token)
        self.boot_id = boot_id
        self.id = self.device.device_id
        self.folder = folder
        self.port = int(home.listening.mqtt.rpartition(":")[2])
        self.mqtt = self.client()

    def client(self, **more: Any) -> Mqtt:
        return Mqtt(client_context(self.folder, self.device.context), version=5, **more)

    def hello(self) -> None:
        request = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id=self.boot_id)
        self.device.api().Hello(request, timeout=10)

    def open(self) -> None:
        self.hello()
        assert self.mqtt.open(self.port), self.mqtt.reasons
        self.mqtt.subscribe(topics.device_down(self.id))

    def envelope(self, seq: int = 0) -> device_pb2.Envelope:
        return device_pb2.Envelope(protocol=1, boot_id=self.boot_id, seq=seq)

    def say(self, suffix: str, envelope: device_pb2.Envelope, retain: bool = False) -> None:
        payload = envelope.SerializeToString()
        self.mqtt.publish(topics.device(self.id, suffix), payload, retain=retain)

    def presence(self, online: bool) -> None:
        envelope = self.envelope()
        envelope.presence.online = online
        self.say(topics.UP_PRESENCE, envelope, retain=True)

    def event(self, *numbers: int) -> None:
        for seq in numbers:
            envelope = self.envelope(seq)
            envelope.event.kind = "rung_changed"
            self.say(topics.UP_EVENT, envelope)

    def telemetry(self, p95_s: float = 0.04) -> None:
        envelope = self.envelope()
        said = envelope.telemetry
        said.temperature_c = 61.5
        said.models.add(model="digits", version="1.0.0", rung="heavy", phase="COMMITTED")
        sample = said.samples.add(model="digits", version="1.0.0", rung="heavy", errors=1)
        histogram = histogram_of([p95_s] * 20)
        sample.service.scale, sample.service.count = histogram.scale, histogram.count
        sample.service.sum_s = histogram.sum_s
        for index, count in histogram.buckets.items():
            sample.service.index.append(index)
            sample.service.bucket.append(count)
        self.say(topics.UP_TELEMETRY, envelope)

    def acks(self) -> list[tuple[str, int]]:
        down = topics.device(self.id, topics.DOWN_ACK)
        told = [data for topic, data in list(self.mqtt.arrived.queue) if topic == down]
        parsed = [device_pb2.Ack.FromString(data) for data in told]
        return [(ack.boot_id, ack.seq) for ack in parsed]

    def bells(self) -> list[int]:
        down = topics.device(self.id, topics.DOWN_DESIRED)
        told = [data for topic, data in list(self.mqtt.arrived.queue) if topic == down]
        return [device_pb2.Doorbell.FromString(data).generation for data in told]


@pytest.fixture
def speaker(home: Running, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Speaker]:
    name = request.node.name.replace("_", "-").lower()[-40:].strip("-")
    made = Speaker(home, name, tmp_path)
    made.open()
    yield made
    made.mqtt.close()


def view(home: Running, device_id: str) -> DeviceView:
    return get_device(home.deps, home.ctx(), device_id)


def test_presence_makes_a_device_online_and_its_will_offline(
    home: Running, speaker: Speaker
) -> None:
    speaker.presence(True)
    wait_for(lambda: view(home, speaker.id).online, 20, "the device to be online")
    speaker.mqtt.close()
    will = speaker.envelope()
    will.presence.online = False
    topic = topics.device(speaker.id, topics.UP_PRESENCE)
    speaker.mqtt = speaker.client(will=(topic, will.SerializeToString()))
    speaker.open()
    sock = speaker.mqtt.client.socket()
    assert sock is not None
    speaker.mqtt.client.loop_stop()
    sock.close()
    wait_for(lambda: not view(home, speaker.id).online, 20, "the last will")
    kinds = home.fleet().ListEvents(fleet_pb2.ListEventsRequest(device_id=speaker.id), timeout=10)
    assert [e.kind for e in kinds.events][-2:] == ["device_online", "device_offline"]


def test_the_will_of_a_replaced_boot_is_ignored(home: Running, speaker: Speaker) -> None:
    speaker.boot_id = "2-b"
    speaker.hello()
    speaker.presence(True)
    wait_for(lambda: view(home, speaker.id).online, 20, "the device to be online")
    speaker.boot_id = "1-a"
    speaker.presence(False)
    speaker.boot_id = "2-b"
    speaker.event(1)
    wait_for(lambda: ("2-b", 1) in speaker.acks(), 20, "what was said later")
    assert view(home, speaker.id).online


def test_reports_are_acknowledged_after_commit_and_gaps_are_not(
    home: Running, speaker: Speaker
) -> None:
    speaker.event(1, 2)
    wait_for(lambda: ("1-a", 2) in speaker.acks(), 20, "the acknowledgement")
    speaker.event(4)
    wait_for(lambda: len(speaker.acks()) >= 2, 20, "an answer to the gap")
    assert ("1-a", 4) not in speaker.acks()
    speaker.event(3, 4, 1)
    wait_for(lambda: ("1-a", 4) in speaker.acks(), 20, "the gap to be filled")
    found = home.fleet().ListEvents(
        fleet_pb2.ListEventsRequest(device_id=speaker.id, kinds=["rung_changed"]), timeout=10
    )
    assert len(found.events) == 4


def test_telemetry_becomes_rows_a_status_and_the_feed(
    home: Running, speaker: Speaker, tmp_path: Path
) -> None:
    speaker.presence(True)
    issue_beside(home.controller.settings, "dash-feed", "consumer", tmp_path / "dash")
    folder = tmp_path / "dash"
    pems = ((folder / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem"))
    consumer = Mqtt(client_context(tmp_path, Context("", *pems)))
    assert consumer.open(speaker.port)
    consumer.subscribe(topics.ALL_FEED)
    feed = topics.feed_health("default", speaker.id)

    def fed() -> dict[str, Any]:
        speaker.telemetry()
        told = [data for topic, data in list(consumer.arrived.queue) if topic == feed]
        document: dict[str, Any] = json.loads(told[-1]) if told else {}
        return document if document.get("models") else {}

    document = wait_for(fed, 20, "the health document of a consumer issued while serving")
    assert document["schema_version"] == 1
    assert (document["device"], document["online"]) == (speaker.id, True)
    (model,) = document["models"]
    assert (model["version"], model["rung"], model["inferences"]) == ("1.0.0", "heavy", 20)
    assert model["p95_ms"] == pytest.approx(40, rel=0.1)

    def rows() -> int:
        with home.deps.store.read() as conn:
            found = samples.list_samples(conn, device_ids=[speaker.id])
        return sum(row.histogram.count for row in found)

    wait_for(rows, 20, "sample rows")
    wait_for(lambda: view(home, speaker.id).temperature_c == 61.5, 20, "the status")
    consumer.close()


def test_the_feed_is_retained_for_consumers_that_come_later(
    home: Running, speaker: Speaker, tmp_path: Path
) -> None:
    speaker.telemetry()
    issue_beside(home.controller.settings, "dash-late", "consumer", tmp_path / "dash")
    pems = ((tmp_path / "dash" / n).read_bytes() for n in ("ca.pem", "cert.pem", "key.pem"))
    consumer = Mqtt(client_context(tmp_path, Context("", *pems)))
    feed = topics.feed_health("default", speaker.id)

    def there() -> bool:
        consumer.subscribe(feed)
        return feed in consumer.topics()

    assert consumer.open(speaker.port)
    wait_for(there, 20, "the retained document")
    consumer.close()


def test_operators_tail_events_and_telemetry(home: Running, speaker: Speaker) -> None:
    known = fleet_pb2.ListEventsRequest(device_id=speaker.id)
    first = home.fleet().ListEvents(known, timeout=10).events[0].number
    wanted = fleet_pb2.ListEventsRequest(device_id=speaker.id, after=first)
    events = home.fleet().TailEvents(wanted, timeout=20)
    told = home.fleet().TailTelemetry(
        fleet_pb2.TailTelemetryRequest(selector=f"device={speaker.id}"), timeout=20
    )
    speaker.event(1)
    while next(events).kind != "rung_changed":
        pass
    events.cancel()
    sample: list[Any] = []

    def read() -> bool:
        speaker.telemetry()
        sample.append(next(told))
        return True

    wait_for(read, 20, "a sample")
    told.cancel()
    assert sample[0].device_id == speaker.id
    assert json.loads(sample[0].json)["device"] == speaker.id


def test_garbage_is_counted_and_stops_nothing(home: Running, speaker: Speaker) -> None:
    before = home.controller._side.ingest.counts["malformed"]
    for suffix in (topics.UP_PRESENCE, topics.UP_REPORT, topics.UP_TELEMETRY, topics.UP_EVENT):
        for payload in (b"", b"\xff\xfe garbage", b"\x0a" * 300):
            speaker.mqtt.publish(topics.device(speaker.id, suffix), payload)
    bad = speaker.envelope()
    bad.telemetry.samples.add(model="x").service.count = 5
    speaker.say(topics.UP_TELEMETRY, bad)
    strange = device_pb2.Envelope(protocol=1, boot_id="no counter", seq=1)
    strange.event.kind = "x"
    speaker.say(topics.UP_EVENT, strange)
    speaker.event(1)
    wait_for(lambda: ("1-a", 1) in speaker.acks(), 20, "what comes after the garbage")
    counts = home.controller._side.ingest.counts
    wait_for(lambda: counts["malformed"] >= before + 13, 20, "the count")
    assert counts["failed"] == 0


def test_words_of_another_protocol_are_counted_apart_and_change_nothing(
    home: Running, speaker: Speaker
) -> None:
    counts = home.controller._side.ingest.counts
    before = counts["other_protocol"]
    for foreign in (0, 2, 2**31):
        event = speaker.envelope(1)
        event.protocol, event.event.kind = foreign, "rung_changed"
        presence = speaker.envelope()
        presence.protocol, presence.presence.online = foreign, True
        speaker.say(topics.UP_EVENT, event)
        speaker.say(topics.UP_PRESENCE, presence)
    wait_for(lambda: counts["other_protocol"] == before + 6, 20, "all to be counted")
    assert speaker.acks() == []
    assert not view(home, speaker.id).online
    speaker.presence(True)  # the negative control: its own version is taken in
    speaker.event(1)
    wait_for(lambda: ("1-a", 1) in speaker.acks(), 20, "the word that can be read")
    wait_for(lambda: view(home, speaker.id).online, 20, "the device to be online")


def test_a_doorbell_rings_and_rings_again_after_the_broker_was_away(
    home: Running, speaker: Speaker
) -> None:
    now = datetime.now(UTC)
    with home.deps.store.write() as conn:
        put_desired(conn, speaker.id, 7, {}, b"{}", digest("{}"), [], now)
        bell = json.dumps({"generation": 7, "manifest_digest": digest("{}")}).encode()
        outbox.append(conn, now, OutboxKind.DOORBELL, speaker.id, bell, retain=True)
    wait_for(lambda: 7 in speaker.bells(), 20, "the bell")
    pid_file = home.folder / "run" / "broker" / "mosquitto.pid"
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    wait_for(speaker.mqtt.lost.is_set, 20, "the broker to be gone")
    speaker.mqtt.close()

    def again() -> bool:
        speaker.mqtt = speaker.client()
        if not speaker.mqtt.open(speaker.port, 2.0):
            return False
        speaker.mqtt.subscribe(topics.device_down(speaker.id))
        return True

    wait_for(again, 15, "the broker to be back")
    wait_for(lambda: 7 in speaker.bells(), 20, "the bell of a broker that forgot everything")


def test_a_retired_device_is_kicked_off_the_broker(home: Running, speaker: Speaker) -> None:
    speaker.presence(True)
    wait_for(lambda: view(home, speaker.id).online, 20, "the device to be online")
    home.fleet().RetireDevice(fleet_pb2.DeviceRequest(device_id=speaker.id), timeout=10)
    wait_for(speaker.mqtt.lost.is_set, 20, "the live session to end")
    speaker.mqtt.close()
    speaker.mqtt = speaker.client()
    assert not speaker.mqtt.open(speaker.port)
    assert not view(home, speaker.id).online


def test_a_clone_on_mqtt_puts_the_device_in_quarantine(
    home: Running, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.services.device_sessions.LATE_S", 0.0)
    speaker.boot_id = "2-b"
    speaker.hello()
    speaker.telemetry()
    speaker.boot_id = "1-a"
    speaker.telemetry()
    wait_for(lambda: view(home, speaker.id).state == "QUARANTINED", 20, "the quarantine")
    speaker.event(1)
    speaker.presence(True)
    assert speaker.acks() == []


def test_a_device_that_is_silent_after_a_restart_is_offline(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with running(folder) as first:
        quiet = Speaker(first, "quiet", tmp_path)
        quiet.open()
        quiet.presence(True)
        wait_for(lambda: view(first, "quiet").online, 20, "the device to be online")
        quiet.mqtt.client.loop_stop()
    quiet.mqtt.close()
    with running(folder, presence_grace_s=1.0) as second:
        wait_for(lambda: not view(second, "quiet").online, 20, "the device to be offline")
