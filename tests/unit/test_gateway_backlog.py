"""Whose words are taken in first when many wait: urgent ones; in order, bounded, nobody never."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from controller.clock import SystemClock
from controller.domain.rollout import AssignmentState
from controller.mqtt import ingest
from controller.mqtt.backlog import DEVICE_MOST, Backlog, Word
from controller.mqtt.client import Message, Outgoing
from controller.mqtt.doorbells import newest_of_topic
from controller.services.outbox import OutboxKind, OutboxRow
from controller.store import assignments, events
from lighterman.v1 import device_pb2, topics
from tests.support.gateway import Desk, open_desk
from tests.support.stores import (
    PROJECT,
    seed_assignment,
    seed_device,
    seed_rollout,
    seed_version,
)

A = AssignmentState
BOOT = "0000000001-aaaa"
FLEET, ONE = "r-222222", "r-333333"
LIMIT = 20


def report(device: str, seq: int, state: AssignmentState, rollout: str = FLEET) -> Message:
    envelope = device_pb2.Envelope(protocol=1, boot_id=BOOT, seq=seq)
    envelope.report.rollout, envelope.report.generation = rollout, 7
    envelope.report.model, envelope.report.version = "digits", "1.0.0"
    envelope.report.state = device_pb2.AssignmentState.Value(f"ASSIGNMENT_STATE_{state}")
    payload = envelope.SerializeToString()
    return Message(topics.device(device, topics.UP_REPORT), payload, retained=False)


def telemetry(device: str) -> Message:
    envelope = device_pb2.Envelope(protocol=1, boot_id=BOOT)
    envelope.telemetry.applied_generation = 7
    payload = envelope.SerializeToString()
    return Message(topics.device(device, topics.UP_TELEMETRY), payload, retained=False)


def filled(*messages: Message) -> Backlog:
    backlog = Backlog(100_000)
    for message in messages:
        assert backlog.put(message)
    assert backlog.sort_in() == []
    return backlog


def fleet(count: int = 1000) -> list[Message]:
    return [report(f"pi-{number}", 1, A.DOWNLOADING) for number in range(count)]


def said(words: Sequence[Word]) -> list[tuple[str, int]]:
    return [(word.device_id, word.envelope.seq) for word in words]


def emptied(backlog: Backlog) -> Iterator[list[Word]]:
    while len(backlog):
        words = backlog.take(LIMIT)
        assert 0 < len(words) <= LIMIT
        yield words


@pytest.mark.parametrize("state", [A.ROLLING_BACK, A.ROLLED_BACK, A.FAILED])
def test_who_left_a_version_overtakes_a_fleet(state: AssignmentState) -> None:
    backlog = filled(*fleet(), report("bad-1", 1, A.PROBATION), report("bad-1", 2, state))
    assert backlog.urgent
    assert said(backlog.take(LIMIT)) == [("bad-1", 1), ("bad-1", 2)]  # alone: it is stored sooner
    assert not backlog.urgent


def test_control_who_goes_on_does_not_overtake() -> None:
    backlog = filled(*fleet(), report("good-1", 1, A.PROBATION), report("good-1", 2, A.COMMITTED))
    assert not backlog.urgent
    assert "good-1" not in dict(said(backlog.take(LIMIT)))


def test_urgent_words_without_end_keep_nobody_waiting() -> None:
    backlog = filled(*fleet(100))
    heard: set[str] = set()
    for turn in range(20):
        for number in range(LIMIT):
            backlog.put(report(f"bad-{turn}-{number}", 1, A.FAILED))
        backlog.sort_in()
        heard |= {name for name, _ in said(backlog.take(LIMIT)) if name.startswith("pi-")}
    assert len(heard) == 100


def test_an_order_for_one_device_does_not_wait_behind_a_fleet() -> None:
    backlog = filled(*fleet(), report("single-1", 1, A.DOWNLOADING, ONE))
    first = dict(said(backlog.take(LIMIT)))
    assert "single-1" in first
    assert {"pi-0", "pi-1"} <= first.keys()  # and who came first is not forgotten for it


def test_a_device_stands_with_the_rollout_of_which_the_fewest_wait() -> None:
    words = [telemetry("single-1"), report("single-1", 1, A.COMMITTED), telemetry("single-1")]
    backlog = filled(*fleet(), *words, report("single-1", 2, A.DOWNLOADING, ONE))
    names = [name for name, _ in said(backlog.take(LIMIT))]
    assert names.count("single-1") == 4


def in_order(taken: Sequence[Word], count: int) -> bool:
    """Whether each device's words are all there, once, in the order in which it said them."""
    heard: dict[str, list[int]] = {}
    for word in taken:
        heard.setdefault(word.device_id, []).append(word.envelope.seq)
    return all(numbers == list(range(1, count + 1)) for numbers in heard.values())


@pytest.mark.parametrize("seed", range(5))
def test_words_of_one_device_stay_in_order_whatever_comes_between(seed: int) -> None:
    random = Random(seed)
    backlog, numbers, taken = Backlog(10_000), dict.fromkeys(map(str, range(30)), 0), list[Word]()
    for _ in range(30 * 40):
        name = random.choice([one for one, number in numbers.items() if number < 40])
        numbers[name] += 1
        state = random.choice([A.DOWNLOADING, A.COMMITTED, A.ROLLED_BACK, A.FAILED])
        backlog.put(report(name, numbers[name], state, random.choice([FLEET, ONE, f"r-{name}"])))
        if random.random() < 0.05:
            backlog.sort_in()
            taken += backlog.take(random.randint(1, 50))
    backlog.sort_in()
    for words in emptied(backlog):
        taken += words
    assert len(taken) == 30 * 40
    assert in_order(taken, 40)
    assert not in_order(taken[::-1], 40)  # control: the check sees it
    assert not in_order(taken[1:], 40)


