"""What `device explain` and `rollout explain` say: the newest truth wins, whoever told it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import update

from controller.domain.rollout import AssignmentState, Phase
from controller.services.device_sessions import LATE_S, check_live_boot
from controller.services.explain import Fact, explain_device
from controller.services.reports import DeviceEnvelope, EventBody, accept_reports
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollouts import start_rollout
from controller.store import assignments, boots, devices
from controller.store.builds import GateKey, GateRow, put_gate
from controller.store.tables import assignment
from tests.simulation.rollout_world import MODEL, PROFILE, SimDevice, World
from tests.support.stores import PROJECT

A = AssignmentState
MakeWorld = Callable[..., World]
SPEC: dict[str, object] = {
    "model": MODEL,
    "selector": "all",
    "waves": ["100%"],
    "soak_s": 1.0,
    "min_samples": 5,
}


def start(world: World, version: str) -> str:
    spec = SPEC | {"version": version, "override_first_wave_reason": "lab"}
    return start_rollout(world.deps, world.ctx(), spec, len(world.devices)).rollout_id


def deploy(world: World, version: str) -> str:
    rollout_id = start(world, version)
    assert world.run(Random(0), 300, world.is_over(rollout_id))
    assert world.phase(rollout_id) is Phase.SUCCEEDED
    return rollout_id


def hear(world: World, device: SimDevice, rung: str = "heavy", reason: str = "") -> None:
    """Telemetry as it is stored: what the device says that it runs now."""
    assert device.serving is not None
    model = {"model": MODEL, "version": device.serving["version"], "rung": rung}
    status: dict[str, Any] = {
        "at": world.now.isoformat(timespec="milliseconds"),
        "models": [model | {"rung_reason": reason}],
    }
    with world.store.write() as conn:
        devices.update_device(conn, device.device_id, status=status)


def explained(world: World) -> dict[str, str]:
    facts: tuple[Fact, ...] = explain_device(world.deps, world.ctx(), "pi-00")
    return {fact.topic: fact.text for fact in facts}


def step_until(world: World, states: set[AssignmentState], rollout_id: str) -> None:
    random = Random(1)
    for _ in range(200):
        world.now += timedelta(seconds=1)
        world.step_device(world.devices["pi-00"], random)
        world.tick()
        with world.store.read() as conn:
            row = assignments.get_assignment(conn, rollout_id, "pi-00")
        if row is not None and row.state in states:
            return
    raise AssertionError(f"never {states}")


def test_after_a_rollback_the_report_is_newer_than_the_telemetry(make_world: MakeWorld) -> None:
    world = make_world(1, bad_versions={"1.1.0": "slow"})
    deploy(world, "1.0.0")
    device = world.devices["pi-00"]
    rollout_id = start(world, "1.1.0")
    step_until(world, {A.ACTIVATED, A.PROBATION}, rollout_id)
    hear(world, device)
    assert explained(world)["runs"].startswith(f"{MODEL}:1.1.0 heavy (onnxruntime-fp32)")
    step_until(world, {A.ROLLED_BACK}, rollout_id)
    told = explained(world)
    assert told["runs"].startswith(f"{MODEL}:1.0.0 since 2026-11-24T09:"), told
    assert told["version"].startswith("1.0.0: rollout "), told
    assert told["left"].startswith(f"{MODEL}:1.1.0: rollout {rollout_id}, rolled back 2026-"), told
    assert "5 in a row over 100 ms (131 118 124 140 122 ms)" in told["left"]
    assert "desired" not in told
    # The next telemetry is newer again, and its recipe is that of the version that runs.
    world.now += timedelta(seconds=5)
    hear(world, device)
    assert explained(world)["runs"] == f"{MODEL}:1.0.0 heavy (onnxruntime-fp32)"


def test_negative_control_older_reports_do_not_overrule_telemetry(make_world: MakeWorld) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    world.now += timedelta(seconds=5)
    assert world.devices["pi-00"].serving is not None
    world.devices["pi-00"].serving = {**world.devices["pi-00"].serving, "version": "0.9.0"}
    hear(world, world.devices["pi-00"])
    assert explained(world)["runs"] == f"{MODEL}:0.9.0 heavy"


def test_a_change_of_rung_is_told_before_telemetry_does(make_world: MakeWorld) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    device = world.devices["pi-00"]
    world.now += timedelta(seconds=5)
    hear(world, device)
    world.now += timedelta(seconds=1)
    device.seq += 1
    body = EventBody("rung_changed", MODEL, "1.0.0", "81 °C ≥ 80", {"from": "heavy", "to": "light"})
    entry = DeviceEnvelope("1-abc", device.seq, body)
    accept_reports(world.deps, replace(world.ctx("pi-00")), "pi-00", [*device.spool, entry])
    told = explained(world)
    assert told["runs"] == f"{MODEL}:1.0.0 light (onnxruntime-fp32)"
    assert told["rung"] == "light: 81 °C ≥ 80"


def test_a_device_in_probation_is_not_on_its_way(make_world: MakeWorld) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    device = world.devices["pi-00"]
    device.silent = True
    rollout_id = start(world, "1.1.0")
    step_until(world, {A.PROBATION}, rollout_id)
    hear(world, device)
    told = explained(world)
    assert "wave 1, on probation: 0 of 5 inferences, 2 s, at most 60 s" in told["version"], told
    assert told["generation"].endswith(f"{MODEL}:1.1.0 is there, on probation"), told
    assert "on its way" not in told["generation"]
    world._sample(device, 3)
    assert "on probation: 3 of 5 inferences" in explained(world)["version"]


def test_an_order_underway_says_how_far_it_is(make_world: MakeWorld) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    start(world, "1.1.0")
    world.tick()
    assert explained(world)["generation"].endswith(f"{MODEL}:1.1.0 is on its way (offered)")


def left_for(world: World, reason: str) -> tuple[str, str]:
    """What both explanations say of a device that left a version, with this reason of its own."""
    deploy(world, "1.0.0")
    rollout_id = start(world, "1.1.0")
    step_until(world, {A.ROLLED_BACK}, rollout_id)
    with world.store.write() as conn:
        conn.execute(
            update(assignment).where(assignment.c.rollout_id == rollout_id).values(reason=reason)
        )
    facts = explain_rollout(world.deps, world.ctx(), rollout_id).facts
    (device,) = [one.text for one in facts if one.topic == "device"]
    return explained(world)["left"], device


@pytest.mark.parametrize(
    "reason",
    [
        "5 inferences in a row over 100 ms (131 118 124 140 122)",
        "5 bad inferences in a row (0 failed, 5 not finite)",
    ],
)
def test_times_are_told_once_and_only_where_they_are_the_cause(
    make_world: MakeWorld, reason: str
) -> None:
    for told in left_for(make_world(1, bad_versions={"1.1.0": "slow"}), reason):
        assert told.endswith(reason)


def test_times_that_the_reason_lacks_are_told_beside_it(make_world: MakeWorld) -> None:
    for told in left_for(make_world(1, bad_versions={"1.1.0": "slow"}), "too slow (lab 2)"):
        assert told.endswith("too slow (lab 2) (131 118 124 140 122 ms)")


def test_the_last_events_name_the_phase_that_began(make_world: MakeWorld) -> None:
    world = make_world(1)
    rollout_id = deploy(world, "1.0.0")
    (last,) = [
        one.text
        for one in explain_rollout(world.deps, world.ctx(), rollout_id).facts
        if one.topic == "last"
    ]
    assert "rollout phase SUCCEEDED (1 device committed)" in last
    (own,) = [
        one.text for one in explain_device(world.deps, world.ctx(), "pi-00") if one.topic == "last"
    ]
    assert " pi-00 assignment committed" in last
    assert " assignment committed" in own
    assert " pi-00 " not in own  # its own page need not name it


def test_a_new_disk_has_no_version_to_return_to(make_world: MakeWorld) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    deploy(world, "1.1.0")
    before = explained(world)
    assert before["can return"] == f"{MODEL}:1.0.0"
    assert "enrolled" not in before
    world.now += timedelta(seconds=5)
    with world.store.write() as conn:
        devices.update_device(conn, "pi-00", enrolled_at=world.now, boot_id=None)
    told = explained(world)
    assert "can return" not in told
    assert told["enrolled"].startswith("anew at 2026-11-24T09:"), told


def test_a_quarantine_is_told_with_its_reason(make_world: MakeWorld) -> None:
    world = make_world(1)
    assert explained(world)["runs"] == "nothing: no rollout has reached it yet"
    deploy(world, "1.0.0")
    assert "quarantine" not in explained(world)
    with world.store.write() as conn:
        boots.add_boot(conn, "pi-00", "2-b", 2, world.now)
        devices.update_device(conn, "pi-00", boot_id="2-b")
    world.now += timedelta(seconds=LATE_S + 1)
    assert not check_live_boot(world.deps, world.ctx("pi-00"), "pi-00", "1-abc")
    told = explained(world)
    assert "two holders of one identity" in told["quarantine"]
    assert "fleetctl device accept pi-00" in told["quarantine"]
    assert told["version"].startswith("1.0.0: rollout ")


def test_builds_are_told_apart_by_who_let_them_pass(make_world: MakeWorld) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    with world.store.write() as conn:
        for recipe, verdict, reason, by in (
            ("onnxruntime-int8", "OVERRIDDEN", "a lab", "ana"),
            ("openvino-int8", "REFUSED", "slower than fp32", None),
        ):
            key = GateKey(MODEL, "1.0.0", "heavy", recipe, PROFILE)
            told = reason if by else None
            row = GateRow(
                key, "b-1.0.0-heavy", verdict, reason, told, by, world.now, False, world.now
            )
            put_gate(conn, PROJECT, row)
    facts = explain_device(world.deps, world.ctx(), "pi-00")
    lines = [fact.text for fact in facts if fact.topic == "build"]
    heavy = f"heavy: onnxruntime-fp32 10 ms, best of 1 that passed and 1 overridden for {PROFILE}"
    assert lines[:3] == [
        heavy,
        "  onnxruntime-int8 10 ms, overridden by ana: a lab",
        "  openvino-int8 refused (slower than fp32)",
    ]
    assert lines[3].startswith("light: onnxruntime-fp32 10 ms")


def say(world: World, kind: str, version: str, reason: str = "") -> None:
    """An event of the device."""
    device = world.devices["pi-00"]
    device.seq += 1
    model = "" if kind == "boot" else MODEL
    entry = DeviceEnvelope("1-abc", device.seq, EventBody(kind, model, version, reason, {}))
    accept_reports(world.deps, world.ctx("pi-00"), "pi-00", [entry])


@pytest.mark.parametrize("end", ["recovered", "boot"])
def test_a_slow_version_with_nothing_to_return_to_is_told_while_it_lasts(
    make_world: MakeWorld, end: str
) -> None:
    world = make_world(1)
    deploy(world, "1.0.0")
    hear(world, world.devices["pi-00"])
    why = "5 inferences in a row over 100 ms (131 118 124 140 122); no version to return to"
    say(world, "cannot_return", "0.9.0", "of another version")  # the negative control
    assert "stays" not in explained(world)
    say(world, "cannot_return", "1.0.0", why)
    told = explained(world)
    assert told["stays"].startswith(f"{MODEL}:1.0.0 since ")
    assert told["stays"].endswith(f": {why}")
    assert "cannot return" in told["last"]
    say(world, end, "1.0.0")
    assert "stays" not in explained(world)
