"""Rollouts, waves, assignments and desired states."""

from collections import Counter
from datetime import datetime

import pytest

from controller.domain.rollout import AssignmentState, Intent, Phase, Verdict
from controller.domain.wave import Wave
from controller.store import assignments, desired, ledger, reported, rollouts, waves
from controller.store.devices import behind, desired_generations, raise_applied, update_device
from controller.store.session import (
    Connection,
    ConstraintConflictError,
    ConstraintInvariantError,
    Store,
)
from tests.support.stores import (
    NOW,
    PROJECT,
    after,
    digest,
    seed_assignment,
    seed_device,
    seed_rollout,
    seed_version,
)

A = AssignmentState


def _offer(conn: Connection, rollout_id: str, device_id: str, at: datetime = NOW) -> None:
    row = assignments.get_assignment(conn, rollout_id, device_id)
    assert row is not None
    assignments.move(conn, row, A.OFFERED, "wave 1", NOW, generation=1, exposed=True, offered_at=at)


def _put_desired(conn: Connection, device_id: str, generation: int) -> None:
    desired.put_desired(
        conn,
        device_id,
        generation,
        {"digits": {"version": "1.0.0"}},
        b'{"schema":1}',
        digest(f"m{generation}"),
        [{"key_id": "k", "signature": "c2ln"}],
        NOW,
    )


