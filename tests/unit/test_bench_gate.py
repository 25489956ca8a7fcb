"""The gate's bench: figures are those of the domain, the ghost counts, and rollouts end right."""

from dataclasses import replace

import numpy as np
import pytest

from bench.gate.fleet import BUCKETS, Kind, Version, histogram_of_counts
from bench.gate.outcome import Outcome, summarise
from bench.gate.rollout import Rollout, moments
from controller.domain.comparison import log_moments
from controller.domain.rollout import Phase

PASSED = Outcome(
    1, Kind.EQUAL, 0.0, 20, Phase.SUCCEEDED, "20 devices committed", 2.0, 20, 20, 0, 0, 4, 0
)  # fmt: skip
CAUGHT = replace(PASSED, kind=Kind.SLOWER, phase=Phase.ROLLED_BACK, exposed=1, cap=1)


def test_moments_are_those_of_the_domain() -> None:
    random = np.random.default_rng(3)
    counts = random.poisson(3.0, (4, BUCKETS)).astype(np.int64)
    n, mean, variance = moments(counts)
    for row in range(4):
        found = log_moments(histogram_of_counts(counts[row]))
        assert found == pytest.approx((mean[row], variance[row]))
        assert histogram_of_counts(counts[row]).count == n[row]


def test_figures_are_counted_not_wished() -> None:
    missed = replace(CAUGHT, phase=Phase.SUCCEEDED, exposed=20, cap=20)
    wrong = replace(PASSED, phase=Phase.PAUSED)
    figures = summarise([PASSED, PASSED, PASSED, wrong, CAUGHT, missed])
    assert figures["precision_pct"] == 50.0
    assert figures["recall_pct"] == 50.0
    assert figures["false_stop_pct"] == 25.0
    assert figures["held_for_a_person"] == 1
    assert len(figures["missed"]) == len(figures["stopped_wrongly"]) == 1


@pytest.mark.parametrize("version", [None, Version(Kind.SLOWER, 2.0), Version(Kind.ERRORS, 0.1)])
def test_a_rollout_ends_and_the_ghost_agrees(version: Version | None) -> None:
    found = Rollout(21, version or Version(Kind.EQUAL)).run()
    assert found.is_stopped == (version is not None), found
    assert (found.over_cap, found.silent_passes, found.unstable) == (0, 0, 0)
    assert found.decisions > 0


def test_the_ghost_sees_a_judge_that_takes_silence_for_health(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: nothing is asked of a wave but that it is settled."""
    monkeypatch.setattr("controller.domain.health._waiting", lambda *_: "")
    assert Rollout(21, Version(Kind.EQUAL)).run().silent_passes > 0
