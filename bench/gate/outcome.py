"""What became of one simulated rollout, and the figures of many."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.fleet.figures import quantile
from bench.gate.fleet import GOOD, Kind
from controller.domain.rollout import TERMINAL, Phase


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one rollout, as the ghost saw it."""

    seed: int
    kind: Kind
    size: float
    devices: int
    phase: Phase
    reason: str
    hours: float
    exposed: int
    cap: int
    over_cap: int  # looks at which more were exposed than the cap of what was proven
    silent_passes: int
    decisions: int
    unstable: int  # decisions that did not come out the same from what was stored

    @property
    def is_bad(self) -> bool:
        """Whether it had to be stopped."""
        return self.kind not in GOOD

    @property
    def is_stopped(self) -> bool:
        """FAILED (and taken back) or held because the figures cannot tell."""
        return self.phase in (Phase.ROLLED_BACK, Phase.FAILED, Phase.ROLLING_BACK, Phase.PAUSED)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures; shares are None where there is nothing to divide by."""
    bad = [one for one in outcomes if one.is_bad]
    good = [one for one in outcomes if not one.is_bad]
    equal = [one for one in outcomes if one.kind is Kind.EQUAL]
    stopped = [one for one in outcomes if one.is_stopped]
    held = [one for one in stopped if one.phase is Phase.PAUSED]
    caught = [one for one in bad if one.is_stopped]
    exposed = [one.exposed for one in bad]
    of_cap = [100 * one.exposed / one.cap for one in bad]
    of_fleet = [100 * one.exposed / one.devices for one in bad]
    missed = [one for one in bad if not one.is_stopped]
    return {
        "rollouts": len(outcomes),
        "bad": len(bad),
        "good": len(good),
        "devices_median": quantile([one.devices for one in outcomes], 0.5),
        "precision_pct": _share(len(caught), len(stopped)),
        "recall_pct": _share(len(caught), len(bad)),
        "false_stop_pct": _share(sum(one.is_stopped for one in equal), len(equal)),
        "good_stop_pct": _share(sum(one.is_stopped for one in good), len(good)),
        "held_for_a_person": len(held),
        "unfinished": sum(not one.is_stopped and one.phase not in TERMINAL for one in outcomes),
        "exposed_median": quantile(exposed, 0.5) if bad else None,
        "exposed_p99_of_cap_pct": round(quantile(of_cap, 0.99), 1) if bad else None,
        "exposed_median_pct": round(quantile(of_fleet, 0.5), 1) if bad else None,
        "hours_median_good": quantile([one.hours for one in good], 0.5) if good else None,
        "cap_violations": sum(one.over_cap for one in outcomes),
        "silent_passes": sum(one.silent_passes for one in outcomes),
        "decisions": sum(one.decisions for one in outcomes),
        "unstable_decisions": sum(one.unstable for one in outcomes),
        "stopped_by_kind": {
            kind.value: f"{sum(one.is_stopped for one in of)} of {len(of)}"
            for kind in Kind
            if (of := [one for one in outcomes if one.kind is kind])
        },
        "missed": [_told(one) for one in missed[:10]],
        "stopped_wrongly": [_told(one) for one in good if one.is_stopped][:10],
        "phases": dict(Counter(one.phase.value for one in outcomes)),
    }


def _share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def _told(one: Outcome) -> str:
    return (
        f"seed {one.seed}: {one.kind} {one.size:g}, {one.devices} devices, {one.phase},"
        f" {one.reason}"
    )
