"""What /metrics reads of the database, on SQLite and PostgreSQL alike."""

from datetime import timedelta

import pytest

from agent.domain.ladder import ChangeKind
from agent.domain.probation import Cause
from controller.domain.rollout import AssignmentState
from controller.services.metrics import ROLLBACK_CAUSES, RUNG_REASONS, EventTotals
from controller.store import events, metrics, outbox
from controller.store.builds import put_gate
from controller.store.devices import put_capabilities, update_device
from controller.store.outbox import OutboxKind
from controller.store.session import Connection, Store
from tests.support.stores import (
    NOW,
    PROJECT,
    gate_row,
    seed_assignment,
    seed_device,
    seed_rollout,
    seed_version,
)


def told(conn: Connection, seq: int, kind: str, **details: str) -> None:
    events.append(
        conn, PROJECT, NOW, kind, "pi-1", device_id="pi-1", boot_id="1-a", seq=seq,
        model="digits", version="1.0.0", details=details,
    )  # fmt: skip


def test_the_words_of_both_sides_are_the_same() -> None:
    assert set(ROLLBACK_CAUSES) == {cause.value for cause in Cause}
    assert set(RUNG_REASONS) == {kind.value for kind in ChangeKind}


def test_counts_over_whole_tables(store: Store) -> None:
    with store.write() as conn:
        for name in ("pi-1", "pi-2", "old"):
            seed_device(conn, name)
        update_device(conn, "pi-1", profile="pi", online=True, status={"temperature_c": 70.5})
        update_device(conn, "old", state="RETIRED")
        put_capabilities(conn, "pi-1", {"memory_bytes": 8_000_000_000}, NOW)
        put_capabilities(conn, "pi-2", {}, NOW)
        seed_version(conn, version="1.0.0")
        seed_version(conn, version="1.1.0")
        seed_rollout(conn)
        seed_assignment(conn, "r-222222", "pi-1")
        seed_assignment(conn, "r-222222", "pi-2", position=1, state=AssignmentState.REFUSED)
        put_gate(conn, PROJECT, gate_row(None))
        put_gate(conn, PROJECT, gate_row(None, variant="light", verdict="REFUSED"))
        outbox.append(conn, NOW, OutboxKind.ACK, "t", b"x")
    with store.read() as conn:
        facts = {fact.device_id: fact for fact in metrics.list_facts(conn)}
        assert sorted(facts) == ["pi-1", "pi-2"]
        assert facts["pi-1"].status == {"temperature_c": 70.5}
        assert facts["pi-2"].seen_at == NOW
        assert metrics.memory_totals(conn) == {"pi-1": 8_000_000_000}
        assert metrics.count_behind(conn) == 0
        (shown,) = metrics.list_shown(conn, NOW - timedelta(days=1), 50)
        assert (shown.rollout_id, shown.phase) == ("r-222222", "PENDING")
        states = metrics.count_rollout_states(conn, ["r-222222"])
        assert states == {("r-222222", "PLANNED"): 1, ("r-222222", "REFUSED"): 1}
        assert metrics.count_assignment_states(conn) == {"PLANNED": 1, "REFUSED": 1}
        assert metrics.count_build_states(conn) == {"queued": 1, "refused": 1}
        assert metrics.outbox_backlog(conn) == (1, NOW)
        assert metrics.newest_versions(conn, 1) != metrics.newest_versions(conn, 2)
        assert metrics.versions_of_devices(conn, ["pi-1"]) == {"pi-1": {("digits", "1.0.0")}}


def test_events_are_counted_once_and_again_after_a_restart(store: Store) -> None:
    totals = EventTotals()
    with store.write() as conn:
        seed_device(conn)
        told(conn, 1, "rolled_back", cause="slow")
        told(conn, 2, "rung_changed", **{"from": "heavy", "to": "light", "cause": "temperature"})
        told(conn, 3, "boot")
    for _ in range(2):
        with store.read() as conn:
            rollbacks, changes = totals.catch_up(conn)
        assert rollbacks == {("digits", "1.0.0", "slow"): 1}
        assert changes == {("digits", "heavy", "light", "temperature"): 1}
    with store.write() as conn:
        told(conn, 4, "rolled_back", cause="slow")
        told(conn, 5, "rolled_back", cause="x" * 500)
    with store.read() as conn:
        grown, _ = totals.catch_up(conn)
        again, _ = EventTotals().catch_up(conn)
    assert grown == again == {("digits", "1.0.0", "slow"): 2, ("digits", "1.0.0", "other"): 1}


def test_a_device_that_invents_rungs_makes_a_bounded_number_of_series(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.services.metrics.MAX_COUNTED", 3)
    with store.write() as conn:
        seed_device(conn)
        for seq in range(1, 20):
            told(conn, seq, "rung_changed", **{"from": f"r{seq}", "to": "y", "cause": "load"})
    with store.read() as conn:
        _, changes = EventTotals().catch_up(conn)
    assert len(changes) == 4
    assert sum(changes.values()) == 19
