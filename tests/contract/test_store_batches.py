"""What is read and written for many devices at once, on both databases."""

import pytest

from controller.domain.rollout import AssignmentState, IllegalTransitionError
from controller.errors import InvariantError
from controller.store import (
    assignments,
    boots,
    desired,
    devices,
    events,
    metrics,
    outbox,
    reported,
)
from controller.store.events import NewEvent
from controller.store.outbox import OutboxKind
from controller.store.session import Connection, Store
from tests.support.stores import (
    NOW,
    PROJECT,
    after,
    seed_assignment,
    seed_device,
    seed_rollout,
    seed_version,
)

A = AssignmentState
NAMES = ("a", "b", "c")
MANY = [f"d-{number:04d}" for number in range(1201)]  # more than one portion of parameters


def seed(conn: Connection) -> str:
    """Three devices in one rollout; gives its id."""
    seed_version(conn)
    rollout_id = seed_rollout(conn)
    for position, name in enumerate(NAMES):
        seed_device(conn, name)
        seed_assignment(conn, rollout_id, name, position=position)
    return rollout_id


def test_who_was_heard_is_noted_and_generations_never_go_down(store: Store) -> None:
    with store.write() as conn:
        for name in NAMES:
            seed_device(conn, name)
        devices.raise_applied(conn, "b", 5)
        devices.note_heard(
            conn,
            [("a", after(1), 3, None), ("b", after(2), 4, {"t": 1}), ("c", after(3), 0, {"t": 2})],
        )
        devices.note_heard(conn, [])
    with store.read() as conn:
        rows = {row.device_id: row for row in devices.list_devices(conn, PROJECT)}
        speakers = devices.list_speakers(conn, ["a", "b", "x"])
    assert [rows[name].applied_generation for name in NAMES] == [3, 5, 0]
    assert [rows[name].last_seen_at for name in NAMES] == [after(1), after(2), after(3)]
    assert [rows[name].status for name in NAMES] == [None, {"t": 1}, {"t": 2}]
    assert set(speakers) == {"a", "b"}
    assert speakers["b"].applied_generation == 5


def test_presence_of_many(store: Store) -> None:
    with store.write() as conn:
        for name in NAMES:
            seed_device(conn, name)
        devices.note_presence(
            conn, [("a", True, after(1), {"online": True}), ("b", False, None, None)]
        )
        devices.note_presence(conn, [])
    with store.read() as conn:
        rows = {row.device_id: row for row in devices.list_devices(conn, PROJECT)}
        brief = devices.list_devices(conn, PROJECT, with_status=False)
        assert devices.count_offline(conn, PROJECT, NAMES) == 2
        assert devices.count_offline(conn, "other", NAMES) == 0
        assert [row.device_id for row in devices.find_devices(conn, ["c", "x", "a"])] == ["a", "c"]
    assert (rows["a"].online, rows["a"].last_seen_at) == (True, after(1))
    assert rows["a"].status == {"online": True}
    assert (rows["b"].online, rows["b"].status) == (False, None)
    assert all(row.status is None for row in brief)


def test_events_and_outbox_keep_their_order(store: Store) -> None:
    with store.write() as conn:
        before = events.last_number(conn)
        events.append_many(
            conn,
            [
                NewEvent(PROJECT, NOW, f"k{number}", "ana", reason="r", details={"n": number})
                for number in range(300)
            ],
        )
        events.append_many(conn, [])
        outbox.append_many(conn, NOW, OutboxKind.DOORBELL, [(n, b"x") for n in NAMES], retain=True)
        outbox.append_many(conn, NOW, OutboxKind.ACK, [])
    with store.read() as conn:
        found = events.list_events(conn, PROJECT, after=before, newest=False, limit=1000)
        told = outbox.take(conn)
    assert [one.kind for one in found] == [f"k{number}" for number in range(300)]
    assert [one.details for one in found[:2]] == [{"n": "0"}, {"n": "1"}]
    assert [(one.topic, one.payload, one.retain) for one in told] == [
        (name, b"x", True) for name in NAMES
    ]


def test_boots_of_many(store: Store) -> None:
    with store.write() as conn:
        for name in NAMES:
            seed_device(conn, name)
            boots.add_boot(conn, name, "1-x", 1, NOW)
            boots.add_boot(conn, name, "2-y", 2, NOW)
        boots.set_last_seqs(conn, {("a", "1-x"): 4, ("b", "2-y"): 9})
        boots.set_last_seqs(conn, {})
        found = boots.list_boots(conn, ["a", "b"], ["1-x", "2-y"])
    assert {key: row.last_seq for key, row in found.items()} == {
        ("a", "1-x"): 4, ("a", "2-y"): 0, ("b", "1-x"): 0, ("b", "2-y"): 9,
    }  # fmt: skip


