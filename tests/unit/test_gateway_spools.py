"""What many devices say at once is stored in one transaction, and none holds up another."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from controller.clock import SystemClock
from controller.domain.rollout import AssignmentState
from controller.errors import DeniedError, InvalidError
from controller.mqtt import ingest
from controller.mqtt.client import Message, Outgoing
from controller.services.reports import (
    Accepted,
    Ack,
    DeviceEnvelope,
    EventBody,
    ReportBody,
    accept_reports,
    accept_spools,
)
from controller.store import assignments, devices, events
from controller.store.assignments import AssignmentRow
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
ROLLOUT = "r-222222"
NAMES = ("pi-1", "pi-2", "pi-3")
WAY = (A.DOWNLOADING, A.VERIFIED, A.STAGED, A.ACTIVATED, A.PROBATION, A.COMMITTED)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            seed_version(conn)
            seed_rollout(conn)
            for name in NAMES:
                seed_device(conn, name)
                seed_assignment(conn, ROLLOUT, name, position=NAMES.index(name))
            offers = [
                (row, A.OFFERED, "offered", {"exposed": True, "generation": 7})
                for row in assignments.list_assignments(conn, ROLLOUT)
            ]
            assignments.move_many(conn, offers, opened.now)
        yield opened


def said(*states: AssignmentState, first: int = 1) -> list[DeviceEnvelope]:
    """Reports of these states in a row; the last one applies generation 7."""
    return [
        DeviceEnvelope(
            BOOT,
            number,
            ReportBody(
                model="digits",
                version="1.0.0",
                rollout=ROLLOUT,
                generation=7,
                state=state,
                reason=f"now {state}",
                applied=state is A.COMMITTED,
                evidence={"inferences": number},
            ),
        )
        for number, state in enumerate(states, first)
    ]


def rows(desk: Desk) -> dict[str, AssignmentRow]:
    with desk.deps.store.read() as conn:
        return {one.device_id: one for one in assignments.list_assignments(conn, ROLLOUT)}


def kinds(desk: Desk, name: str) -> list[str]:
    with desk.deps.store.read() as conn:
        return [one.kind for one in events.list_events(conn, PROJECT, device_id=name)]


def test_a_batch_does_what_one_after_the_other_does(desk: Desk, tmp_path: Path) -> None:
    answers = accept_spools(desk.deps, desk.ctx("controller"), {n: said(*WAY) for n in NAMES[:2]})
    for envelope in said(*WAY):
        accept_reports(desk.deps, desk.ctx("controller"), "pi-3", [envelope])
    assert answers["pi-1"] == Accepted((Ack(BOOT, len(WAY)),))
    found = rows(desk)
    same = ("state", "reason", "evidence", "exposed", "activated_at", "finished_at", "updated_at")
    for name in NAMES[:2]:
        assert kinds(desk, name) == kinds(desk, "pi-3")
        for column in same:
            assert getattr(found[name], column) == getattr(found["pi-3"], column), column
    with desk.deps.store.read() as conn:
        applied = {one.device_id: one.applied_generation for one in devices.list_devices(
            conn, PROJECT)}  # fmt: skip
    assert applied == dict.fromkeys(NAMES, 7)
    assert found["pi-1"].state is A.COMMITTED


def test_who_may_not_speak_holds_up_nobody(desk: Desk) -> None:
    spools: Mapping[str, Sequence[DeviceEnvelope]] = {
        "nobody": said(A.DOWNLOADING),
        "pi-2": [DeviceEnvelope("no counter", 1, EventBody("boot"))],
        "pi-1": said(A.DOWNLOADING),
    }
    answers = accept_spools(desk.deps, desk.ctx("controller"), spools)
    assert isinstance(answers["nobody"], DeniedError)
    assert isinstance(answers["pi-2"], InvalidError)
    assert answers["pi-1"] == Accepted((Ack(BOOT, 1),))
    assert rows(desk)["pi-1"].state is A.DOWNLOADING
    assert kinds(desk, "pi-2") == []


def test_an_older_applied_generation_changes_nothing(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        devices.raise_applied(conn, "pi-1", 9)
    accept_spools(desk.deps, desk.ctx("controller"), {"pi-1": said(*WAY)})
    with desk.deps.store.read() as conn:
        row = devices.get_device(conn, "pi-1")
    assert row is not None
    assert row.applied_generation == 9


def test_what_cannot_be_stored_stands_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One spool that the database refuses: the others of its batch are stored and acknowledged."""

    def refuse(deps: Any, ctx: Any, spools: Mapping[str, Any]) -> Any:
        if "pi-2" in spools:
            raise ValueError("a text that the database does not take")
        return accept_spools(deps, ctx, spools)

    monkeypatch.setattr(ingest, "accept_spools", refuse)
    sent: list[Outgoing] = []
    made = ingest.Ingest(
        desk.deps, desk.ctx, SystemClock(), sent.append, lambda: None, grace_s=30.0
    )
    made.start()
    for name in NAMES:
        envelope = device_pb2.Envelope(protocol=1, boot_id=BOOT, seq=1)
        envelope.event.kind = "boot"
        topic = topics.device(name, topics.UP_EVENT)
        made.take(Message(topic, envelope.SerializeToString(), retained=False))
    made.stop()
    assert [kinds(desk, name) for name in NAMES] == [["boot"], [], ["boot"]]
    assert sorted(one.topic for one in sent) == [
        topics.device(name, topics.DOWN_ACK) for name in ("pi-1", "pi-3")
    ]
    assert made.counts["failed"] == 1
