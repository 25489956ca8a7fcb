"""Every report arrives once and in order, whichever road is open, and only an ack drops it."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from agent.clock import SystemClock
from agent.domain.assignment import Phase
from agent.domain.ports import SpoolEntry
from agent.link.authority import Endpoint
from agent.link.backoff import Backoff
from agent.link.channel import Credentials
from agent.link.client import ControllerClient
from agent.link.convert import (
    AckPoint,
    AssignmentReport,
    Happening,
    Stamp,
    event_payload,
    numbered,
    report_payload,
    suffix_of,
)
from agent.link.spooler import SpoolSender
from agent.store.spool import LOST, FileSpool
from lighterman.v1 import device_pb2, topics
from tests.support.link_server import LinkServer, Script, Trust
from tests.support.wait import wait_for

AT = datetime(2026, 11, 24, 9, tzinfo=UTC)
STAMP = Stamp(AT, True)
BOOT = "0000000002-00000000"


def event(text: str) -> bytes:
    return event_payload(Happening("boot", AT, text), STAMP)


class Road:
    """MQTT as the sender sees it: a connection that may be away, or swallow what it takes."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.up = True
        self.swallows = False
        self.sender: SpoolSender | None = None
        self.taken: list[tuple[str, device_pb2.Envelope]] = []

    def publish(self, suffix: str, payload: bytes, qos: int) -> bool:
        if not self.up:
            return False
        assert qos == 1
        envelope = device_pb2.Envelope.FromString(payload)
        self.taken.append((suffix, envelope))
        if not self.swallows and self.sender is not None:
            self.sender.acked(AckPoint(envelope.boot_id, self.script.take(envelope)))
        return True


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(Trust.create())
    yield made
    made.stop()


@pytest.fixture
def client(server: LinkServer) -> Iterator[ControllerClient]:
    trust, device = server.trust, server.trust.device("dev-1")
    made = ControllerClient(
        Endpoint("127.0.0.1", server.port),
        Credentials(trust.authority.certificate_pem, device.issued.pem, device.key_pem),
    )
    yield made
    made.close()


@pytest.fixture
def spool(tmp_path: Path) -> FileSpool:
    return FileSpool(tmp_path, BOOT)


def sender_of(spool: FileSpool, road: Road, client: ControllerClient) -> SpoolSender:
    made = SpoolSender(
        spool, road.publish, client.report, lambda: road.up, SystemClock(), lambda _: None,
        ack_wait_s=0.1, slow_road_after_s=0.1, backoff=Backoff(0.05, 0.1),
    )  # fmt: skip
    road.sender = made
    return made


def texts(server: LinkServer) -> list[str]:
    return [e.event.reason for e in server.script.stored]


def test_entries_go_up_in_order_and_leave_the_spool(
    server: LinkServer, client: ControllerClient, spool: FileSpool
) -> None:
    road = Road(server.script)
    sender = sender_of(spool, road, client)
    for i in range(250):
        spool.append("event", event(str(i)))
    sender.start()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty")
    sender.stop()
    assert texts(server) == [str(i) for i in range(250)]
    assert {suffix for suffix, _ in road.taken} == {topics.UP_EVENT}


def test_a_report_goes_to_its_own_topic(
    server: LinkServer, client: ControllerClient, spool: FileSpool
) -> None:
    road = Road(server.script)
    said = AssignmentReport("photo", "1.0.0", "r-1", 3, Phase.COMMITTED, "ok", "1.0.0", True)
    spool.append("report", report_payload(said, STAMP))
    sender = sender_of(spool, road, client)
    sender.start()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty")
    sender.stop()
    suffix, envelope = road.taken[0]
    assert suffix == topics.UP_REPORT
    assert (envelope.boot_id, envelope.seq) == (BOOT, 1)
    assert envelope.report.state == device_pb2.ASSIGNMENT_STATE_COMMITTED
    assert envelope.report.applied
    assert envelope.sent_at.ToDatetime(tzinfo=UTC) == AT


def test_without_a_broker_reports_go_over_grpc(
    server: LinkServer, client: ControllerClient, spool: FileSpool
) -> None:
    road = Road(server.script)
    road.up = False
    sender = sender_of(spool, road, client)
    sender.start()
    for i in range(5):
        spool.append("event", event(str(i)))
    sender.wake()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty")
    sender.stop()
    assert texts(server) == ["0", "1", "2", "3", "4"]
    assert road.taken == []


def test_a_broker_that_swallows_is_no_loss_and_no_double(
    server: LinkServer, client: ControllerClient, spool: FileSpool
) -> None:
    road = Road(server.script)
    road.swallows = True
    for i in range(3):
        spool.append("event", event(str(i)))
    sender = sender_of(spool, road, client)
    sender.start()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty over gRPC")
    sender.stop()
    assert texts(server) == ["0", "1", "2"]
    assert len(road.taken) >= 6, "sent again before the other road was taken"


