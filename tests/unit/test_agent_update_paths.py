"""The update machine along the paths people tell: what is reported, where it goes back to."""

from typing import Any

from agent.domain.assignment import ModelState, Phase, Slot, keep_of
from agent.domain.events import (
    Booted,
    DownloadFailed,
    Ending,
    LoadFailed,
    NewDesired,
    NoRoom,
    ProbationVerdict,
    Progress,
    RollBackRequested,
    RolledBack,
    VerifyFailed,
)
from agent.domain.instructions import (
    Fetch,
    LoadAndWarm,
    MarkBad,
    MarkGood,
    Reconfigure,
    Report,
    Serve,
    Swap,
    SwapBack,
    Unload,
)
from agent.domain.manifest import parse_manifest
from agent.domain.orders import orders_of
from agent.domain.probation import Cause, RollBack, Wait
from agent.domain.transition import may_roll_back
from agent.domain.update import step
from controller.domain.rollout import BY_ORDER
from tests.support.releases import canonical, manifest_body, model_body, release
from tests.support.update_world import answer_of, prove, reports, run

V1, V2, V3 = release("1.0.0", "r-1"), release("1.1.0", "r-2"), release("1.2.0", "r-3")
ALL = frozenset(r.slot_id for r in (V1, V2, V3))
SLOW = RollBack(Cause.SLOW, "5 inferences in a row over 100 ms (131 131 131 131 118)")
NEW = ModelState("photo")
WAY_UP = ["OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION"]


def committed(*orders: Any) -> ModelState:
    """A device on which these versions were committed one after the other."""
    state = NEW
    for generation, order in enumerate(orders, 1):
        state, _ = run(state, [NewDesired(order, generation)])
        state, _ = prove(state)
    return state


def slow(state: ModelState) -> ProbationVerdict:
    assert state.current is not None
    return ProbationVerdict(state.current.slot_id, SLOW)


def upto(phase: Phase, order: Any = V2) -> ModelState:
    """A device on 1.0.0 that stopped with 1.1.0 in this phase, every answer still outstanding."""
    state = committed(V1)
    queue: list[Any] = [NewDesired(order, 5)]
    while state.phase is not phase:
        state, instructions = step(state, queue.pop(0))
        queue.extend(a for a in map(answer_of, instructions) if a is not None)
    return state


def test_a_version_goes_all_the_way_up() -> None:
    state, done = run(NEW, [NewDesired(V1, 1)])
    assert reports(done) == [("r-1", phase) for phase in WAY_UP]
    state, done = prove(state)
    assert reports(done) == [("r-1", "COMMITTED")]
    assert MarkGood(V1.slot_id) in done
    assert (state.current, state.previous) == (Slot(V1, committed=True), None)


def test_the_second_version_keeps_the_first_loaded_until_it_is_committed() -> None:
    state, done = run(committed(V1), [NewDesired(V2, 2)])
    assert state.previous == Slot(V1, committed=True)
    assert not [i for i in done if isinstance(i, Unload)]
    state, done = prove(state)
    assert Unload(V1.slot_id) in done
    assert state.previous == Slot(V1, committed=True)
    assert {t.digest for t in (*V1.targets, *V2.targets)} == keep_of([state])


def test_a_slow_version_is_left_once_and_not_tried_again_in_its_rollout() -> None:
    state, _ = run(committed(V1), [NewDesired(V2, 2)])
    assert may_roll_back(state)
    state, done = run(state, [slow(state)])
    assert reports(done) == [("r-2", "ROLLING_BACK"), ("r-2", "ROLLED_BACK")]
    assert MarkBad(V2.slot_id, "r-2", Cause.SLOW) in done
    assert (state.current, state.previous) == (Slot(V1, committed=True), None)
    assert SLOW.reason in state.reason
    assert not may_roll_back(state)
    assert keep_of([state]) == {t.digest for t in V1.targets}
    # The same order, newer: told again, not tried again.
    state, done = run(state, [NewDesired(V2, 3)])
    assert reports(done) == [("r-2", "ROLLED_BACK")]
    # After other orders it is refused for this rollout, and welcome in another.
    state, _ = prove(run(state, [NewDesired(V3, 4)])[0])
    refused, done = run(state, [NewDesired(V2, 5)])
    assert reports(done) == [("r-2", "REFUSED")]
    assert refused.current == state.current
    again, done = run(state, [NewDesired(release("1.1.0", "r-9"), 5)])
    assert again.phase is Phase.PROBATION
    assert not again.latched