def test_a_chatty_device_has_so_many_words_in_one_turn() -> None:
    chatty = [report("chatty", number, A.PROBATION) for number in range(1, 1001)]
    backlog = filled(*chatty, *fleet(10))
    first = said(backlog.take(500))
    assert len(first) == 10 + 500 - 10  # the turns of others came between, then it went on
    assert [name for name, _ in first].index("pi-9") < 10 + 6 * DEVICE_MOST
    assert [number for name, number in first if name == "chatty"] == list(range(1, 491))


def test_what_cannot_be_read_is_given_back_and_stops_nothing() -> None:
    backlog = Backlog(10)
    garbage = Message(topics.device("pi-1", topics.UP_REPORT), b"\xff\xfe", retained=False)
    elsewhere = Message("some/other/topic", b"", retained=False)
    newer = device_pb2.Envelope(protocol=7, boot_id=BOOT, seq=1).SerializeToString()
    foreign = Message(topics.device("pi-3", topics.UP_REPORT), newer, retained=False)
    for message in (garbage, elsewhere, foreign, report("pi-2", 1, A.COMMITTED)):
        backlog.put(message)
    assert len(backlog) == 4
    unread = backlog.sort_in()
    assert [one.outcome for one in unread] == ["malformed", "malformed", "other_protocol"]
    assert unread[0].why == f"on {garbage.topic}"
    assert "protocol 7, the controller speaks 1 to 1" in unread[2].why
    assert said(backlog.take(10)) == [("pi-2", 1)]
    assert len(backlog) == 0


def test_there_is_room_for_so_many_sorted_or_not() -> None:
    backlog = Backlog(3)
    assert [backlog.put(telemetry("pi-1")) for _ in range(2)] == [True, True]
    backlog.sort_in()
    assert [backlog.put(telemetry("pi-1")) for _ in range(2)] == [True, False]
    assert len(backlog.take(2)) == 2
    assert backlog.put(telemetry("pi-1"))


# -- the whole door --------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    names = [f"pi-{number}" for number in range(5)]
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            seed_version(conn)
            seed_rollout(conn)
            for number, name in enumerate(names):
                seed_device(conn, name)
                seed_assignment(conn, FLEET, name, position=number)
            offers = [
                (row, A.OFFERED, "offered", {"exposed": True, "generation": 7})
                for row in assignments.list_assignments(conn, FLEET)
            ]
            assignments.move_many(conn, offers, opened.now)
        yield opened


def stored(desk: Desk) -> list[tuple[str | None, str]]:
    with desk.deps.store.read() as conn:
        found = events.list_events(conn, PROJECT, rollout_id=FLEET, limit=1000)
    return [(one.device_id, one.kind) for one in found]


def door(desk: Desk, sent: list[Outgoing]) -> ingest.Ingest:
    return ingest.Ingest(desk.deps, desk.ctx, SystemClock(), sent.append, lambda: None, grace_s=30)


def test_a_rollback_is_stored_before_all_that_waits(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "BATCH_MAX", 2)
    sent: list[Outgoing] = []
    made = door(desk, sent)
    way = (A.DOWNLOADING, A.VERIFIED, A.STAGED, A.ACTIVATED)
    for seq, state in enumerate(way, 1):
        for number in range(5):
            made.take(report(f"pi-{number}", seq, state))
    made.take(report("pi-4", 5, A.ROLLING_BACK))
    made.start()
    made.stop()
    kinds = [kind for name, kind in stored(desk) if name == "pi-4"]
    assert kinds == [f"assignment_{state.lower()}" for state in (*way, A.ROLLING_BACK)]
    before = stored(desk).index(("pi-4", "assignment_rolling_back"))
    # Five words of its own in turns of two, and every second turn is of the others.
    assert before <= 5 + 4
    acked = [device_pb2.Ack.FromString(one.payload).seq for one in sent if "/pi-4/" in one.topic]
    assert acked[-1] == 5
    assert len(stored(desk)) == 21


def test_a_full_backlog_sheds_counts_and_forgets_nothing_it_took(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "QUEUE_MAX", 8)
    sent: list[Outgoing] = []
    made = door(desk, sent)
    for seq, state in enumerate((A.DOWNLOADING, A.VERIFIED), 1):
        for number in range(5):
            made.take(report(f"pi-{number}", seq, state))
    assert (made.queued(), made.counts["shed"]) == (8, 2)
    made.start()
    made.stop()
    assert len(stored(desk)) == 8
    made = door(desk, sent)  # devices say again what was not acknowledged
    for number in range(5):
        made.take(report(f"pi-{number}", 2, A.VERIFIED))
    made.start()
    made.stop()
    assert made.counts["shed"] == 0
    assert len(stored(desk)) == 10


def test_of_what_the_broker_keeps_only_the_newest_word_is_told() -> None:
    def row(number: int, kind: OutboxKind, topic: str, *, retain: bool) -> OutboxRow:
        return OutboxRow(number, kind, topic, b"", retain)

    bell, feed, ack = OutboxKind.DOORBELL, OutboxKind.FEED, OutboxKind.ACK
    rows = [
        row(1, bell, "pi-1", retain=True),
        row(2, bell, "pi-2", retain=True),
        row(3, ack, "pi-1", retain=False),
        row(4, feed, "pi-1", retain=True),
        row(5, bell, "pi-1", retain=True),
        row(6, ack, "pi-1", retain=False),
    ]
    assert [one.number for one in newest_of_topic(rows)] == [2, 3, 4, 5, 6]
