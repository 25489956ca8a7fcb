"""How long a tick takes with a fleet behind it: SQLite in memory's file system, one rollout.

Wave 1 of ten devices is open and committed; all others wait. Medians of milliseconds.
"""

import json
import sys
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import insert

from controller.domain.rollout import AssignmentState, Phase, RolloutSpec
from controller.domain.wave import parse_waves
from controller.services.tick import tick
from controller.store.projects import ensure_project
from controller.store.rollouts import RolloutRow, insert_rollout
from controller.store.tables import assignment, device
from controller.store.waves import insert_waves, open_wave
from controller.trust.signing import Signer
from examples.fleet.clock import monotonic
from tests.simulation.rollout_world import MODEL, POLICY, PROFILE, START, World, make_template
from tests.simulation.sim_run import MEMORY
from tests.support.stores import PROJECT, rollout_row

ROLLOUT = "r-000001"
TICKS = 30
CANARIES = 10
_A = AssignmentState


def tick_ms(devices: int) -> float:
    """Median of a tick over a rollout to so many devices."""
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="bench-ticks-", dir=place) as folder:
        world = make_world(Path(folder), devices)
        try:
            return _measure(world)
        finally:
            world.close()


def _measure(world: World) -> float:
    times = []
    for _ in range(TICKS):
        world.now += timedelta(seconds=2)
        began = monotonic()
        tick(world.deps, world.ctx("controller"))
        times.append((monotonic() - began) * 1000)
    return round(median(times), 2)


def make_world(folder: Path, devices: int) -> World:
    """A rollout to so many devices, one in ten of them offline; its first wave has to infer yet."""
    world = World(make_template(folder), Signer.create())
    with world.store.write() as conn:
        ensure_project(conn, PROJECT, START)
    for version in ("1.0.0", "1.1.0"):
        world.add_version(version)
    waves = parse_waves([str(CANARIES), "50%", "100%"], devices, "measured").waves
    numbers = range(devices)
    with world.store.write() as conn:
        conn.execute(insert(device), [_device(number) for number in numbers])
        insert_rollout(conn, _rollout())
        insert_waves(conn, ROLLOUT, waves)
        open_wave(conn, ROLLOUT, 1, START)
        conn.execute(insert(assignment), [_assignment(number) for number in numbers])
    return world


def _rollout() -> RolloutRow:
    spec = RolloutSpec(MODEL, "1.1.0", "all", (str(CANARIES), "50%", "100%"), min_samples=12)
    return replace(
        rollout_row(ROLLOUT, "1.1.0", START),
        spec=spec.to_json(),
        policies={"default": dict(POLICY)},
        phase=Phase.PROGRESSING,
        current_wave=1,
    )


def _device(number: int) -> dict[str, Any]:
    return {
        "device_id": f"pi-{number:06d}",
        "project": PROJECT,
        "state": "ACTIVE",
        "hardware_id": "",
        "profile": PROFILE,
        "protocol": 1,
        "online": number % 10 != 9,
        "applied_generation": 0,
        "enrolled_at": START,
    }


def _assignment(number: int) -> dict[str, Any]:
    first = number < CANARIES
    return {
        "rollout_id": ROLLOUT,
        "device_id": f"pi-{number:06d}",
        "model": MODEL,
        "version": "1.1.0",
        "wave": 1 if first else 2,
        "position": number,
        "state": (_A.COMMITTED if first else _A.PLANNED).value,
        "reason": "",
        "exposed": first,
        "evidence": {"bytes": 1000},
        "offered_at": START if first else None,
        "activated_at": START if first else None,
        "finished_at": START if first else None,
        "updated_at": START,
    }


def main() -> int:
    """Say both figures as JSON."""
    figures = {"tick_ms_1k": tick_ms(1_000), "tick_ms_100k": tick_ms(100_000)}
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