def test_rollouts_newest_first_and_active_only(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        seed_rollout(conn, "r-1", at=NOW)
        seed_rollout(conn, "r-2", at=after(5))
        rollouts.set_phase(conn, "r-1", Phase.SUCCEEDED, "all", 2, (), None, after(9))
        rollouts.set_intent(conn, "r-2", Intent.PAUSE, "bo", "lunch", after(6))
        found = rollouts.list_rollouts(conn, PROJECT)
        assert [row.rollout_id for row in found] == ["r-2", "r-1"]
        assert [r.rollout_id for r in rollouts.list_rollouts(conn, active_only=True)] == ["r-2"]
        assert len(rollouts.list_rollouts(conn, PROJECT, limit=1)) == 1
        paused = rollouts.get_rollout(conn, PROJECT, "r-2")
        assert paused is not None
        assert (paused.intent, paused.intent_by, paused.intent_at) == (
            Intent.PAUSE,
            "bo",
            after(6),
        )
        assert paused.phase is Phase.PENDING
        ended = rollouts.get_rollout(conn, PROJECT, "r-1")
        assert ended is not None
        assert (ended.phase, ended.current_wave, ended.finished_at) == (
            Phase.SUCCEEDED,
            2,
            after(9),
        )
        assert rollouts.get_rollout(conn, "other", "r-1") is None


def test_a_rollout_needs_its_version(store: Store) -> None:
    with pytest.raises(ConstraintInvariantError), store.write() as conn:
        seed_rollout(conn)


def test_waves_open_and_are_judged(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        rollout_id = seed_rollout(conn)
        waves.insert_waves(conn, rollout_id, [Wave(1, "1", 1, 1), Wave(2, "100%", 5, 6)])
        waves.open_wave(conn, rollout_id, 1, after(1))
        waves.set_verdict(
            conn, rollout_id, 1, Verdict.PASSED, "612 of 600", {"n": 612}, after(2), after(3)
        )
        first, second = waves.list_waves(conn, rollout_id)
        assert (first.opened_at, first.verdict, first.evidence) == (
            after(1),
            Verdict.PASSED,
            {"n": 612},
        )
        assert (second.opened_at, second.verdict, second.cumulative) == (None, None, 6)
    with pytest.raises(ConstraintConflictError), store.write() as conn:
        waves.insert_waves(conn, rollout_id, [Wave(1, "1", 1, 1)])


def test_one_open_assignment_per_device_and_model(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        seed_device(conn)
        first, second = seed_rollout(conn, "r-1"), seed_rollout(conn, "r-2")
        seed_assignment(conn, first, "pi-1")
    with pytest.raises(ConstraintConflictError) as caught, store.write() as conn:
        seed_assignment(conn, second, "pi-1")
    assert caught.value.constraint == "uq_assignment_open"
    with store.write() as conn:  # closing the first one makes room
        row = assignments.get_assignment(conn, first, "pi-1")
        assert row is not None
        assignments.move(conn, row, A.SUPERSEDED, "superseded by r-2", NOW)
        seed_assignment(conn, second, "pi-1")
        open_now = assignments.open_of_model(conn, "digits", ["pi-1", "pi-2"])
        assert [one.rollout_id for one in open_now] == [second]


def test_the_ledger_counts_whoever_was_offered(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        rollout_id = seed_rollout(conn)
        for position, name in enumerate(("a", "b", "c")):
            seed_device(conn, name)
            update_device(conn, name, online=name != "c")
            seed_assignment(conn, rollout_id, name, position=position)
        assert ledger.candidates(conn, rollout_id, 10) == ["a", "b"]
        _offer(conn, rollout_id, "a")
        assert ledger.candidates(conn, rollout_id, 10) == ["b"]
        assert ledger.tally(conn, rollout_id).exposed == 1
        assert ledger.tally(conn, rollout_id).by_wave == {(1, A.PLANNED): 2, (1, A.OFFERED): 1}
    row = None
    with store.read() as conn:
        row = assignments.get_assignment(conn, rollout_id, "b")
    assert row is not None
    with pytest.raises(ConstraintInvariantError) as caught, store.write() as conn:
        assignments.move(conn, row, A.OFFERED, "forgot the ledger", NOW)
    assert caught.value.constraint == "ck_assignment_ledger"


def test_reports_move_an_assignment_along_and_never_raise(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        seed_device(conn)
        rollout_id = seed_rollout(conn)
        seed_assignment(conn, rollout_id, "pi-1")
        _offer(conn, rollout_id, "pi-1")

        def report(state: A, evidence: dict[str, object] | None = None) -> bool:
            return reported.record_report(
                conn, "pi-1", rollout_id, state, "said so", evidence, after(1)
            ).changed

        for state in (A.DOWNLOADING, A.VERIFIED, A.STAGED, A.ACTIVATED, A.PROBATION):
            assert report(state, {state.value: 1})
        assert not report(A.DOWNLOADING)
        assert report(A.COMMITTED, {"n": 212})
        row = assignments.get_assignment(conn, rollout_id, "pi-1")
        assert row is not None
        assert (row.state, row.activated_at, row.finished_at) == (A.COMMITTED, after(1), after(1))
        assert row.evidence["n"] == 212
        assert row.evidence["STAGED"] == 1
        assert not reported.has_left(conn, rollout_id)
        assert report(A.ROLLING_BACK)
        assert reported.has_left(conn, rollout_id)
        assert not reported.has_left(conn, "r-333333")
        found = rollouts.find_rollout(conn, rollout_id)
        assert found == rollouts.get_rollout(conn, PROJECT, rollout_id)
        assert rollouts.find_rollout(conn, "r-333333") is None
        unknown = reported.record_report(conn, "x", rollout_id, A.STAGED, "", None, NOW)
        assert unknown.ignored


def test_a_starved_device_says_why_it_is_still_in_probation(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        seed_device(conn)
        rollout_id = seed_rollout(conn)
        seed_assignment(conn, rollout_id, "pi-1")
        _offer(conn, rollout_id, "pi-1")

        def reason(said: str, starved: bool) -> str:
            evidence = {"starved": starved}
            reported.record_report(conn, "pi-1", rollout_id, A.PROBATION, said, evidence, after(1))
            row = assignments.get_assignment(conn, rollout_id, "pi-1")
            assert row is not None
            return row.reason

        assert reason("it answers requests", False) == "it answers requests"
        assert reason("said again", False) == "it answers requests"
        assert reason("starved: 0 of 10 inferences", True) == "starved: 0 of 10 inferences"


def test_counts_are_those_of_the_rows_whatever_moves(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        names = [f"pi-{number}" for number in range(4)]
        for name in names:
            seed_device(conn, name)
        rollout_id = seed_rollout(conn)
        for name in names:
            seed_assignment(conn, rollout_id, name)
            _offer(conn, rollout_id, name)
        for name, steps in (
            ("pi-0", [A.DOWNLOADING, A.REFUSED]),
            ("pi-1", [A.PROBATION, A.COMMITTED]),
            ("pi-2", [A.PROBATION, A.ROLLING_BACK, A.FAILED]),
        ):
            for state in steps:
                reported.record_report(conn, name, rollout_id, state, "", None, NOW)
        rows = assignments.list_assignments(conn, rollout_id)
        found = ledger.tally(conn, rollout_id)
    assert found.by_wave == Counter((row.wave, row.state) for row in rows)
    assert found.exposed == sum(row.exposed for row in rows)
    assert found.not_returned == 1


def test_a_committed_device_is_taken_over_by_its_newest_commit(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        seed_device(conn)
        for number, name in enumerate(("r-1", "r-2", "r-3")):
            seed_assignment(conn, seed_rollout(conn, name), "pi-1")
            _offer(conn, name, "pi-1", after(number))
            reported.record_report(conn, "pi-1", name, A.PROBATION, "", None, after(number))
            taken = [ledger.taken_over(conn, one) for one in ("r-1", "r-2")[:number]]
            assert all(not found or found[0][1] != name for found in taken), "not committed yet"
            reported.record_report(conn, "pi-1", name, A.COMMITTED, "", None, after(number))
        assert ledger.taken_over(conn, "r-1") == [(1, "r-3")]
        assert ledger.taken_over(conn, "r-2") == [(1, "r-3")]
        assert ledger.taken_over(conn, "r-3") == []


def test_what_a_device_left_is_listed_until_settled(store: Store) -> None:
    with store.write() as conn:
        seed_version(conn)
        seed_device(conn)
        rollout_id = seed_rollout(conn)
        seed_assignment(conn, rollout_id, "pi-1")
        _offer(conn, rollout_id, "pi-1")
        for state in (A.DOWNLOADING, A.FAILED):
            reported.record_report(conn, "pi-1", rollout_id, state, "", None, NOW)
        (left,) = ledger.list_unsettled(conn)
        assignments.settle(conn, [left], NOW)
        assert ledger.list_unsettled(conn) == []


def test_what_a_device_leaves_after_it_was_superseded_is_looked_after(store: Store) -> None:
    """The newer rollout may end without an order to it: then the version it left stays desired."""
    with store.write() as conn:
        seed_version(conn)
        seed_device(conn)
        rollout_id = seed_rollout(conn)
        seed_assignment(conn, rollout_id, "pi-1")
        _offer(conn, rollout_id, "pi-1")
        reported.record_report(conn, "pi-1", rollout_id, A.PROBATION, "", None, NOW)
        row = assignments.get_assignment(conn, rollout_id, "pi-1")
        assert row is not None
        assignments.move(conn, row, A.SUPERSEDED, "superseded by r-2", NOW, finished_at=NOW)
        reported.record_report(conn, "pi-1", rollout_id, A.ROLLING_BACK, "slow", None, NOW)
        assert ledger.list_unsettled(conn) == []
        reported.record_report(conn, "pi-1", rollout_id, A.ROLLED_BACK, "slow", None, NOW)
        (left,) = ledger.list_unsettled(conn)
        assert (left.state, left.reason) == (A.SUPERSEDED, "superseded by r-2")


def test_a_generation_is_new_every_time(store: Store) -> None:
    with store.write() as conn:
        seed_device(conn)
        _put_desired(conn, "pi-1", 1)
        _put_desired(conn, "pi-1", 2)
        row = desired.get_desired(conn, "pi-1")
        assert row is not None
        assert (row.generation, row.manifest) == (2, b'{"schema":1}')
        assert desired.desired_models(conn, ["pi-1", "x"]) == {
            "pi-1": {"digits": {"version": "1.0.0"}}
        }
        assert desired_generations(conn) == {"pi-1": 2}
        assert behind(conn) == [("pi-1", 2, digest("m2"))]
        raise_applied(conn, "pi-1", 2)
        assert behind(conn) == []
        assert desired.get_desired(conn, "x") is None
    for stale in (2, 1, 0):
        refused = pytest.raises((ConstraintConflictError, ConstraintInvariantError))
        with refused, store.write() as conn:
            _put_desired(conn, "pi-1", stale)


def test_an_order_needs_its_device(store: Store) -> None:
    with pytest.raises(ConstraintInvariantError), store.write() as conn:
        _put_desired(conn, "nobody", 1)
