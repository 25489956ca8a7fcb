"""Planning, starting and steering rollouts: what people are told, refused, and what is written."""

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from agent.domain.manifest import parse_manifest
from controller.api.convert_rollouts import (
    explanation_message,
    intent_from_wire,
    plan_message,
    rollout_message,
)
from controller.domain.rollout import BY_ORDER, CALLED_BACK, AssignmentState, Intent, Phase
from controller.errors import InvalidError, NotFoundError, RefusedError
from controller.services.events import EventFilter, list_events
from controller.services.explain import explain_device
from controller.services.objects import NewObject, apply_objects
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollout_plans import plan_rollout
from controller.services.rollouts import list_rollouts, set_intent, start_rollout
from controller.services.status import ProcessFacts, StatusView, get_status
from controller.store import assignments, devices, outbox, reported
from controller.store.desired import get_desired
from lighterman.v1 import fleet_pb2
from tests.simulation.rollout_world import MODEL, World

A = AssignmentState
MakeWorld = Callable[..., World]


def spec(version: str = "1.0.0", **more: object) -> dict[str, object]:
    return {
        "model": MODEL,
        "version": version,
        "selector": "all",
        "waves": ["1", "100%"],
        "soak_s": 1.0,
        "min_samples": 5,
    } | more


def kinds(world: World, **wanted: Any) -> dict[str, str]:
    found = list_events(world.deps, world.ctx(), EventFilter(**wanted), limit=1000)
    return {event.kind: event.reason for event in found}


def deploy(world: World, version: str, devices_count: int) -> str:
    view = start_rollout(world.deps, world.ctx(), spec(version), devices_count)
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    assert world.phase(view.rollout_id) is Phase.SUCCEEDED
    return view.rollout_id


def desired_entry(world: World, device_id: str) -> Mapping[str, Any] | None:
    with world.store.read() as conn:
        row = get_desired(conn, device_id)
    return row.models.get(MODEL) if row else None


def test_a_plan_counts_devices_waves_and_bytes(make_world: MakeWorld) -> None:
    world = make_world(4)
    with world.store.write() as conn:
        devices.update_device(conn, "pi-02", profile=None)
        devices.update_device(conn, "pi-03", profile="jetson")
    view = plan_rollout(world.deps, world.ctx(), spec(waves=["1", "10%", "100%"]))
    assert (view.devices, view.profiles) == (2, {"pi": 2})
    assert [(wave.devices, wave.cumulative) for wave in view.waves] == [(1, 1), (1, 2)]
    assert view.bytes == 2 * 2 * 1000
    assert view.notes == ("wave 10% of 2 devices adds none and was dropped",)
    assert view.from_versions == {"": 2}
    assert [(one.device_id, one.reason) for one in view.unready] == [
        ("pi-02", "no profile matches what the device reports"),
        ("pi-03", "no passed build for profile jetson"),
    ]
    message = plan_message(view)
    assert message.unready[1].profile == "jetson"
    assert message.waves[1].cumulative == 2


def test_unready_devices_are_refused_with_their_reason(make_world: MakeWorld) -> None:
    world = make_world(3)
    with world.store.write() as conn:
        devices.put_capabilities(conn, "pi-02", {"runtimes": {"tensorrt": "10"}}, world.now)
    rollout_id = deploy(world, "1.0.0", 2)
    with world.store.read() as conn:
        row = assignments.get_assignment(conn, rollout_id, "pi-02")
    assert row is not None
    assert (row.state, row.reason) == (A.REFUSED, "the device has no runtime onnxruntime")
    assert world.rollout(rollout_id).phase_reason == "2 devices committed, 1 refused"