def test_the_latch_holds_after_one_return_until_a_new_order_is_activated() -> None:
    state = committed(V1, V2)
    state, done = run(state, [slow(state)])
    assert (state.phase, state.current) == (Phase.ROLLED_BACK, Slot(V1, committed=True))
    again, done = run(state, [slow(state)])
    assert (again, done) == (state, [])
    fresh, _ = run(state, [NewDesired(V3, 9)])
    assert not fresh.latched


def test_a_committed_version_without_a_way_back_stays() -> None:
    state = committed(V1)
    after, done = run(state, [slow(state)])
    assert (after.phase, after.current) == (Phase.COMMITTED, state.current)
    assert after.latched
    assert "nowhere to return" in after.reason
    assert not [i for i in done if isinstance(i, SwapBack)]


def test_the_first_version_ever_goes_on_answering_although_it_failed() -> None:
    state, _ = run(NEW, [NewDesired(V1, 1)])
    after, done = run(state, [slow(state)])
    assert reports(done) == [("r-1", "ROLLING_BACK"), ("r-1", "FAILED")]
    assert after.current == Slot(V1)
    assert "it goes on answering" in after.reason


def test_withdrawn_before_activation_nothing_changes_for_requests() -> None:
    for phase in (Phase.OFFERED, Phase.DOWNLOADING, Phase.VERIFIED, Phase.STAGED):
        state = upto(phase)
        for order, name in ((None, "none"), (V1, "the version before")):
            after, done = run(state, [NewDesired(order, 6)])
            assert ("r-2", "WITHDRAWN") in reports(done), name
            assert (after.current, after.staged) == (Slot(V1, committed=True), None)
            assert not [i for i in done if isinstance(i, Swap | SwapBack)]


def test_the_newest_order_supersedes() -> None:
    for phase in (Phase.OFFERED, Phase.DOWNLOADING, Phase.VERIFIED, Phase.STAGED):
        after, done = run(upto(phase), [NewDesired(V3, 6)])
        assert reports(done)[:2] == [("r-2", "SUPERSEDED"), ("r-3", "OFFERED")]
        assert (after.phase, after.order) == (Phase.PROBATION, V3)
    state = upto(Phase.PROBATION)
    after, done = run(state, [NewDesired(V3, 6)])
    assert reports(done)[0] == ("r-2", "SUPERSEDED")
    # 1.1.0 never proved itself: the way back still is 1.0.0.
    assert after.previous == Slot(V1, committed=True)
    assert Unload(V2.slot_id) in done


def test_a_superseded_version_is_still_left_when_it_turns_slow() -> None:
    state = upto(Phase.PROBATION)
    state, _ = step(state, NewDesired(V3, 6))
    assert (state.phase, state.order) == (Phase.OFFERED, V3)
    after, done = run(state, [slow(state)])
    assert reports(done)[:3] == [
        ("r-2", "ROLLING_BACK"),
        ("r-2", "ROLLED_BACK"),
        ("r-3", "OFFERED"),
    ]
    assert (after.phase, after.order, after.previous) == (
        Phase.PROBATION,
        V3,
        Slot(V1, committed=True),
    )


def test_the_controller_orders_the_previous_version() -> None:
    """The entry of the version before stands in the desired state again: a swap, not a download."""
    for state in (upto(Phase.PROBATION), committed(V1, V2)):
        after, done = run(state, [NewDesired(V1, 9)])
        assert reports(done)[:2] == [("r-2", "ROLLING_BACK"), ("r-2", "ROLLED_BACK")]
        # The controller knows by these words that nobody found the version bad.
        told = [i for i in done if isinstance(i, Report) and i.rollout == "r-2"]
        assert {one.reason for one in told} <= BY_ORDER
        assert reports(done)[-1] == ("r-1", "COMMITTED")
        assert not [i for i in done if isinstance(i, Fetch)]
        assert (after.phase, after.current) == (Phase.COMMITTED, Slot(V1, committed=True))
    # Under the failed rollout's own name it means the same.
    after, done = run(committed(V1, V2), [NewDesired(release("1.0.0", "r-2"), 9)])
    assert reports(done)[:2] == [("r-2", "ROLLING_BACK"), ("r-2", "ROLLED_BACK")]
    # A new rollout of the old version proves itself like any other.
    after, done = run(committed(V1, V2), [NewDesired(release("1.0.0", "r-8"), 9)])
    assert after.phase is Phase.PROBATION
    assert after.previous == Slot(V2, committed=True)


def test_after_its_own_return_the_order_of_the_version_before_is_met_already() -> None:
    state = upto(Phase.PROBATION)
    state, _ = run(state, [slow(state)])
    after, done = run(state, [NewDesired(V1, 9)])
    assert reports(done) == [("r-1", "COMMITTED")]
    assert (after.phase, after.generation) == (Phase.COMMITTED, 9)
    assert not [i for i in done if isinstance(i, Swap | SwapBack | Fetch)]


