"""Forecasts against what then happens: the service forecasts from what a world has recorded.

Devices come and go and infer for some minutes; then a rollout is forecast, started and followed to
its end. Nothing of the world is told to the forecast but what the controller has stored.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from random import Random

from controller.domain.rollout import Phase
from controller.services.forecasts import forecast_rollout
from controller.services.telemetry import set_online
from tests.simulation.books import BookedRollout
from tests.simulation.rollout_world import KilledError
from tests.simulation.sim_faults import Faults
from tests.simulation.sim_luck import begin
from tests.simulation.sim_run import Stage
from tests.simulation.sim_world import SimWorld

QUIET = Faults(
    kills=False, power=False, network=False, brokers=False, disks=False, silence=False,
    heat=False, clocks=False, people=False, models=1,
)  # fmt: skip
BAD = "1.2.0"
BAD_PCT = 100 / 3  # of the devices: see `SimAgent.is_some`
HISTORY_S = 240.0
TURNS = 1500
SPEC: dict[str, object] = {
    "model": "digits", "selector": "all", "waves": ["1", "50%", "100%"],
    "soak_s": 30.0, "min_samples": 60, "deadline_s": 3600.0,
    "override_first_wave_reason": "small",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """One rollout, forecast and then seen."""

    seed: int
    fails: bool
    took_s: float
    p90_s: float
    exposed: int
    exposed_p90: float

    @property
    def is_hit(self) -> bool:
        """Duration and blast radius inside nine of ten."""
        return self.took_s <= self.p90_s and self.exposed <= self.exposed_p90


class WhatIf:
    """Plays such rollouts on a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def compare(self, seed: int) -> Compared:
        """Forecast one, and see what comes of it."""
        random = Random(seed)
        faults = replace(QUIET, devices=random.choice((8, 12, 20, 30)))
        world, base = self.stage.world(seed, faults)
        with closing(world):
            world.follow(base)
            world.calm, world.steps_s = True, (0.5, 1.0, 2.0)
            world.hows[BAD] = "slow on some"
            coming = _Coming(world, Random(seed + 1))
            until_s = world.elapsed_s + HISTORY_S
            while world.elapsed_s < until_s:
                coming.turn()
            fails = random.random() < 0.5
            return _follow(world, coming, seed, fails)


class _Coming:
    """Devices that come and go, each by its site's habit."""

    def __init__(self, world: SimWorld, random: Random) -> None:
        self.world, self.random = world, random
        self.away_s = random.choice((20.0, 40.0, 60.0))
        self.here_s = self.away_s * random.choice((4.0, 9.0, 19.0))
        self.until = dict.fromkeys(world.agents, 0.0)

    def turn(self) -> None:
        """Some change; then time passes."""
        world, words = self.world, {}
        for name, until_s in self.until.items():
            if until_s <= world.elapsed_s:
                away = name in world.cut_off
                if until_s:
                    away = not away
                    words[name] = not away
                mean = self.away_s if away else self.here_s
                self.until[name] = world.elapsed_s + self.random.expovariate(1 / mean)
        if words:
            world.cut_off = (world.cut_off - {n for n, on in words.items() if on}) | {
                n for n, on in words.items() if not on
            }
            set_online(world.deps, world.ctx("door"), words)
        try:
            world.turn()
        except KilledError:  # never: nothing kills here
            raise AssertionError("killed in quiet weather") from None


def _follow(world: SimWorld, coming: _Coming, seed: int, fails: bool) -> Compared:
    version = BAD if fails else "1.1.0"
    spec = SPEC | {"version": version}
    asked = forecast_rollout(
        world.deps, world.ctx(), spec, fails_on_pct=BAD_PCT if fails else 0.0, seed=seed + 1
    )
    told = asked.forecast
    began_s = world.elapsed_s
    started = SPEC | {"version": version}
    begin(world, **started)  # type: ignore[arg-type]
    newest = _newest(world)
    for _ in range(TURNS):
        coming.turn()
        newest = _newest(world)
        if newest.is_over or newest.phase is Phase.PAUSED:
            break
    span = told.duration_s
    return Compared(
        seed=seed,
        fails=fails,
        took_s=world.elapsed_s - began_s,
        p90_s=span.p90 if span is not None else 0.0,
        exposed=len(newest.exposed),
        exposed_p90=told.exposed.p90,
    )


def _newest(world: SimWorld) -> BookedRollout:
    return max(world.books.read(), key=lambda row: row.rollout_id)
