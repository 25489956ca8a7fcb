"""Less than a minute of random faults over six devices; `make faults` does it for ten.

FAULTS_SEED plays a run again. The negative control is an agent that serves nothing during a swap.
"""

import os
import secrets
from pathlib import Path

import pytest

from tests.faults.fleets import digits_fleet
from tests.faults.operator import QUICK_BAD
from tests.faults.run import Run
from tests.faults.story import Story
from tests.faults.world import FaultyWorld
from tests.support.e2e_world import say


def play(root: Path, seed: int, seconds: float, breaks: str = "") -> Story:
    """One run with a fleet of its own; AssertionError with its story where a promise broke."""
    story = Story(seed, loud=False)
    world = FaultyWorld(digits_fleet(root), seed, breaks)
    try:
        world.start()
        Run(world, story, seed, seconds).go(2, QUICK_BAD)
    except AssertionError as error:
        told = "\n".join(story.lines)
        raise AssertionError(f"FAULTS_SEED={seed}: {error}\n{told}") from error
    finally:
        world.close()
    return story


@pytest.mark.slow
def test_nothing_is_lost_while_everything_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("FAULTS_SEED", secrets.randbelow(10**6)))
    say(capsys, f"FAULTS_SEED={seed}")
    story = play(tmp_path, seed, 35.0)
    figures = story.figures
    assert figures["requests"] > 1000
    assert figures["requests_failed"] == 0
    assert sum(story.faults.values()) >= 5, story.faults
    say(capsys, f"{dict(story.faults)}, {figures['requests']} requests, {dict(story.rollouts)}")


@pytest.mark.slow
@pytest.mark.skipif(
    "FAULT_AWAY_S" not in os.environ, reason="a minute, a control of the test above: make test-slow"
)
def test_negative_control_an_agent_that_serves_nothing_during_a_swap(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"requests failed: .*has no version loaded yet"):
        play(tmp_path, 1, 12.0, breaks="gap-in-swap")