def test_a_new_rollout_of_what_answers_already_is_committed_at_once() -> None:
    again = release("1.0.0", "r-7")
    after, done = run(committed(V1), [NewDesired(again, 3)])
    assert reports(done) == [("r-7", "COMMITTED")]
    assert after.current == Slot(again, committed=True)


def test_other_policy_for_the_same_files_needs_no_load() -> None:
    changed = release("1.0.0", "r-1", params={"threshold": 0.9})
    for state in (committed(V1), run(NEW, [NewDesired(V1, 1)])[0]):
        after, done = run(state, [NewDesired(changed, 3)])
        assert Reconfigure(changed) in done
        assert not [i for i in done if isinstance(i, LoadAndWarm | Fetch)]
        assert after.phase is state.phase
        assert after.current is not None
        assert after.current.release.params == {"threshold": 0.9}


def test_older_and_repeated_states_change_nothing() -> None:
    state = upto(Phase.PROBATION)
    assert step(state, NewDesired(V1, 4)) == (state, ())
    assert step(state, NewDesired(V2, 5)) == (state, ())
    newer, done = step(state, NewDesired(V2, 6))
    assert newer.generation == 6
    assert [i.phase for i in done if isinstance(i, Report)] == [Phase.PROBATION]


def test_no_room_bad_bytes_and_lost_sources_end_it_before_anything_changed() -> None:
    state = upto(Phase.OFFERED)
    after, done = step(state, NoRoom(state.ticket, "needs 9 MB, 1 MB is free"))
    assert (after.phase, after.reason) == (Phase.REFUSED, "needs 9 MB, 1 MB is free")
    state = upto(Phase.DOWNLOADING)
    for attempt in (1, 2):
        state, done = step(state, VerifyFailed(state.ticket, "other bytes"))
        assert isinstance(done[-1], Fetch)
        assert done[-1].attempt == attempt
    state, _ = step(state, VerifyFailed(state.ticket, "other bytes"))
    assert (state.phase, state.current) == (Phase.FAILED, Slot(V1, committed=True))
    state = upto(Phase.DOWNLOADING)
    for _ in range(20):
        state, done = step(state, DownloadFailed(state.ticket, "cut", retryable=True))
        assert isinstance(done[-1], Fetch)
    state, _ = step(state, DownloadFailed(state.ticket, "unknown blob", retryable=False))
    assert state.phase is Phase.FAILED
    # The next generation that still names it tries again.
    after, _ = run(state, [NewDesired(V2, 6)])
    assert after.phase is Phase.PROBATION


def test_a_load_failure_never_reaches_requests_before_and_goes_back_after_activation() -> None:
    state = upto(Phase.STAGED)
    after, done = step(state, LoadFailed(state.ticket, V2.slot_id, "bad opset"))
    assert (after.phase, after.current) == (Phase.FAILED, Slot(V1, committed=True))
    assert MarkBad(V2.slot_id, "r-2", Cause.LOAD) in done
    for phase in (Phase.ACTIVATED, Phase.PROBATION):
        state = upto(phase)
        after, _ = run(state, [LoadFailed(state.ticket, V2.slot_id, "lost")])
        assert (after.phase, after.current) == (Phase.ROLLED_BACK, Slot(V1, committed=True))


def test_starved_is_told_once_and_commits_nothing() -> None:
    state = upto(Phase.PROBATION)
    starved = ProbationVerdict(V2.slot_id, Wait(None, "starved: 3 of 200", starved=True))
    after, done = step(state, starved)
    assert (after.phase, after.starved) == (Phase.PROBATION, True)
    told = [i for i in done if isinstance(i, Report)]
    assert [(r.phase, r.starved) for r in told] == [(Phase.PROBATION, True)]
    assert step(after, starved) == (after, ())


def test_a_clean_start_goes_on_where_the_journal_ended() -> None:
    state = upto(Phase.PROBATION)
    state, _ = step(state, Progress(state.ticket, 150, 40.0))
    after, done = step(state, Booted(Ending.CLEAN, ALL))
    assert (after.phase, after.counted, after.elapsed_s) == (Phase.PROBATION, 150, 40.0)
    assert done[0] == Serve(state.ticket, V2, V1)


def test_a_crash_in_probation_returns_at_the_next_start() -> None:
    for phase in (Phase.ACTIVATED, Phase.PROBATION):
        state, done = step(upto(phase), Booted(Ending.CRASHED, ALL))
        assert state.phase is Phase.ROLLING_BACK
        assert isinstance(done[-1], SwapBack)
        assert MarkBad(V2.slot_id, "r-2", Cause.CRASH) in done
        # The start after that, had it crashed too, goes on with the way back.
        again, done = step(state, Booted(Ending.CRASHED, ALL))
        assert isinstance(done[-1], SwapBack)
        state, _ = step(again, RolledBack(again.ticket))
        assert state.current == Slot(V1, committed=True)


