"""Reports are stored exactly once and without gaps, in whatever order and number they come."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.domain.rollout import AssignmentState
from controller.errors import DeniedError, InvalidError
from controller.services.devices import retire_device
from controller.services.reports import (
    Ack,
    DeviceEnvelope,
    EventBody,
    ReportBody,
    accept_reports,
)
from controller.store import assignments, devices, events, outbox
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


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            seed_version(conn)
            seed_device(conn, "pi-1")
            seed_rollout(conn)
            seed_assignment(conn, "r-222222", "pi-1")
        yield opened


def event(seq: int, boot_id: str = BOOT, kind: str = "rung_changed") -> DeviceEnvelope:
    return DeviceEnvelope(boot_id, seq, EventBody(kind, "digits", "1.0.0", f"number {seq}"))


def accept(desk: Desk, *envelopes: DeviceEnvelope) -> tuple[Ack, ...]:
    return accept_reports(desk.deps, desk.ctx("pi-1"), "pi-1", envelopes).acks


def stored(desk: Desk, boot_id: str = BOOT) -> list[int]:
    with desk.deps.store.read() as conn:
        rows = events.list_events(conn, PROJECT, device_id="pi-1", limit=10_000)
    return [row.seq for row in rows if row.boot_id == boot_id and row.seq is not None]


def test_contiguous_is_stored_duplicates_and_gaps_are_acknowledged_only(desk: Desk) -> None:
    assert accept(desk, event(1), event(2)) == (Ack(BOOT, 2),)
    assert accept(desk, event(1), event(2)) == (Ack(BOOT, 2),)
    assert accept(desk, event(4)) == (Ack(BOOT, 2),)
    assert accept(desk, event(2), event(3), event(4), event(6)) == (Ack(BOOT, 4),)
    assert stored(desk) == [1, 2, 3, 4]


def test_boots_are_counted_apart(desk: Desk) -> None:
    later = "0000000002-bbbb"
    assert accept(desk, event(1), event(1, later), event(2)) == (Ack(BOOT, 2), Ack(later, 1))
    assert (stored(desk), stored(desk, later)) == ([1, 2], [1])


def gapless(numbers: Sequence[int]) -> bool:
    return list(numbers) == list(range(1, len(numbers) + 1))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    boot=st.integers(2, 10**9),
    batches=st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=12),
)
def test_whatever_comes_the_log_has_no_gap(desk: Desk, boot: int, batches: list[list[int]]) -> None:
    boot_id = f"{boot:010d}-cccc"
    for batch in batches:
        acks = accept(desk, *(event(seq, boot_id) for seq in batch))
        if batch:
            assert acks == (Ack(boot_id, len(stored(desk, boot_id))),)
    assert gapless(stored(desk, boot_id))


def careless(seen: list[int], seq: int) -> None:
    """A broken variant: takes everything that is new, in whatever order."""
    if seq not in seen:
        seen.append(seq)


def test_negative_control_taking_what_is_merely_new_leaves_gaps() -> None:
    seen: list[int] = []
    for seq in (1, 3, 2):
        careless(seen, seq)
    assert not gapless(seen)


def report(seq: int, state: A | None, **more: object) -> DeviceEnvelope:
    body = ReportBody("digits", "1.0.0", "r-222222", 1, state, **more)  # type: ignore[arg-type]
    return DeviceEnvelope(BOOT, seq, body)


def kinds(desk: Desk) -> list[str]:
    with desk.deps.store.read() as conn:
        return [row.kind for row in events.list_events(conn, PROJECT, device_id="pi-1")]


def test_an_illegal_report_is_kept_and_changes_nothing(desk: Desk) -> None:
    accept(desk, report(1, A.COMMITTED), report(2, None))
    assert kinds(desk) == ["report_ignored", "report_ignored"]
    with desk.deps.store.read() as conn:
        assert assignments.list_assignments(conn, "r-222222")[0].state is A.PLANNED
    assert stored(desk) == [1, 2]


def test_legal_reports_move_the_assignment_and_wake_the_tick(desk: Desk) -> None:
    with desk.deps.store.write() as conn:
        row = assignments.list_assignments(conn, "r-222222")[0]
        assignments.move(conn, row, A.OFFERED, "wave 1", desk.now, exposed=True)
    evidence = {"inferences": 212, "last_service_s": [0.131, 0.118], "p95_s": 0.14}
    accept(
        desk,
        report(1, A.DOWNLOADING),
        report(2, A.PROBATION, reason="12 of 20"),
        report(3, A.COMMITTED, applied=True, evidence=evidence),
    )
    assert kinds(desk) == ["assignment_downloading", "assignment_probation", "assignment_committed"]
    assert desk.woken >= 1
    with desk.deps.store.read() as conn:
        row = assignments.list_assignments(conn, "r-222222")[0]
        last = events.list_events(conn, PROJECT, device_id="pi-1")[-1]
    assert row.state is A.COMMITTED
    assert row.evidence["inferences"] == 212
    assert last.details["last_service_ms"] == "131 118"


def test_a_report_on_an_unknown_rollout_is_kept(desk: Desk) -> None:
    body = ReportBody("digits", "9.9.9", "r-999999", 1, A.COMMITTED)
    accept(desk, DeviceEnvelope(BOOT, 1, body))
    assert kinds(desk) == ["report_ignored"]


def test_an_applied_generation_is_taken_and_never_goes_down(desk: Desk) -> None:
    accept(desk, report(1, A.COMMITTED, applied=True))
    body = ReportBody("digits", "1.0.0", "r-222222", 0, A.COMMITTED, applied=True)
    accept(desk, DeviceEnvelope(BOOT, 2, body))
    with desk.deps.store.read() as conn:
        row = devices.get_device(conn, "pi-1")
    assert row is not None
    assert row.applied_generation == 1


def test_the_acknowledgement_is_in_the_same_transaction(desk: Desk) -> None:
    def message(ack: Ack) -> tuple[str, bytes]:
        return f"ack/{ack.boot_id}", str(ack.seq).encode()

    accept_reports(desk.deps, desk.ctx(), "pi-1", [event(1), event(3)], message)
    with desk.deps.store.read() as conn:
        assert [(row.topic, row.payload) for row in outbox.take(conn)] == [(f"ack/{BOOT}", b"1")]

    def broken(ack: Ack) -> tuple[str, bytes]:
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        accept_reports(desk.deps, desk.ctx(), "pi-1", [event(2)], broken)
    assert stored(desk) == [1]


def test_long_and_strange_events_are_cut_not_refused(desk: Desk) -> None:
    body = EventBody("DROP TABLE;", "m" * 9000, "v", "r" * 9000, {str(n): "x" for n in range(99)})
    accept(desk, DeviceEnvelope(BOOT, 1, body))
    with desk.deps.store.read() as conn:
        (row,) = events.list_events(conn, PROJECT, device_id="pi-1")
    assert (row.kind, len(row.reason), len(row.details)) == ("device_event", 2000, 32)


def test_who_may_not_speak_is_not_stored(desk: Desk) -> None:
    with pytest.raises(DeniedError):
        accept_reports(desk.deps, desk.ctx(), "pi-9", [event(1)])
    retire_device(desk.deps, desk.ctx(), "pi-1")
    with pytest.raises(DeniedError):
        accept(desk, event(1))
    assert stored(desk) == []


@pytest.mark.parametrize("boot_id", ["", "x", "1", "-a", "1-", "1-A", "99999999999999-a", "1-a/b"])
def test_a_boot_id_without_a_counter_is_refused(desk: Desk, boot_id: str) -> None:
    with pytest.raises(InvalidError):
        accept(desk, event(1, boot_id))