def test_with_everything_away_nothing_is_dropped(
    server: LinkServer, client: ControllerClient, spool: FileSpool
) -> None:
    road = Road(server.script)
    road.up = False
    server.script.fail["Report"] = (grpc.StatusCode.UNAVAILABLE, "away")
    sender = sender_of(spool, road, client)
    sender.start()
    for i in range(4):
        spool.append("event", event(str(i)))
        sender.wake()
    waited = threading.Event()
    assert not waited.wait(0.5)
    assert len(spool.pending()) == 4
    del server.script.fail["Report"]
    sender.wake()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty when it is back")
    sender.stop()
    assert texts(server) == ["0", "1", "2", "3"]


def test_older_boots_come_first_and_keep_their_name(
    server: LinkServer, client: ControllerClient, tmp_path: Path
) -> None:
    FileSpool(tmp_path, "0000000001-00000000").append("event", event("before"))
    spool = FileSpool(tmp_path, BOOT)
    spool.append("event", event("after"))
    road = Road(server.script)
    road.up = False
    sender = sender_of(spool, road, client)
    sender.start()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty")
    sender.stop()
    assert [(e.boot_id, e.seq, e.event.reason) for e in server.script.stored] == [
        ("0000000001-00000000", 1, "before"),
        (BOOT, 1, "after"),
    ]


def test_what_rotted_in_the_spool_is_told_under_its_number() -> None:
    for entry in (
        SpoolEntry(BOOT, 4, LOST, b""),
        SpoolEntry(BOOT, 4, "report", b"\xff\xff"),
        SpoolEntry(BOOT, 4, "report", event("an event under a report's name")),
    ):
        envelope = numbered(entry)
        assert (envelope.boot_id, envelope.seq) == (BOOT, 4)
        assert envelope.event.kind == "report_lost"
        assert suffix_of(envelope) == topics.UP_EVENT


def test_a_controller_that_forgot_is_asked_once_and_told_only_what_hello_confirmed(
    client: ControllerClient, spool: FileSpool
) -> None:
    for text in ("1", "2", "3"):
        spool.append("event", event(text))
    spool.ack(BOOT, 2)
    taken: list[device_pb2.Envelope] = []
    asked: list[int] = []

    def publish(_suffix: str, payload: bytes, _qos: int) -> bool:
        taken.append(device_pb2.Envelope.FromString(payload))
        return True

    sender = SpoolSender(
        spool, publish, client.report, lambda: True, SystemClock(), lambda _: None,
        lambda: asked.append(1), ack_wait_s=60.0,
    )  # fmt: skip
    sender.start()
    try:
        wait_for(lambda: taken, 10, "the third")
        assert (taken[0].seq, taken[0].acknowledged) == (3, 0)
        for _ in range(3):
            sender.acked(AckPoint(BOOT, 1))  # an old answer, or one of a database that forgot
        wait_for(lambda: asked, 10, "the question")
        assert spool.acknowledged() == {BOOT: 2}, "what was acknowledged stays so"
        sender.forgotten(frozenset({BOOT}))
        wait_for(lambda: len(taken) == 2, 10, "the third once more")
        assert (taken[1].seq, taken[1].acknowledged) == (3, 2)
        sender.acked(AckPoint(BOOT, 3))
        wait_for(lambda: not spool.pending(), 10, "the end")
        spool.append("event", event("4"))
        sender.wake()
        wait_for(lambda: len(taken) == 3, 10, "the fourth")
        assert (taken[2].seq, taken[2].acknowledged) == (4, 0), "it goes on as ever"
        assert asked == [1]
    finally:
        sender.stop()


def test_a_sender_that_drops_on_send_would_lose_reports(
    server: LinkServer, client: ControllerClient, spool: FileSpool
) -> None:
    """The negative control: taking "handed over" for "stored" loses what is swallowed."""
    road = Road(server.script)
    road.swallows = True
    spool.append("event", event("lost"))

    def careless(suffix: str, payload: bytes, qos: int) -> bool:
        done = road.publish(suffix, payload, qos)
        envelope = device_pb2.Envelope.FromString(payload)
        sender.acked(AckPoint(envelope.boot_id, envelope.seq))
        return done

    sender = SpoolSender(
        spool, careless, client.report, lambda: True, SystemClock(), lambda _: None,
        ack_wait_s=0.1, slow_road_after_s=0.1,
    )  # fmt: skip
    sender.start()
    wait_for(lambda: not spool.pending(), 10, "the spool to empty")
    sender.stop()
    assert texts(server) == []