def test_one_power_cut_is_no_verdict_two_are() -> None:
    state, _ = step(upto(Phase.PROBATION), Booted(Ending.POWER_LOST, ALL))
    assert state.phase is Phase.PROBATION
    state, _ = step(state, Booted(Ending.POWER_LOST, ALL))
    assert state.phase is Phase.ROLLING_BACK
    assert "power was lost 2 times" in state.reason


def test_a_version_that_crashes_while_loading_is_given_up_the_second_time() -> None:
    state, done = step(upto(Phase.STAGED), Booted(Ending.CRASHED, ALL))
    assert isinstance(done[-1], LoadAndWarm)
    state, done = step(state, Booted(Ending.CRASHED, ALL))
    assert (state.phase, state.current) == (Phase.FAILED, Slot(V1, committed=True))


def test_the_first_version_gets_three_starts() -> None:
    state, _ = run(NEW, [NewDesired(V1, 1)])
    for _ in range(2):
        state, done = step(state, Booted(Ending.CRASHED, ALL))
        assert state.phase is Phase.PROBATION
    state, done = step(state, Booted(Ending.CRASHED, ALL))
    assert (state.phase, state.current) == (Phase.FAILED, None)
    assert Unload(V1.slot_id) in done


def test_a_committed_version_survives_crashes_of_the_agent() -> None:
    state = committed(V1, V2)
    for _ in range(10):
        state, done = step(state, Booted(Ending.CRASHED, ALL))
        assert state.phase is Phase.COMMITTED
        assert isinstance(next(i for i in done if isinstance(i, Serve)), Serve)


def test_damaged_files_are_replaced_by_the_spare_and_fetched_again() -> None:
    state = committed(V1, V2)
    state, done = step(state, Booted(Ending.CLEAN, frozenset({V1.slot_id})))
    assert (state.phase, state.current) == (Phase.IDLE, Slot(V1, committed=True))
    assert Serve(state.ticket, V1, None) in done
    after, _ = run(state, [NewDesired(V2, state.generation)])
    assert (after.phase, after.order) == (Phase.PROBATION, V2)
    nothing, _ = step(committed(V1), Booted(Ending.CLEAN, frozenset()))
    assert (nothing.phase, nothing.current) == (Phase.IDLE, None)
    staged, done = step(upto(Phase.STAGED), Booted(Ending.CLEAN, frozenset({V1.slot_id})))
    assert (staged.phase, staged.staged) == (Phase.DOWNLOADING, None)
    assert isinstance(done[-1], Fetch)


def test_a_handover_is_activated_without_a_load() -> None:
    order = release("1.0.0", "r-1", activation="handover")
    _state, done = run(NEW, [NewDesired(order, 1)])
    assert reports(done) == [("r-1", phase) for phase in WAY_UP]
    assert not [i for i in done if isinstance(i, LoadAndWarm)]


def test_a_person_may_go_back_where_the_latch_holds_the_agent() -> None:
    state = committed(V1, V2)
    after, _ = run(state, [RollBackRequested("ana: wrong labels")])
    assert (after.phase, after.current) == (Phase.ROLLED_BACK, Slot(V1, committed=True))
    assert "ana: wrong labels" in after.reason


def test_no_longer_named_means_back_to_what_was_before() -> None:
    after, done = run(upto(Phase.PROBATION), [NewDesired(None, 9)])
    assert (after.phase, after.current) == (Phase.ROLLED_BACK, Slot(V1, committed=True))
    assert after.reason in BY_ORDER
    first, done = run(NEW, [NewDesired(V1, 1), NewDesired(None, 2)])
    assert (first.phase, first.current) == (Phase.FAILED, Slot(V1))
    assert first.reason in BY_ORDER
    assert reports(done)[-2:] == [("r-1", "ROLLING_BACK"), ("r-1", "FAILED")]


def test_a_desired_state_becomes_one_event_per_model() -> None:
    body = manifest_body(model_body("1.0.0", model="photo"), model_body("2.0.0", model="audio"))
    desired = parse_manifest(canonical(body))
    events = orders_of(desired, frozenset({"photo", "gone"}))
    assert {name: e.order and e.order.version for name, e in events.items()} == {
        "photo": "1.0.0",
        "audio": "2.0.0",
        "gone": None,
    }
    assert {e.generation for e in events.values()} == {7}
