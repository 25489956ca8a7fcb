"""The policy of one model on one device: when to step, when to roll back, when to commit.

Refuses to decide: it only holds numbers that fit together.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProbationPolicy:
    """How much a new version has to show before it is committed."""

    min_inferences: int = 200
    min_s: float = 60.0
    max_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class LadderPolicy:
    """Thresholds per signal; `down` starts a step down, below `up` a step up is allowed."""

    p95_budget_s: float = 0.100
    p95_recover_pct: float = 70.0
    queue_age_s: float = 0.500
    temperature_down_c: float = 80.0
    temperature_up_c: float = 74.0
    memory_down_pct: float = 92.0
    memory_up_pct: float = 85.0
    cpu_down_pct: float = 95.0
    cpu_up_pct: float = 80.0
    link_down_s: float = 0.150
    link_up_s: float = 0.080
    link_loss_pct: float = 20.0
    dwell_down_s: float = 3.0
    dwell_up_s: float = 30.0
    window_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything the agent decides by for one model."""

    name: str = "default"
    slow_threshold_s: float = 0.100
    slow_count: int = 5
    idle_gap_s: float = 2.0
    probation: ProbationPolicy = ProbationPolicy()
    ladder: LadderPolicy = LadderPolicy()
