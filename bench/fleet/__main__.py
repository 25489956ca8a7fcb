"""`python -m bench.fleet --devices 1000 --json FILE`: the controller with a simulated fleet."""

import argparse
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.fleet.operator import Operator
from bench.fleet.phases import (
    bring_base,
    measure_acks,
    measure_floor,
    measure_halt,
    measure_rollout,
    measure_steady,
)
from bench.fleet.world import TELEMETRY_S, World
from examples.fleet.clock import monotonic, utc_now

STEADY_S = 30.0
GOALS = {
    "offered_s": 10.0,
    "ack_p99_s": 2.0,
    "halt_s": 2.0,
    "halt_behind": 0,
    "controller_cpu_cores": 0.5,
    "shed": 0,
    "ack_lost": 0,
    "failed": 0,
    "took_s": 360.0,
}


def main() -> int:
    """Run all phases; exit code 1 where a goal was missed."""
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=1000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--keep", action="store_true", help="keep logs and data of the run")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-fleet-"))
    world = World.create(root)
    began = monotonic()
    try:
        figures = _measure(world, options.devices)
    finally:
        world.close()
        if options.keep:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    figures["took_s"] = round(monotonic() - began, 1)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    missed = [name for name, most in GOALS.items() if figures[name] > most]
    for name in missed:
        print(f"missed: {name} is {figures[name]}, at most {GOALS[name]} is wanted")
    return 1 if missed else 0


def _measure(world: World, devices: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "schema_version": 1,
        "at": utc_now().isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "load_before": round(os.getloadavg()[0], 2),
        "devices": devices,
        "telemetry_s": TELEMETRY_S,
    }

    def take(found: dict[str, Any]) -> None:
        figures.update(found)
        for name, value in found.items():
            print(f"{name:24} {value}", flush=True)

    world.prepare()
    take({"prepared": "controller, five versions built"})
    take({"connected_s": round(world.simulate(devices), 1)})
    operator = Operator(world.controller.data_dir)
    try:
        take(bring_base(world, operator, devices))
        take(measure_rollout(world, operator, devices))
        take(measure_floor(world, devices))
        take(measure_acks(world, operator, devices))
        take(measure_steady(world, STEADY_S))
        take(measure_halt(world, operator, devices))
    finally:
        operator.close()
    take({"shed": int(world.metrics()["lighterman_ingest_shed_total"])})
    floor = figures["fetch_floor_s"] / figures["offered_s"]
    take(
        {
            "offered_per_s": round(devices / figures["offered_s"], 1),
            "offered_to_floor_ratio": round(floor, 3),
            "busy": world.standing()["happened"].get("busy", 0),
            "failed": world.standing()["happened"].get("failed", 0),
        }
    )
    return figures


if __name__ == "__main__":
    raise SystemExit(main())