def test_desired_states_of_many_only_get_newer(store: Store) -> None:
    def row(name: str, generation: int) -> dict[str, object]:
        return {
            "device_id": name, "generation": generation, "models": {"m": {"g": generation}},
            "manifest": b"{}", "manifest_digest": "sha256:0", "signatures": [], "updated_at": NOW,
        }  # fmt: skip

    with store.write() as conn:
        for name in NAMES:
            seed_device(conn, name)
        desired.put_many(conn, [row("a", 1), row("b", 1)], [])
        desired.put_many(conn, [row("a", 2), row("c", 1), row("b", 3)], ["a", "b"])
        desired.put_many(conn, [], [])
        assert desired.list_desired(conn, [*NAMES, "x"]) == {
            "a": (2, {"m": {"g": 2}}), "b": (3, {"m": {"g": 3}}), "c": (1, {"m": {"g": 1}}),
        }  # fmt: skip
    with pytest.raises(InvariantError), store.write() as conn:
        desired.put_many(conn, [row("a", 3), row("b", 3)], ["a", "b"])
    with store.read() as conn:
        assert desired.list_desired(conn, ["a"])["a"][0] == 2


def test_steps_and_reports_of_many(store: Store) -> None:
    with store.write() as conn:
        rollout_id = seed(conn)
        rows = assignments.list_assignments(conn, rollout_id)
        values = {
            "exposed": True, "generation": 1, "previous_entry": {"version": "0.9.0"},
            "baseline": None, "offered_at": after(1),
        }  # fmt: skip
        steps = [(row, A.OFFERED, f"to {row.device_id}", values) for row in rows]
        assignments.move_many(conn, steps, after(1))
        assignments.move_many(conn, [], after(1))
        spoken = reported.list_spoken_of(conn, [rollout_id, "r-other"], ["a", "b", "x"])
        assert set(spoken) == {(rollout_id, "a"), (rollout_id, "b")}
        changed = []
        for number, row in enumerate(spoken.values()):
            result, taken = reported.take_report(
                row, A.ACTIVATED, "it runs", {"inferences": number}, after(2)
            )
            assert result.changed
            changed.append(taken)
        same = reported.take_report(changed[0], A.DOWNLOADING, "late", {"x": 1}, after(3))
        assert same[0].ignored
        assert same[1] is changed[0]
        reported.put_reported(conn, changed)
    with store.read() as conn:
        found = {row.device_id: row for row in assignments.list_assignments(conn, rollout_id)}
        brief = assignments.list_assignments(conn, rollout_id, with_previous=False)
    assert [found[name].state for name in NAMES] == [A.ACTIVATED, A.ACTIVATED, A.OFFERED]
    assert found["b"].activated_at == after(2)
    assert found["b"].evidence["inferences"] == 1
    assert found["c"].reason == "to c"
    # What a report does not read it does not lose either.
    assert [found[name].previous_entry for name in NAMES] == [{"version": "0.9.0"}] * 3
    assert [row.previous_entry for row in brief] == [None] * 3
    with store.read() as conn:
        versions = metrics.versions_of_devices(conn, ["a", "x"])
    assert versions == {"a": {("digits", "1.0.0")}, "x": frozenset()}


def test_an_illegal_step_stops_all_of_them(store: Store) -> None:
    with store.write() as conn:
        rollout_id = seed(conn)
        rows = assignments.list_assignments(conn, rollout_id)
    steps = [
        (rows[0], A.WITHDRAWN, "", {"finished_at": NOW}),
        (rows[1], A.COMMITTED, "", {"finished_at": NOW}),
    ]
    with pytest.raises(IllegalTransitionError, match="cannot go from"), store.write() as conn:
        assignments.move_many(conn, steps, NOW)
    with store.read() as conn:
        assert {row.state for row in assignments.list_assignments(conn, rollout_id)} == {A.PLANNED}


def test_more_devices_than_one_statement_takes(store: Store) -> None:
    with store.write() as conn:
        for name in MANY:
            seed_device(conn, name)
        devices.note_heard(conn, [(name, after(1), 2, None) for name in MANY])
        speakers = devices.list_speakers(conn, MANY)
        assert len(devices.find_devices(conn, MANY)) == len(MANY)
        assert devices.count_offline(conn, PROJECT, MANY) == len(MANY)
    assert len(speakers) == len(MANY)
    assert {one.applied_generation for one in speakers.values()} == {2}
