"""Changed signatures and missing rungs: the plan names them, a start needs a person's word."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from controller.api.convert_rollouts import plan_message, spec_from_wire
from controller.domain.rollout import AssignmentState, Intent, Phase
from controller.errors import RefusedError
from controller.services import rollout_orders
from controller.services.events import EventFilter, list_events
from controller.services.objects import NewObject, apply_objects
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollout_plans import plan_rollout
from controller.services.rollouts import list_rollouts, set_intent, start_rollout
from controller.store import assignments, devices
from controller.store.builds import GateKey, GateRow, put_gate
from lighterman.v1 import fleet_pb2
from tests.simulation.rollout_world import MODEL, World
from tests.support.stores import PROJECT, signature_json

A = AssignmentState
MakeWorld = Callable[..., World]
READS_12 = "applications that read it must be ready"


def spec(version: str, **more: object) -> dict[str, object]:
    return {
        "model": MODEL,
        "version": version,
        "selector": "all",
        "waves": ["1", "100%"],
        "soak_s": 1.0,
        "min_samples": 5,
    } | more


def other(side: str, name: str, shape: list[object]) -> dict[str, object]:
    return signature_json() | {side: [{"name": name, "dtype": "FP32", "shape": shape}]}


TWELVE = other("outputs", "scores", ["batch", 12])


def deploy(world: World, version: str, **more: object) -> str:
    view = start_rollout(world.deps, world.ctx(), spec(version, **more), len(world.devices))
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    assert world.phase(view.rollout_id) is Phase.SUCCEEDED
    return view.rollout_id


def said(world: World, kind: str) -> list[Any]:
    return list_events(world.deps, world.ctx(), EventFilter(kinds=(kind,)), limit=100)


def state_of(world: World, rollout_id: str, device_id: str) -> tuple[AssignmentState, str]:
    with world.store.read() as conn:
        row = assignments.get_assignment(conn, rollout_id, device_id)
    assert row is not None
    return row.state, row.reason


# ---- signatures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        (
            TWELVE,
            "2.0.0 answers with scores[batch,12] FP32 where 1.0.0, on 3 devices, answers with"
            f" scores[batch,10] FP32: {READS_12}",
        ),
        (other("outputs", "logits", ["batch", 10]), "answers with logits[batch,10] FP32 where"),
        (other("inputs", "image", ["batch", 1, 16, 16]), "2.0.0 takes image[batch,1,16,16]"),
        (other("inputs", "digit", ["batch", 1, 8, 8]), "applications that send it must be ready"),
    ],
)
def test_another_signature_is_named_and_does_not_start(
    make_world: MakeWorld, signature: dict[str, object], text: str
) -> None:
    world = make_world(3)
    deploy(world, "1.0.0")
    world.add_version("2.0.0", signature)
    plan = plan_rollout(world.deps, world.ctx(), spec("2.0.0"))
    assert plan.devices == 3
    assert any(text in note for note in plan.notes)
    assert plan.needs_overrides == ("signature",)
    with pytest.raises(RefusedError) as caught:
        start_rollout(world.deps, world.ctx(), spec("2.0.0"), 3)
    assert text in caught.value.text()
    assert "--override signature --reason TEXT" in caught.value.text()
    assert len(list_rollouts(world.deps, world.ctx())) == 1


def test_a_person_may_say_that_applications_are_ready(make_world: MakeWorld) -> None:
    world = make_world(3)
    deploy(world, "1.0.0")
    world.add_version("2.0.0", TWELVE)
    ready = {"override_signature_reason": "the reader takes 12 since Monday"}
    plan = plan_rollout(world.deps, world.ctx("bo"), spec("2.0.0", **ready))
    assert plan.needs_overrides == ()
    assert "it goes out all the same: the reader takes 12 since Monday" in plan.notes
    started = start_rollout(world.deps, world.ctx("bo"), spec("2.0.0", **ready), 3)
    (event,) = said(world, "signature_override")
    assert (event.actor, event.reason) == ("bo", "the reader takes 12 since Monday")
    assert event.details == {"1.0.0": "3"}
    facts = explain_rollout(world.deps, world.ctx(), started.rollout_id).facts
    told = f"signature override by bo: {event.reason}"
    assert ("people", told) in [(one.topic, one.text) for one in facts]
    assert world.run(Random(1), 300, world.is_over(started.rollout_id))
    assert world.phase(started.rollout_id) is Phase.SUCCEEDED
    # From now on it is what applications talk to, and the old one is the change.
    assert plan_rollout(world.deps, world.ctx(), spec("2.0.0")).needs_overrides == ()
    assert plan_rollout(world.deps, world.ctx(), spec("1.1.0")).needs_overrides == ("signature",)


def test_the_same_signature_and_first_versions_need_no_word(make_world: MakeWorld) -> None:
    world = make_world(3)
    world.add_version("2.0.0", TWELVE)
    assert plan_rollout(world.deps, world.ctx(), spec("2.0.0")).signature_changes == ()
    deploy(world, "1.0.0")
    world.add_version("1.2.0", other("outputs", "scores", ["n", 10]))
    plan = plan_rollout(world.deps, world.ctx(), spec("1.2.0"))
    assert (plan.signature_changes, plan.needs_overrides) == ((), ())
    deploy(world, "1.2.0")


def test_only_devices_that_run_it_are_counted(make_world: MakeWorld) -> None:
    world = make_world(2)
    deploy(world, "1.0.0")
    world.add_device("pi-02")
    world.add_version("2.0.0", TWELVE)
    plan = plan_rollout(world.deps, world.ctx(), spec("2.0.0"))
    (change,) = plan.signature_changes
    assert (plan.devices, change.devices, change.from_version) == (3, 2, "1.0.0")
    alone = plan_rollout(world.deps, world.ctx(), spec("2.0.0", selector="device=pi-02"))
    assert alone.signature_changes == ()
    wire = plan_message(plan)
    (told,) = wire.signature_changes
    assert (told.side, told.before, told.after) == (
        "outputs",
        "scores[batch,10] FP32",
        "scores[batch,12] FP32",
    )
    assert (told.text, list(wire.needs_overrides)) == (change.text, ["signature"])


def test_an_order_on_its_way_is_not_what_runs(make_world: MakeWorld) -> None:
    """1.0.0 runs, 2.0.0 is offered: back to 10 scores is no change, 12 again would be one."""
    world = make_world(2)
    deploy(world, "1.0.0")
    for version in ("2.0.0", "2.1.0"):
        world.add_version(version, TWELVE)
    ready = {"override_signature_reason": "tried on two devices"}
    start_rollout(world.deps, world.ctx(), spec("2.0.0", **ready), 2)
    world.tick()
    assert plan_rollout(world.deps, world.ctx(), spec("1.1.0")).needs_overrides == ()
    assert plan_rollout(world.deps, world.ctx(), spec("2.1.0")).needs_overrides == ("signature",)


def test_a_rollback_needs_no_word(make_world: MakeWorld) -> None:
    world = make_world(2)
    deploy(world, "1.0.0")
    world.add_version("2.0.0", TWELVE)
    ready = {"override_signature_reason": "ready", "soak_s": 1000}
    view = start_rollout(world.deps, world.ctx(), spec("2.0.0", **ready), 2)
    assert world.run(Random(2), 100, lambda: any(d.serving for d in world.devices.values()))
    set_intent(world.deps, world.ctx(), view.rollout_id, Intent.ROLL_BACK, "not ready after all")
    assert world.run(Random(2), 300, world.is_over(view.rollout_id))
    assert world.phase(view.rollout_id) is Phase.ROLLED_BACK


def test_without_the_check_it_would_go_out_in_silence(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: both checks off, and applications read 12 scores unasked."""
    world = make_world(2)
    deploy(world, "1.0.0")
    world.add_version("2.0.0", TWELVE)
    monkeypatch.setattr("controller.services.rollouts.refuse_changes", lambda *_: None)
    view = start_rollout(world.deps, world.ctx(), spec("2.0.0"), 2)
    # The engine holds by itself: nothing is offered that nobody gave their word for.
    assert world.run(Random(3), 20, world.is_over(view.rollout_id))
    assert {state_of(world, view.rollout_id, one)[0] for one in world.devices} == {A.REFUSED}
    assert "answers with scores[batch,12]" in state_of(world, view.rollout_id, "pi-00")[1]
    monkeypatch.setattr(rollout_orders, "differs", lambda *_: "")
    view = start_rollout(world.deps, world.ctx(), spec("2.0.0"), 2)
    assert world.run(Random(3), 300, world.is_over(view.rollout_id))
    assert all(d.serving and d.serving["version"] == "2.0.0" for d in world.devices.values())


