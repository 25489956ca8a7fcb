"""A rollout that devices refuse: it failed, and every screen says so, why, and what to do."""

from collections.abc import Callable
from random import Random

import pytest

from controller.domain import planner
from controller.domain.planner import Plan
from controller.domain.rollout import AssignmentState, Phase
from controller.services.devices import retire_device
from controller.services.explain import explain_device
from controller.services.rollout_explanations import explain_rollout
from controller.services.rollouts import start_rollout
from controller.services.status import ProcessFacts, StatusView, get_status
from controller.store import assignments
from tests.simulation.rollout_world import MODEL, World

A = AssignmentState
MakeWorld = Callable[..., World]
WHY = "needs 9 MB, 1 MB is free"


def start(world: World, version: str = "1.0.0") -> str:
    spec: dict[str, object] = {
        "model": MODEL,
        "version": version,
        "selector": "all",
        "waves": ["1", "100%"],
        "soak_s": 1.0,
        "min_samples": 5,
    }
    view = start_rollout(world.deps, world.ctx(), spec, len(world.devices))
    assert world.run(Random(0), 300, world.is_over(view.rollout_id))
    return view.rollout_id


def status(world: World) -> StatusView:
    return get_status(world.deps, world.ctx(), ProcessFacts("0", world.now, True, 1))


def explained(world: World, device_id: str) -> dict[str, str]:
    return {one.topic: one.text for one in explain_device(world.deps, world.ctx(), device_id)}


def test_refused_by_its_only_device_it_failed_and_says_why(make_world: MakeWorld) -> None:
    world = make_world(1)
    world.devices["pi-00"].full = True
    rollout_id = start(world)
    row = world.rollout(rollout_id)
    assert (row.phase, row.phase_reason) == (
        Phase.FAILED,
        f"no device took it: 1 refused; pi-00: {WHY}",
    )
    view = status(world)
    (problem,) = view.problems
    assert problem == (
        f"rollout {rollout_id} failed: {row.phase_reason}; "
        f"`fleetctl rollout explain {rollout_id}` names the devices"
    )
    assert [one.rollout_id for one in view.recent] == [rollout_id]
    told = {
        one.topic: one.text for one in explain_rollout(world.deps, world.ctx(), rollout_id).facts
    }
    assert told["refused"] == f"pi-00: {WHY}"
    assert told["exposed"] == "0 of 1 device (cap 1) · 1 refused it"
    told = explained(world, "pi-00")
    assert told["runs"] == f"{MODEL}: nothing answers"
    assert told["refused"].startswith(f"{MODEL}:1.0.0: rollout {rollout_id}, refused 2026-")
    assert told["refused"].endswith(WHY)
    # Room was made: the same version again, and nothing of it is wrong any more.
    world.devices["pi-00"].full = False
    assert world.phase(start(world)) is Phase.SUCCEEDED
    assert status(world).problems == ()
    assert "refused" not in explained(world, "pi-00")


def test_who_refused_is_told_where_the_rollout_succeeded_elsewhere(make_world: MakeWorld) -> None:
    world = make_world(3)
    start(world)
    world.devices["pi-01"].full = True
    rollout_id = start(world, "1.1.0")
    row = world.rollout(rollout_id)
    assert (row.phase, row.phase_reason) == (Phase.SUCCEEDED, "2 devices committed, 1 refused")
    (problem,) = status(world).problems
    assert problem == (
        f"1 device refused {MODEL}:1.1.0 in a rollout that succeeded elsewhere; "
        "`fleetctl device explain pi-01` says why: pi-01"
    )
    told = explained(world, "pi-01")
    assert told["runs"].startswith(f"{MODEL}:1.0.0")
    assert told["refused"].endswith(WHY)
    world.devices["pi-01"].full = False
    assert world.phase(start(world, "1.1.0")) is Phase.SUCCEEDED
    assert status(world).problems == ()


def test_a_rollout_whose_devices_were_retired_did_not_fail(make_world: MakeWorld) -> None:
    world = make_world(1)
    world.devices["pi-00"].full = True
    view = start_rollout(
        world.deps,
        world.ctx(),
        {"model": MODEL, "version": "1.0.0", "selector": "all", "waves": ["100%"]},
        1,
    )
    retire_device(world.deps, world.ctx(), "pi-00")
    world.devices.clear()
    assert world.run(Random(0), 60, world.is_over(view.rollout_id))
    row = world.rollout(view.rollout_id)
    assert (row.phase, row.phase_reason) == (Phase.ABORTED, "no device took it: 1 withdrawn")
    with world.store.read() as conn:
        (one,) = assignments.list_assignments(conn, view.rollout_id)
    assert (one.state, one.reason) == (A.WITHDRAWN, "the device was retired")
    assert status(world).problems == ()


def test_negative_control_as_aborted_nobody_would_hear_of_it(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        planner, "_nobody_took_it", lambda facts: Plan(Phase.ABORTED, "x", facts.current_wave)
    )
    world = make_world(1)
    world.devices["pi-00"].full = True
    start(world)
    assert status(world).problems == ()
