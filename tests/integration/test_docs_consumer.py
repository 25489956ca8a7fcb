"""docs/telemetry-mqtt.md against the real broker: its program, its examples, its promises."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from controller.app_database import issue_beside
from controller.domain.rollout import Phase
from controller.services.rollout_feed import feed_rollout
from controller.store import rollouts
from lighterman.v1 import device_pb2, fleet_pb2, topics
from tests.support.gateway import Context, Mqtt, Running, client_context, running
from tests.support.sources import ROOT
from tests.support.stores import rollout_row, seed_version
from tests.support.wait import wait_for

PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("telemetry-mqtt.md", "reference/mqtt.md")
}
PAGE = PAGES["telemetry-mqtt.md"]
HEALTH, ROLLOUT = 0, 1  # the JSON examples of each page, in this order
NUMBERS = itertools.count(1)


def block(language: str, number: int = 0, page: str = PAGE) -> str:
    return str(re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)[number])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("consumer") / "home") as started:
        yield started


@dataclass(frozen=True)
class Speaker:
    """A device on the wire."""

    wire: Mqtt
    id: str

    def telemetry(self) -> None:
        envelope = device_pb2.Envelope(protocol=1, boot_id="1-a")
        envelope.telemetry.models.add(
            model="digits", version="1.0.0", rung="heavy", phase="COMMITTED"
        )
        topic = topics.device(self.id, topics.UP_TELEMETRY)
        self.wire.publish(topic, envelope.SerializeToString())


@pytest.fixture
def speaker(home: Running, tmp_path: Path) -> Iterator[Speaker]:
    token = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10).token
    device = home.enrol(f"pi-{next(NUMBERS)}", token)
    hello = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
    device.api().Hello(hello, timeout=10)
    wire = Mqtt(client_context(tmp_path, device.context), version=5)
    assert wire.open(port_of(home))
    yield Speaker(wire, device.device_id)
    wire.close()


def port_of(home: Running) -> int:
    return int(home.listening.mqtt.rpartition(":")[2])


def examples(kind: int) -> list[dict[str, Any]]:
    """The documents of one kind that the pages show."""
    return [json.loads(block("json", kind, page)) for page in PAGES.values()]


def differences(given: Any, shown: Sequence[Any], path: str = "") -> list[str]:
    """Where a document is not of the shape of the shown ones: names, and kinds of values.

    What is null in the given one may be null; what is null in all shown ones may be a number.
    """
    objects = [one for one in shown if isinstance(one, dict)]
    if isinstance(given, dict) and objects:
        found = [f"{path}: {sorted(given)}" for one in objects if set(one) != set(given)]
        for name in [] if found else given:
            found += differences(given[name], [one[name] for one in objects], f"{path}.{name}")
        return found
    if isinstance(given, list):
        items = [item for one in shown if isinstance(one, list) for item in one]
        return [line for one in given for line in differences(one, items, f"{path}[]")]
    kinds = {kind_of(one) for one in shown} - {"null"} or {"number"}
    return [] if kind_of(given) in kinds | {"null"} else [f"{path}: {given!r}, not {sorted(kinds)}"]


def kind_of(value: Any) -> str:
    names = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}
    return names.get(type(value), "other")


@dataclass(frozen=True)
class Told:
    """One message as a consumer gets it."""

    topic: str
    payload: bytes
    qos: int
    retained: bool


class Consumer:
    """A subscriber of the whole feed that keeps what it gets."""

    def __init__(self, home: Running, folder: Path, name: str) -> None:
        issue_beside(home.controller.settings, name, "consumer", folder / name)
        pems = ((folder / name / one).read_bytes() for one in ("ca.pem", "cert.pem", "key.pem"))
        self.wire = Mqtt(client_context(folder, Context("", *pems)))
        self.told: list[Told] = []
        self.wire.client.on_message = lambda _c, _d, m: self.told.append(
            Told(m.topic, bytes(m.payload), m.qos, m.retain)
        )
        assert self.wire.open(port_of(home))
        self.subscribe()

    def subscribe(self) -> None:
        """Ask for all, and for what is retained."""
        self.wire.subscribe("lighterman/v1/feed/#", "lighterman/v1/device/#")

    def of(self, topic: str) -> list[Told]:
        return [one for one in list(self.told) if one.topic == topic]


def test_messages_are_what_the_pages_show(home: Running, speaker: Speaker, tmp_path: Path) -> None:
    health = topics.feed_health("default", speaker.id)
    rollout = topics.feed_rollout("default", "r-222222")
    early = Consumer(home, tmp_path, f"early-{speaker.id}")

    def seen() -> bool:
        speaker.telemetry()
        return any(b'"digits"' in one.payload for one in early.of(health))

    wait_for(seen, 30, "a health document with a model")
    with home.deps.store.write() as conn:
        at = home.ctx().now
        seed_version(conn, at=at)
        row = replace(rollout_row("r-222222", "1.0.0", at), phase=Phase.SUCCEEDED, finished_at=at)
        rollouts.insert_rollout(conn, row)
        feed_rollout(conn, at, row)
    home.deps.wake()
    wait_for(lambda: early.of(rollout), 30, "the rollout's document")
    assert {one.qos for one in early.of(health)} == {0}
    assert not early.of(health)[-1].retained
    assert early.of(rollout)[-1].qos == 1
    for topic, kind in ((health, HEALTH), (rollout, ROLLOUT)):
        given = json.loads(early.of(topic)[-1].payload)
        assert differences(given, examples(kind)) == []
        assert differences({**given, "new": 1}, examples(kind)) != []
        assert differences({**given, "at": 7}, examples(kind)) != []
    late = Consumer(home, tmp_path, f"late-{speaker.id}")
    # Asked for once: the broker knew the name when the certificate was given.
    wait_for(lambda: keeps(late, health) and keeps(late, rollout), 30, "what is retained")
    retire = fleet_pb2.DeviceRequest(device_id=speaker.id)
    home.fleet().RetireDevice(retire, timeout=10)
    wait_for(lambda: late.of(health)[-1].payload == b"", 30, "the empty message")
    assert not [one for one in early.told if one.topic.startswith("lighterman/v1/device/")]
    for one in (early, late):
        one.wire.close()


def keeps(consumer: Consumer, topic: str) -> bool:
    return any(one.retained for one in consumer.of(topic))


def test_negative_control_who_does_not_wait_for_the_broker(
    home: Running, speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = topics.feed_health("default", speaker.id)
    patient = Consumer(home, tmp_path, f"patient-{speaker.id}")
    speaker.telemetry()
    wait_for(lambda: patient.of(health), 30, "the document")
    monkeypatch.setattr("controller.app_database._wait_for_broker", lambda _: None)
    hasty = Consumer(home, tmp_path, f"hasty-{speaker.id}")

    def told() -> bool:
        speaker.telemetry()
        return bool(hasty.of(health))

    wait_for(told, 30, "what is new")
    assert not keeps(hasty, health)
    for one in (patient, hasty):
        one.wire.close()


@contextmanager
def printing(command: Sequence[str], said: Path) -> Iterator[None]:
    """A consumer's process that writes to a file."""
    with said.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_the_printed_line_reads_the_feed(home: Running, speaker: Speaker, tmp_path: Path) -> None:
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not installed (package mosquitto-clients)")
    lines = issue_beside(home.controller.settings, f"sub-{speaker.id}", "consumer", tmp_path / "d")
    assert lines[-1].startswith("mosquitto_sub ")
    topic = topics.feed_health("default", speaker.id)
    said = tmp_path / "said"

    def told() -> str:
        speaker.telemetry()
        whole = [line for line in said.read_text().splitlines(keepends=True) if line[-1:] == "\n"]
        return next((line for line in whole if line.startswith(f"{topic} ")), "")

    with printing(["sh", "-c", f"exec {lines[-1]}"], said):
        line = wait_for(told, 30, "the line of the device")
    assert json.loads(line.removeprefix(topic))["device"] == speaker.id


def test_the_example_prints_what_a_device_says(
    home: Running, speaker: Speaker, tmp_path: Path
) -> None:
    program = tmp_path / "consumer.py"
    program.write_text(block("python"), encoding="utf-8")
    issue_beside(home.controller.settings, f"prints-{speaker.id}", "consumer", tmp_path / "dash")
    port = str(port_of(home))
    said = tmp_path / "said"

    def told() -> bool:
        speaker.telemetry()
        return f"{speaker.id} digits 1.0.0 heavy" in said.read_text()

    command = [sys.executable, "-u", str(program), "127.0.0.1", port, str(tmp_path / "dash")]
    with printing(command, said):
        wait_for(told, 30, "the example's line")
