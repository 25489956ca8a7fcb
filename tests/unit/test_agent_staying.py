"""A committed version that is slow where there is nothing to return to: told once, and its end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import agent.domain.staying
import agent.loop
from agent.domain.ladder import Pressure
from agent.domain.staying import CALM_S, CANNOT_RETURN, RECOVERED, Said, Staying, look
from tests.support.loop_world import LoopWorld
from tests.support.serving import make_release, scaled

WHY = "5 in a row over 100 ms"
PROBATION = {"min_inferences": 5, "min_s": 0.05, "max_s": 600}


def test_it_is_said_once_and_its_end_once() -> None:
    known, said = look(None, "a", True, WHY, 0.0)
    assert said == Said(CANNOT_RETURN, WHY)
    for now in (1.0, 2.0, 1000.0):
        known, said = look(known, "a", True, WHY, now)
        assert (known, said) == (Staying("a"), None)
    known, said = look(known, "a", False, "", 1001.0)
    assert said is None
    known, said = look(known, "a", True, WHY, 1030.0)  # again: the calm begins anew
    assert (known, said) == (Staying("a"), None)
    known, said = look(known, "a", False, "", 1040.0)
    known, said = look(known, "a", False, "", 1040.0 + CALM_S - 0.1)
    assert said is None
    known, said = look(known, "a", False, "", 1040.0 + CALM_S)
    assert known is None
    assert said is not None
    assert (said.kind, said.reason) == (RECOVERED, "no row of slow or bad inferences for 60 s")
    assert look(known, "a", False, "", 2000.0) == (None, None)


def test_what_was_said_of_another_version_is_not_said_of_this_one() -> None:
    known, _ = look(None, "a", True, WHY, 0.0)
    assert look(known, "b", False, "", 1.0) == (None, None)
    assert look(known, "b", True, WHY, 1.0) == (Staying("b"), Said(CANNOT_RETURN, WHY))


def test_a_row_that_is_no_fault_of_the_version_is_neither_said_nor_an_end() -> None:
    assert look(None, "a", True, "", 0.0) == (None, None)
    known, _ = look(None, "a", True, WHY, 0.0)
    assert look(known, "a", True, "", 500.0) == (Staying("a"), None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopWorld]:
    monkeypatch.setattr(agent.loop, "LOOK_S", 0.05)
    monkeypatch.setattr(agent.domain.staying, "CALM_S", 0.3)
    made = LoopWorld(tmp_path / "state")
    yield made
    made.stop()


def order(world: LoopWorld, generation: int, threshold_ms: float) -> None:
    """The same version of the same rollout, under another threshold: no load, no probation."""
    data = scaled(2.0)
    world.wire.offer(data)
    release = make_release(
        "1.0.0", {"heavy": data}, probation=PROBATION, slow_threshold_ms=threshold_ms
    )
    world.order(generation, release, rollout="r-1")


def test_the_first_version_that_turns_slow_stays_and_says_so(world: LoopWorld) -> None:
    order(world, 1, 60_000)
    world.wait_applied(1)
    assert world.events(CANNOT_RETURN) == []
    order(world, 2, 0.000001)  # no runtime is that fast
    world.wait(lambda: world.events(CANNOT_RETURN), "the event")
    (said,) = world.events(CANNOT_RETURN)
    assert (said.model, said.version) == ("photo", "1.0.0")
    assert said.reason.startswith("5 inferences in a row over ")
    assert said.reason.endswith("; no version to return to, it goes on answering")
    assert world.answer() == 2.0
    order(world, 3, 60_000)
    world.wait(lambda: world.events(RECOVERED), "the end of it")
    assert [len(world.events(kind)) for kind in (CANNOT_RETURN, RECOVERED)] == [1, 1]
    assert world.answer() == 2.0


def test_negative_control_a_hot_device_is_not_the_versions_fault(world: LoopWorld) -> None:
    order(world, 1, 60_000)
    world.wait_applied(1)
    world.sensors.felt = Pressure(starved=True)
    order(world, 2, 0.000001)
    serving = world.host.serving
    world.wait(lambda: (s := serving("photo")) and s.row.seen > 200, "many inferences")
    assert world.events(CANNOT_RETURN) == []