@pytest.mark.parametrize(
    ("changes", "confirmed", "error", "text"),
    [
        ({}, 3, RefusedError, "4 devices would get digits:1.0.0, 3 were confirmed"),
        ({"version": "9.9.9"}, 4, NotFoundError, "digits:9.9.9 does not exist"),
        ({"selector": "site=berlin"}, 4, NotFoundError, "no device matches  site=berlin"),
        ({"selector": "profile=pie"}, 4, NotFoundError, "did you mean profile=pi ?"),
        ({"waves": ["2", "100%"]}, 4, RefusedError, "at most 1 without a reason"),
        ({"waves": ["1", "50%"]}, 4, InvalidError, "reaches 2 of 4 devices"),
        ({"policy": "fast"}, 4, NotFoundError, "no policy fast"),
    ],
)
def test_what_is_refused(
    make_world: MakeWorld,
    changes: dict[str, object],
    confirmed: int,
    error: type[Exception],
    text: str,
) -> None:
    world = make_world(4)
    with pytest.raises(error) as caught:
        start_rollout(world.deps, world.ctx(), spec(**changes), confirmed)  # type: ignore[arg-type]
    assert text in caught.value.text()  # type: ignore[attr-defined]
    assert list_rollouts(world.deps, world.ctx()) == []


def test_devices_of_no_profile_get_nothing_and_the_way_to_one_is_told(
    make_world: MakeWorld,
) -> None:
    world = make_world(2)
    with world.store.write() as conn:
        for device_id in world.devices:
            devices.update_device(conn, device_id, profile=None)
    with pytest.raises(RefusedError) as planned:
        plan_rollout(world.deps, world.ctx(), spec())
    with pytest.raises(RefusedError) as started:
        start_rollout(world.deps, world.ctx(), spec(), 2)
    told = started.value.text()
    assert told == planned.value.text()
    assert told.startswith("none of the 2 devices can get digits:1.0.0\n")
    assert "pi-00: no profile matches what the device reports" in told
    assert "a profile has to match what fleetctl device show pi-00 tells" in told
    assert "build run" not in told, "building helps nobody here"
    assert list_rollouts(world.deps, world.ctx()) == []


def test_a_version_without_builds_cannot_start(make_world: MakeWorld) -> None:
    world = make_world(2)
    with world.store.write() as conn:
        for device_id in world.devices:
            devices.update_device(conn, device_id, profile="jetson")
    with pytest.raises(RefusedError) as caught:
        start_rollout(world.deps, world.ctx(), spec(), 2)
    assert caught.value.message == "none of the 2 devices can get digits:1.0.0"


def test_a_larger_first_wave_is_an_event(make_world: MakeWorld) -> None:
    world = make_world(4)
    wide = spec(waves=["2", "100%"], override_first_wave_reason="lab only")
    view = start_rollout(world.deps, world.ctx(), wide, 4)
    assert kinds(world, rollout_id=view.rollout_id)["first_wave_override"] == "lab only"
    world.tick()
    assert sum(state is A.OFFERED for state in _states(world, view.rollout_id).values()) == 2


def _states(world: World, rollout_id: str) -> dict[str, AssignmentState]:
    with world.store.read() as conn:
        rows = assignments.list_assignments(conn, rollout_id)
    return {row.device_id: row.state for row in rows}