# ---- rungs -------------------------------------------------------------------------------------

SLOW = "p95 363 ms, budget 100 ms, n=8"


def lab_and_field(world: World) -> None:
    """pi-02 becomes a device of the profile lab, for which heavy failed and light passed."""
    with world.store.write() as conn:
        devices.update_device(conn, "pi-02", profile="lab")
    world.judge_variant("1.1.0", "heavy", "FAILED", "the job was killed", profile="lab")
    world.judge_variant("1.1.0", "light", "PASSED", "", profile="lab")


def test_devices_that_would_lack_a_rung_are_left_out(make_world: MakeWorld) -> None:
    world = make_world(3)
    lab_and_field(world)
    plan = plan_rollout(world.deps, world.ctx(), spec("1.1.0"))
    assert plan.devices == 2
    why = "heavy has no passed build for lab: onnxruntime-fp32 failed (the job was killed)"
    assert [(one.device_id, one.reason) for one in plan.unready] == [("pi-02", why)]
    (missing,) = plan.missing_rungs
    command = f"fleetctl build explain {MODEL}:1.1.0 --profile lab --variant heavy"
    assert (missing.profile, missing.rung, missing.devices) == ("lab", "heavy", 1)
    assert (missing.reason, missing.command) == (why, command)
    assert plan.notes[0] == (
        f"{why}; 1 device left out; why: {command}; to go without: --override missing-rung"
        " --reason TEXT"
    )
    assert plan_message(plan).missing_rungs[0].command == command
    view = start_rollout(world.deps, world.ctx(), spec("1.1.0"), 2)
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    assert state_of(world, view.rollout_id, "pi-02") == (A.REFUSED, why)
    assert world.devices["pi-02"].serving is None


