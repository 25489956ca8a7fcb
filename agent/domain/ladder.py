"""Which rung answers: steps down under pressure, back up when it is over for long enough.

Refuses to move without a sensor: a reading of None never triggers anything. Refuses a remote rung
and moves by p95 in probation: there the new build itself has to be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.domain.desired import RungKind, RungSpec
from agent.domain.policy import LadderPolicy
from agent.domain.probation import LadderPosition, Trial


class ChangeKind(StrEnum):
    """Why a rung changed; the values of `lighterman_rung_changes_total{reason}`."""

    TEMPERATURE = "temperature"
    LOAD = "load"
    MEMORY = "memory"
    CPU = "cpu"
    NETWORK = "network"
    LATENCY = "latency"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Pressure:
    """Readings of the host and of the current rung; None where there is no sensor or no sample.

    `p95_s` is of the *current* rung alone within `window_s`. `queue_age_s` is the age of the oldest
    waiting request. `link_rtt_s` and `link_loss_pct` are of the remote rung's link; a probe without
    an answer is loss, not None. `throttled` and `starved` are what the host says of its clocks and
    of waiting for a CPU.
    """

    p95_s: float | None = None
    queue_age_s: float | None = None
    temperature_c: float | None = None
    memory_pct: float | None = None
    cpu_pct: float | None = None
    link_rtt_s: float | None = None
    link_loss_pct: float | None = None
    throttled: bool | None = None
    starved: bool | None = None


@dataclass(frozen=True, slots=True)
class LadderState:
    """Where the ladder stands, and since when (monotonic) each wish to leave has held.

    `backoff` doubles the wait before the next step up, each time a step up did not last.
    """

    rung: str
    changed_at_s: float
    down_since_s: tuple[tuple[ChangeKind, float], ...] = ()
    up_since_s: float | None = None
    link_since_s: float | None = None
    backoff: int = 0
    stepped_up: bool = False


@dataclass(frozen=True, slots=True)
class RungChange:
    """A move, its kind and its story."""

    from_rung: str
    to_rung: str
    kind: ChangeKind
    reason: str


@dataclass(frozen=True, slots=True)
class RungChoice:
    """The state to keep, the move to make (None: stay), and when to ask again at the latest."""

    state: LadderState
    change: RungChange | None
    wake_at: float | None
    reason: str


def begin_ladder(rungs: Sequence[RungSpec], now: float) -> LadderState:
    """The heaviest local rung: a start must not depend on any network."""
    raise NotImplementedError


def choose_rung(
    state: LadderState,
    pressure: Pressure,
    policy: LadderPolicy,
    rungs: Sequence[RungSpec],
    now: float,
    trial: Trial = Trial.COMMITTED,
) -> RungChoice:
    """Decide the rung; `rungs` heavy to light, those that can be used now."""
    raise NotImplementedError


def step_down(state: LadderState, rungs: Sequence[RungSpec], reason: str, now: float) -> RungChoice:
    """The move that the rollback rule asks for (`StepDown`): the next lower local rung, at once."""
    raise NotImplementedError


def position_of(rung: str, rungs: Sequence[RungSpec]) -> LadderPosition:
    """Where `rung` stands, for the rollback rule."""
    local = [r.name for r in rungs if r.kind is RungKind.LOCAL]
    if rung not in local:
        return LadderPosition.REMOTE
    return LadderPosition.LOWEST_LOCAL if rung == local[-1] else LadderPosition.LOCAL


def is_pressured(pressure: Pressure, policy: LadderPolicy) -> bool:
    """The pressure mark of the rollback rule: heat, throttled clocks or a starved CPU."""
    hot = pressure.temperature_c is not None and pressure.temperature_c >= policy.temperature_down_c
    return hot or pressure.throttled is True or pressure.starved is True