def test_an_offer_is_a_signed_manifest_and_a_doorbell(make_world: MakeWorld) -> None:
    world = make_world(1)
    view = start_rollout(world.deps, world.ctx(), spec(waves=["100%"]), 1)
    world.tick()
    with world.store.read() as conn:
        row = get_desired(conn, "pi-00")
        told = outbox.take(conn)
    assert row is not None
    state = parse_manifest(row.manifest)
    assert (state.device, state.generation, state.project) == ("pi-00", 1, "default")
    assert state.models[0].rollout == view.rollout_id
    assert [rung.name for rung in state.models[0].rungs] == ["heavy", "light"]
    bell = next(one for one in told if one.kind == "doorbell")
    assert (bell.topic, bell.retain) == ("pi-00", True)
    assert json.loads(bell.payload)["generation"] == 1
    feed = [json.loads(one.payload) for one in told if one.kind == "feed"]
    assert feed[-1]["phase"] == "PROGRESSING"
    assert row.manifest == json.dumps(
        json.loads(row.manifest), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode("utf-8")


def test_a_changed_policy_waits_for_the_next_rollout(make_world: MakeWorld) -> None:
    world = make_world(3)
    view = start_rollout(world.deps, world.ctx(), spec(), 3)
    slower = {"model": MODEL, "slow_threshold_ms": 500, "probation": {"min_s": 0}}
    apply_objects(world.deps, world.ctx(), [NewObject("Policy", "default", slower)])
    assert world.run(Random(1), 300, world.is_over(view.rollout_id))
    for device_id in world.devices:
        entry = desired_entry(world, device_id)
        assert entry is not None
        assert entry["policy"]["slow_threshold_ms"] == 100


def test_what_is_over_cannot_be_steered(make_world: MakeWorld) -> None:
    world = make_world(1)
    rollout_id = deploy(world, "1.0.0", 1)
    for intent in Intent:
        with pytest.raises(RefusedError, match="is over: SUCCEEDED"):
            set_intent(world.deps, world.ctx(), rollout_id, intent)
    with pytest.raises(NotFoundError):
        set_intent(world.deps, world.ctx(), "r-nobody", Intent.RUN)
    # Who wants a way back after the end is told what ran before.
    newer = deploy(world, "1.1.0", 1)
    with pytest.raises(RefusedError) as caught:
        set_intent(world.deps, world.ctx(), newer, Intent.ROLL_BACK)
    assert "digits:1.0.0 ran on 1 device before" in caught.value.text()


def test_on_its_way_back_it_can_only_be_aborted(make_world: MakeWorld) -> None:
    world = make_world(2)
    deploy(world, "1.0.0", 2)
    view = start_rollout(world.deps, world.ctx(), spec("1.1.0"), 2)
    world.tick()
    set_intent(world.deps, world.ctx(), view.rollout_id, Intent.ROLL_BACK)
    with pytest.raises(RefusedError, match="on its way back"):
        set_intent(world.deps, world.ctx(), view.rollout_id, Intent.RUN)
    set_intent(world.deps, world.ctx(), view.rollout_id, Intent.ABORT)
    world.tick()
    assert world.phase(view.rollout_id) is Phase.ABORTED


def test_a_committed_version_left_days_later_is_not_desired_any_more(
    make_world: MakeWorld,
) -> None:
    world = make_world(2)
    deploy(world, "1.0.0", 2)
    newer = deploy(world, "1.1.0", 2)
    before = desired_entry(world, "pi-00")
    assert before is not None
    with world.store.write() as conn:
        for state in (A.ROLLING_BACK, A.ROLLED_BACK):
            reported.record_report(conn, "pi-00", newer, state, "slow", None, world.now)
    world.tick()
    after = desired_entry(world, "pi-00")
    assert after is not None
    assert (before["version"], after["version"]) == ("1.1.0", "1.0.0")
    assert world.phase(newer) is Phase.SUCCEEDED
    world.tick()
    assert desired_entry(world, "pi-00") == after


def test_a_refusal_of_the_device_frees_its_place(make_world: MakeWorld) -> None:
    world = make_world(3)
    view = start_rollout(world.deps, world.ctx(), spec(), 3)
    world.tick()
    canary = next(d for d, s in _states(world, view.rollout_id).items() if s is A.OFFERED)
    with world.store.write() as conn:
        reported.record_report(
            conn, canary, view.rollout_id, A.REFUSED, "no room: 3 MB free", None, world.now
        )
    world.tick()
    states = _states(world, view.rollout_id)
    assert states[canary] is A.REFUSED
    assert sum(state is A.OFFERED for state in states.values()) == 1
    assert desired_entry(world, canary) is None


def test_a_retired_device_does_not_hold_the_rollout(make_world: MakeWorld) -> None:
    world = make_world(3)
    view = start_rollout(world.deps, world.ctx(), spec(), 3)
    with world.store.write() as conn:
        devices.update_device(conn, "pi-01", state="RETIRED", online=False)
    del world.devices["pi-01"]
    assert world.run(Random(2), 300, world.is_over(view.rollout_id))
    assert world.phase(view.rollout_id) is Phase.SUCCEEDED
    assert _states(world, view.rollout_id)["pi-01"] is A.WITHDRAWN


def test_what_people_see_travels(make_world: MakeWorld) -> None:
    world = make_world(2)
    rollout_id = deploy(world, "1.0.0", 2)
    found = explain_rollout(world.deps, world.ctx(), rollout_id)
    message = explanation_message(found)
    assert message.rollout.phase == fleet_pb2.ROLLOUT_PHASE_SUCCEEDED
    assert message.rollout.spec.waves == ["1", "100%"]
    assert message.rollout.bytes_sent == message.rollout.bytes_total == 4000
    assert [one.state for one in message.assignments] == ["COMMITTED", "COMMITTED"]
    assert message.rollout.waves[0].verdict == "PASSED"
    assert message.rollout.waves[0].p95_after_s == pytest.approx(0.02, rel=0.1)
    assert not message.rollout.waves[0].HasField("p95_before_s")
    assert {fact.topic for fact in message.facts} >= {"why", "exposed", "wave 1", "last"}
    listed = list_rollouts(world.deps, world.ctx(), active_only=True)
    assert [rollout_message(view).rollout_id for view in listed] == []
    with pytest.raises(InvalidError):
        intent_from_wire(0)
    assert intent_from_wire(fleet_pb2.ROLLOUT_INTENT_ROLL_BACK) is Intent.ROLL_BACK
    with pytest.raises(NotFoundError, match="no device pi-99"):
        explain_device(world.deps, world.ctx(), "pi-99")


def rolled_back_once(make_world: MakeWorld) -> tuple[World, str, str]:
    """A world in which one device of four rolled 1.1.0 back by itself: world, device, rollout."""
    world = make_world(4, bad_versions={"1.1.0": "slow"})
    deploy(world, "1.0.0", 4)
    rollout_id = start_rollout(world.deps, world.ctx(), spec("1.1.0"), 4).rollout_id
    assert world.run(Random(3), 300, world.is_over(rollout_id))
    left = [d for d, state in _states(world, rollout_id).items() if state is A.ROLLED_BACK]
    assert len(left) == 1
    return world, left[0], rollout_id


def test_a_device_that_rolled_it_back_is_not_asked_again(make_world: MakeWorld) -> None:
    world, device_id, rollout_id = rolled_back_once(make_world)
    view = plan_rollout(world.deps, world.ctx(), spec("1.1.0"))
    assert view.devices == 3
    reason = f"rolled 1.1.0 back in {rollout_id}: 5 in a row over 100 ms"
    assert [(one.device_id, one.reason) for one in view.unready] == [(device_id, reason)]
    assert view.notes[-1] == (
        f"1 device ({device_id}) rolled 1.1.0 back before: left out;"
        " to try it there too: --override rolled-back --reason TEXT"
    )
    with pytest.raises(RefusedError) as caught:
        plan_rollout(world.deps, world.ctx(), spec("1.1.0", selector=f"device={device_id}"))
    assert "--override rolled-back" in caught.value.text()
    assert "build run" not in caught.value.text()
    # Another version is none of its business.
    assert plan_rollout(world.deps, world.ctx(), spec("1.0.0")).devices == 4


def test_a_person_may_bring_it_there_again_and_says_why(make_world: MakeWorld) -> None:
    world, device_id, _ = rolled_back_once(make_world)
    world.bad_versions = {}
    again = spec("1.1.0", override_rolled_back_reason="the fan was repaired")
    view = plan_rollout(world.deps, world.ctx(), again)
    assert (view.devices, view.unready) == (4, ())
    assert f"({device_id}) rolled 1.1.0 back before: it comes there again" in view.notes[-1]
    started = start_rollout(world.deps, world.ctx(), again, 4)
    told = kinds(world, rollout_id=started.rollout_id)
    assert told["rolled_back_override"] == "the fan was repaired"
    facts = explain_rollout(world.deps, world.ctx(), started.rollout_id).facts
    told_by = "rolled back override by ana: the fan was repaired"
    assert ("people", told_by) in [(one.topic, one.text) for one in facts]
    assert world.run(Random(4), 300, world.is_over(started.rollout_id))
    # It committed there since: nothing to warn of any more.
    assert plan_rollout(world.deps, world.ctx(), spec("1.1.0")).devices == 4


def test_a_device_that_was_called_back_is_asked_again(make_world: MakeWorld) -> None:
    world = make_world(2)
    deploy(world, "1.0.0", 2)
    view = start_rollout(world.deps, world.ctx(), spec("1.1.0", soak_s=1000), 2)
    assert world.run(
        Random(5), 100, lambda: A.COMMITTED in _states(world, view.rollout_id).values()
    )
    set_intent(world.deps, world.ctx(), view.rollout_id, Intent.ROLL_BACK, "complaints")
    assert world.run(Random(5), 300, world.is_over(view.rollout_id))
    assert A.ROLLED_BACK in _states(world, view.rollout_id).values()
    assert plan_rollout(world.deps, world.ctx(), spec("1.1.0")).devices == 2


def test_a_first_version_that_was_called_back_is_no_bad_one(make_world: MakeWorld) -> None:
    world = make_world(2)
    view = start_rollout(world.deps, world.ctx(), spec("1.0.0", soak_s=1000), 2)
    assert world.run(
        Random(6), 100, lambda: A.COMMITTED in _states(world, view.rollout_id).values()
    )
    canary = next(d for d, s in _states(world, view.rollout_id).items() if s is A.COMMITTED)
    set_intent(world.deps, world.ctx(), view.rollout_id, Intent.ROLL_BACK, "complaints")
    world.tick()
    (stays,) = [one for one in BY_ORDER if "it goes on answering" in one]
    with world.store.write() as conn:
        reported.record_report(conn, canary, view.rollout_id, A.FAILED, stays, None, world.now)
    assert _states(world, view.rollout_id)[canary] is A.FAILED
    world.tick()
    assert plan_rollout(world.deps, world.ctx(), spec("1.0.0")).devices == 2


def look(world: World) -> StatusView:
    return get_status(world.deps, world.ctx(), ProcessFacts("1", world.now, True, 1))


def test_the_status_tells_of_a_rollout_that_came_back_until_a_newer_one_succeeds(
    make_world: MakeWorld,
) -> None:
    world, _, rollout_id = rolled_back_once(make_world)
    (told,) = look(world).recent
    assert (told.rollout_id, told.phase) == (rollout_id, Phase.ROLLED_BACK)
    assert "5 inferences in a row over 100 ms" in told.phase_reason
    assert not [one for one in look(world).problems if rollout_id in one]  # all is well again
    world.now += timedelta(days=2)
    assert look(world).recent == ()
    world.now -= timedelta(days=2)
    deploy(world, "1.0.0", 4)
    assert look(world).recent == ()


def test_the_status_tells_who_left_after_the_rollout_had_succeeded(make_world: MakeWorld) -> None:
    world = make_world(3)
    deploy(world, "1.0.0", 3)
    newer = deploy(world, "1.1.0", 3)
    assert look(world).problems == ()
    with world.store.write() as conn:
        for state in (A.ROLLING_BACK, A.ROLLED_BACK):
            reported.record_report(conn, "pi-01", newer, state, "slow", None, world.now)
            # Called back is not left: nobody has to look into it.
            called = f"{CALLED_BACK}lunch"
            reported.record_report(conn, "pi-02", newer, state, called, None, world.now)
    assert look(world).problems == (
        "1 device left digits:1.1.0 after the rollout had succeeded;"
        " `fleetctl device explain pi-01` says why: pi-01",
    )
    deploy(world, "1.0.0", 3)
    assert look(world).problems == ()


def test_a_paused_rollout_is_a_problem_with_its_reason(make_world: MakeWorld) -> None:
    world = make_world(2)
    view = start_rollout(world.deps, world.ctx(), spec(soak_s=1000), 2)
    world.tick()
    set_intent(world.deps, world.ctx(), view.rollout_id, Intent.PAUSE, "lunch")
    world.tick()
    (said,) = [one for one in look(world).problems if view.rollout_id in one]
    assert "waits for a person: paused by ana: lunch" in said