def test_where_all_would_lack_it_nothing_starts(make_world: MakeWorld) -> None:
    world = make_world(2)
    world.judge_variant("1.1.0", "light", "REFUSED", SLOW)
    for ask in (
        lambda: plan_rollout(world.deps, world.ctx(), spec("1.1.0")),
        lambda: start_rollout(world.deps, world.ctx(), spec("1.1.0"), 2),
    ):
        with pytest.raises(RefusedError) as caught:
            ask()
        text = caught.value.text()
        assert f"light has no passed build for pi: onnxruntime-fp32 refused ({SLOW})" in text
        assert "fleetctl build explain digits:1.1.0 --profile pi --variant light" in text
        assert "--override missing-rung --reason TEXT" in text
        assert "build run" not in text, "it was built: building again helps nobody"
    assert list_rollouts(world.deps, world.ctx()) == []


def test_a_person_may_bring_it_without_the_rung(make_world: MakeWorld) -> None:
    world = make_world(3)
    lab_and_field(world)
    without = {"override_missing_rung_reason": "the lab only needs light"}
    plan = plan_rollout(world.deps, world.ctx("bo"), spec("1.1.0", **without))
    assert (plan.devices, plan.unready) == (3, ())
    assert plan.notes[0].endswith("1 device gets it without that rung: the lab only needs light")
    view = start_rollout(world.deps, world.ctx("bo"), spec("1.1.0", **without), 3)
    (event,) = said(world, "missing_rung_override")
    assert (event.actor, event.reason, event.details) == (
        "bo",
        "the lab only needs light",
        {"lab heavy": "1"},
    )
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    serving = world.devices["pi-02"].serving
    assert serving is not None
    assert [one["rung"] for one in serving["ladder"]] == ["light"]


