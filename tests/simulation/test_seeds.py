"""The simulator: a seed gives one run, invariants hold on a few, and a planted bug is found."""

from collections.abc import Iterator

import pytest

from tests.simulation.sim_faults import Faults
from tests.simulation.sim_run import Stage
from tests.simulation.sim_whatif import WhatIf


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


@pytest.mark.parametrize("seed", [3, 15])  # 15: two models left at once
def test_invariants_hold_whatever_happens(stage: Stage, seed: int) -> None:
    found = stage.play(seed)
    assert not found.broken, found.text()
    assert found.rollouts > 1


def test_a_bug_is_found_told_and_made_small(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.sim_run.SHRINKS", 3)
    bug = "cap of the next wave"
    found = stage.play(0, Faults(steps=12, network=False, silence=False, disks=False), bug)
    assert "of at most" in found.broken
    small = stage.shrink(found, bug)
    assert small.broken
    assert small.faults != found.faults
    lines = small.text().splitlines()
    assert len(lines) <= 20
    assert lines[-1].endswith("make sim SEED=0")


@pytest.mark.parametrize("seed", [1, 4])  # a good version, and one that fails on a third
def test_a_forecast_holds_for_what_then_happens(stage: Stage, seed: int) -> None:
    found = WhatIf(stage).compare(seed)
    assert found.is_hit, found
    assert found.fails is (seed == 4)
