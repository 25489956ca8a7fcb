"""What the outbox holds is told in order, and forgotten when there is time, but never too early."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from controller.domain.rollout import Phase
from controller.mqtt.broker import Broker
from controller.mqtt.client import MqttClient, Outgoing
from controller.mqtt.doorbells import Doorbells
from controller.services.outbox import OutboxKind
from controller.store import outbox
from controller.store.rollouts import set_phase
from tests.support.gateway import Desk, open_desk
from tests.support.stores import seed_rollout, seed_version
from tests.support.wait import wait_for


@dataclass
class Wire:
    """A connection that takes everything, or nothing."""

    connected: bool = True
    takes: bool = True
    sent: list[str] = field(default_factory=list)
    kept: dict[str, bytes] = field(default_factory=dict)

    def publish_all(self, messages: Sequence[Outgoing]) -> bool:
        if self.takes:
            self.sent += [one.topic for one in messages]
            self.kept |= {one.topic: one.payload for one in messages if one.retain}
        return self.takes


@dataclass
class Lists:
    """A broker that reads its lists, or does not."""

    reads: bool = False

    def reload(self, files: object) -> bool:
        return self.reads


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        yield opened


def tell(desk: Desk, kind: OutboxKind, topic: str) -> None:
    with desk.deps.store.write() as conn:
        outbox.append(conn, desk.now, kind, topic, b"{}")


def left(desk: Desk) -> list[str]:
    with desk.deps.store.read() as conn:
        return [row.topic for row in outbox.take(conn)]


def doorbells(desk: Desk, wire: Wire, lists: Lists, tmp_path: Path) -> Doorbells:
    wired, listed = cast(MqttClient, wire), cast(Broker, lists)
    files: dict[str, Any] = {}
    return Doorbells(desk.deps, desk.ctx, listed, wired, lambda: files, tmp_path)


def test_what_was_told_is_not_told_again_and_is_forgotten_when_nobody_waits(
    desk: Desk, tmp_path: Path
) -> None:
    wire = Wire()
    made = doorbells(desk, wire, Lists(), tmp_path)
    tell(desk, OutboxKind.ACK, "one")
    assert made.drain()
    tell(desk, OutboxKind.ACK, "two")
    assert made.drain()
    assert not made.drain()
    assert wire.sent == ["one", "two"]
    assert left(desk) == ["one", "two"]  # the writer was not asked for yet
    made.start()
    wait_for(lambda: left(desk) == [], 20, "the outbox to be empty")
    made.stop()
    assert wire.sent == ["one", "two"]


def test_what_could_not_be_told_stays(desk: Desk, tmp_path: Path) -> None:
    wire = Wire(takes=False)
    made = doorbells(desk, wire, Lists(), tmp_path)
    tell(desk, OutboxKind.ACK, "one")
    assert not made.drain()
    made.stop()
    assert left(desk) == ["one"]
    wire.takes = True
    assert made.drain()
    assert wire.sent == ["one"]


def test_a_list_that_was_not_read_is_given_again_whatever_was_told_behind_it(
    desk: Desk, tmp_path: Path
) -> None:
    wire, lists = Wire(), Lists()
    made = doorbells(desk, wire, lists, tmp_path)
    for kind, topic in ((OutboxKind.ACK, "one"), (OutboxKind.ACL, ""), (OutboxKind.ACK, "two")):
        tell(desk, kind, topic)
    made.drain()
    assert left(desk) == [""]
    made.drain()
    assert left(desk) == [""]
    lists.reads = True
    made.drain()
    assert left(desk) == []
    assert wire.sent == ["one", "two"]


def test_a_broker_that_forgot_is_told_how_rollouts_stand(desk: Desk, tmp_path: Path) -> None:
    old, day = desk.now - timedelta(days=3), timedelta(days=1)
    with desk.deps.store.write() as conn:
        seed_version(conn)
        for name, ended in (("r-222222", None), ("r-333333", old + day), ("r-444444", desk.now)):
            seed_rollout(conn, name, at=old)
            if ended is not None:
                set_phase(conn, name, Phase.SUCCEEDED, "1 device committed", 0, (), None, ended)
    wire = Wire()
    made = doorbells(desk, wire, Lists(), tmp_path)
    made.start()
    made.wake()
    assert made.drain() is False
    assert wire.kept == {}  # control: nothing changed, so nothing is told by itself
    made.on_connect()
    wait_for(lambda: len(wire.kept) >= 2, 20, "the rollouts to be told")
    made.stop()
    topic = "lighterman/v1/feed/default/rollout/"
    told = {name.removeprefix(topic): json.loads(text) for name, text in wire.kept.items()}
    assert {name: one["phase"] for name, one in told.items()} == {
        "r-222222": "PENDING",
        "r-444444": "SUCCEEDED",
    }
    assert told["r-444444"]["reason"] == "1 device committed"