def test_a_policy_that_names_its_rungs_needs_no_override(make_world: MakeWorld) -> None:
    world = make_world(2)
    world.judge_variant("1.1.0", "heavy", "REFUSED", SLOW)
    light = NewObject("Policy", "small", {"model": MODEL, "rungs": [{"rung": "light"}]})
    apply_objects(world.deps, world.ctx(), [light])
    plan = plan_rollout(world.deps, world.ctx(), spec("1.1.0", policy="small"))
    assert (plan.devices, plan.missing_rungs) == (2, ())


def test_causes_are_told_apart(make_world: MakeWorld) -> None:
    world = make_world(2)
    with world.store.write() as conn:
        devices.update_device(conn, "pi-01", profile="lab")
        key = GateKey(MODEL, "1.1.0", "light", "onnxruntime-fp32", "lab")
        gate = GateRow(key, "b-1.1.0-light", "PASSED", "", None, None, None, False, world.now)
        put_gate(conn, PROJECT, gate)
    world.judge_variant("1.1.0", "light", "PENDING", "")
    plan = plan_rollout(
        world.deps, world.ctx(), spec("1.1.0", override_missing_rung_reason="to look")
    )
    assert [(one.reason, one.command) for one in plan.missing_rungs] == [
        ("heavy was not built for lab", "fleetctl build run digits:1.1.0 --profile lab"),
        (
            "light has no passed build for pi: onnxruntime-fp32 queued",
            "fleetctl build explain digits:1.1.0 --profile pi --variant light",
        ),
    ]


def test_a_rung_that_is_lost_on_the_way_stops_what_was_not_offered_yet(
    make_world: MakeWorld,
) -> None:
    world = make_world(2)
    view = start_rollout(world.deps, world.ctx(), spec("1.1.0"), 2)
    world.judge_variant("1.1.0", "heavy", "REFUSED", SLOW)
    assert world.run(Random(0), 20, world.is_over(view.rollout_id))
    states = {one: state_of(world, view.rollout_id, one) for one in world.devices}
    assert {state for state, _ in states.values()} == {A.REFUSED}
    assert all("heavy has no passed build for pi" in reason for _, reason in states.values())


def test_the_negative_control_goes_out_with_light_alone(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody looks at missing rungs, a device gets light and nothing to step up to."""
    world = make_world(2)
    world.judge_variant("1.1.0", "heavy", "FAILED", "the job was killed")
    with pytest.raises(RefusedError):
        start_rollout(world.deps, world.ctx(), spec("1.1.0"), 2)
    compose = "controller.services.desired.compose_ladder"
    from controller.domain.ladder import Ladder, compose_ladder

    def careless(*args: Any) -> Ladder:
        return Ladder(compose_ladder(*args).rungs)

    monkeypatch.setattr(compose, careless)
    view = start_rollout(world.deps, world.ctx(), spec("1.1.0"), 2)
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    ladders = [d.serving["ladder"] for d in world.devices.values() if d.serving]
    assert [[one["rung"] for one in ladder] for ladder in ladders] == [["light"], ["light"]]


def test_the_wire_carries_both_overrides() -> None:
    message = fleet_pb2.RolloutSpec(
        override_signature_reason="ready", override_missing_rung_reason="small"
    )
    read = spec_from_wire(message)
    assert (read["override_signature_reason"], read["override_missing_rung_reason"]) == (
        "ready",
        "small",
    )
