"""What people do to a rollout: pause, resume, abort, roll back, supersede; what silence does."""

from collections.abc import Iterator

import pytest

from examples.fleet.clock import monotonic, wait_until
from tests.support.e2e_world import DIGITS, Fleet, now

LONG_SOAK = ("--soak", "300s")
OFFERED = ("OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION", "COMMITTED")


def begun(fleet: Fleet, *options: str) -> tuple[str, str, str]:
    """A rollout whose canary is committed and whose first wave soaks: before, version, rollout."""
    before = fleet.runs("gate-1")[0]
    version = fleet.push_digits()
    fleet.build(DIGITS, version)
    rollout = fleet.begin(DIGITS, version, *options)
    return before, version, rollout


def states(fleet: Fleet, rollout: str) -> list[str]:
    """Of all its devices, sorted."""
    return sorted(one["state"] for one in fleet.assignments(rollout).values())


def wait_canary(fleet: Fleet, rollout: str) -> str:
    """The canary's name once it is committed."""
    wait_until(
        lambda: "COMMITTED" in states(fleet, rollout), 60, "the canary to commit", every_s=0.3
    )
    found = fleet.assignments(rollout)
    return next(name for name, one in found.items() if one["state"] == "COMMITTED")


def test_pause_offers_to_nobody_and_resume_goes_on(fleet: Fleet) -> None:
    since = now()
    _, version, rollout = begun(fleet)
    fleet.ctl.run("rollout", "pause", rollout, "--reason", "lunch")
    shown = fleet.watch(rollout, 3)
    assert shown["phase"] == "PAUSED", shown
    assert "lunch" in shown["phase_reason"], shown
    exposed = shown["exposed"]
    assert exposed < 4, shown
    # The canary may prove itself meanwhile: the wave passes, and still nobody else is asked.
    began = monotonic()
    wait_until(lambda: monotonic() - began > 2, 10, "the pause to last", every_s=0.5)
    assert fleet.show(rollout)["exposed"] == exposed
    fleet.ctl.run("rollout", "resume", rollout)
    shown = fleet.watch(rollout, 0)
    assert [wave["verdict"] for wave in shown["waves"]] == ["PASSED"] * 2
    fleet.wait_running(version)
    assert fleet.failed(since) == []
    people = fleet.facts("rollout", rollout)["people"]
    assert any("lunch" in text for text in people), people


def test_abort_leaves_what_is_committed_and_withdraws_the_rest(fleet: Fleet) -> None:
    before, version, rollout = begun(fleet, *LONG_SOAK)
    canary = wait_canary(fleet, rollout)
    fleet.ctl.run("rollout", "abort", rollout, "--reason", "wrong labels")
    shown = fleet.watch(rollout, 3)
    assert shown["phase"] == "ABORTED", shown
    assert "wrong labels" in shown["phase_reason"], shown
    assert states(fleet, rollout) == ["COMMITTED", "WITHDRAWN", "WITHDRAWN", "WITHDRAWN"]
    fleet.wait_running(version, canary)
    fleet.wait_running(before, *(name for name in fleet.agents if name != canary))


def test_rollback_returns_every_touched_device(fleet: Fleet) -> None:
    since = now()
    version = fleet.push_digits()
    fleet.build(DIGITS, version)
    fleet.bring(DIGITS, version)
    fleet.wait_running(version)
    before, newer, rollout = begun(fleet, *LONG_SOAK)
    assert before == version
    canary = wait_canary(fleet, rollout)
    fleet.wait_running(newer, canary)
    fleet.ctl.run("rollout", "rollback", rollout, "--reason", "complaints", "--yes=1")
    shown = fleet.watch(rollout, 3)
    assert shown["phase"] == "ROLLED_BACK", shown
    assert "complaints" in shown["phase_reason"], shown
    assert states(fleet, rollout) == ["ROLLED_BACK", "WITHDRAWN", "WITHDRAWN", "WITHDRAWN"]
    fleet.wait_running(version)
    assert fleet.saw(newer, since) == {canary}
    assert fleet.failed(since) == []
    facts = fleet.facts("rollout", rollout)
    assert f"1 back on {version}" in facts["exposed"][0], facts
    assert "called back" in facts["device"][0], facts
    # Nobody found it bad: who tries again needs no override.
    plan = fleet.ctl.json("rollout", "plan", f"{DIGITS}:{newer}", "--to", "all")
    assert (plan["devices"], plan["unready"]) == (4, []), plan


def test_a_superseding_rollout_says_so(fleet: Fleet) -> None:
    _, _, older = begun(fleet, *LONG_SOAK)
    wait_canary(fleet, older)
    version = fleet.push_digits()
    fleet.build(DIGITS, version)
    plan = fleet.ctl.run("rollout", "plan", f"{DIGITS}:{version}", "--to", "all").out
    assert older in plan, plan
    newer = fleet.bring(DIGITS, version)
    shown = fleet.watch(older, 3)
    assert shown["phase"] == "ABORTED", shown
    assert f"superseded by {newer}" in shown["phase_reason"], shown
    fleet.wait_running(version)


@pytest.fixture
def silence(fleet: Fleet) -> Iterator[None]:
    """No camera sends anything."""
    for device in fleet.agents:
        fleet.close_camera(device)
    yield
    for device in fleet.agents:
        if (device, DIGITS) not in fleet.cameras:
            fleet.open_camera(device)


@pytest.mark.usefixtures("silence")
def test_silence_commits_nothing_and_waits_for_a_person(fleet: Fleet) -> None:
    version = fleet.push_digits()
    fleet.build(DIGITS, version)
    rollout = fleet.begin(DIGITS, version, "--deadline", "12s")
    shown = fleet.watch(rollout, 3)
    assert shown["phase"] == "PAUSED", shown
    assert shown["waves"][0]["verdict"] == "INCONCLUSIVE", shown
    assert "nothing is committed by silence" in shown["phase_reason"], shown
    assert states(fleet, rollout) == ["PLANNED", "PLANNED", "PLANNED", "PROBATION"]
    assignments = fleet.assignments(rollout)
    canary = next(name for name, one in assignments.items() if one["state"] == "PROBATION")

    def says_so() -> bool:
        models = fleet.ctl.json("device", "show", canary)["models"]
        mine = {m["model"]: (m["version"], m["phase"].upper()) for m in models}
        return mine.get(DIGITS) == (version, "PROBATION")

    wait_until(says_so, 20, f"{canary} to say PROBATION", every_s=0.5)
    told = " ".join(fleet.facts("device", canary)["version"])
    assert "starved" in told, told
    assert "inferences" in told, told
    status = fleet.ctl.json("status", expect=(0, 1))
    assert any(rollout in text and "person" in text for text in status["problems"]), status
    # Evidence comes, a person has looked: it goes on by itself from there.
    for device in fleet.agents:
        fleet.open_camera(device)
    fleet.ctl.run("rollout", "resume", rollout)
    fleet.watch(rollout, 0)
    fleet.wait_running(version)
