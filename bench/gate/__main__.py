"""`python -m bench.gate --json FILE`: what the gate stops, what it lets pass, how often wrongly.

At least a thousand rollouts of good and bad versions over drawn fleets, through the real planner
and judge. Every figure is counted by a ghost beside the controller; nothing is corrected.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.gate.outcome import Outcome, summarise
from bench.gate.rollout import SLOWER_PCT, STEPPED_DOWN_PTS, Rollout
from bench.gate.ticks import tick_ms
from examples.fleet.clock import monotonic, utc_now

LEAST = {"precision_pct": 95.0, "recall_pct": 99.8}
MOST = {"false_stop_pct": 1.0, "cap_violations": 0, "silent_passes": 0, "unstable_decisions": 0}


def main() -> int:
    """Run them all; exit code 1 where a goal was missed."""
    parser = argparse.ArgumentParser(prog="bench.gate", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first rollout")
    parser.add_argument("--sim-seeds", type=int, default=40, metavar="N", help="0: no simulator")
    parser.add_argument("--forecasts", type=int, default=40, metavar="N", help="0: none")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    began = monotonic()
    seeds = range(options.seed, options.seed + options.rollouts)
    with ProcessPoolExecutor(options.processes) as pool:
        outcomes = list(pool.map(run_one, seeds, chunksize=4))
    figures: dict[str, Any] = {
        "schema_version": 1,
        "at": utc_now().isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "slower_pct": SLOWER_PCT,
        "stepped_down_pts": STEPPED_DOWN_PTS,
        **summarise(outcomes),
        **play_seeds(options.sim_seeds),
        **compare_forecasts(options.forecasts),
        **measure_ticks(),
        "took_s": round(monotonic() - began, 1),
    }
    for name, value in figures.items():
        print(f"{name:24} {value}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    wanted = LEAST | ({"forecast_hit_pct": 85.0} if options.forecasts else {})
    missed = [f"{key} is {figures[key]}, at least {least}" for key, least in wanted.items()
              if figures[key] < least]  # fmt: skip
    missed += [f"{key} is {figures[key]}, at most {most}" for key, most in MOST.items()
               if figures[key] > most]  # fmt: skip
    for text in missed:
        print(f"missed: {text} is wanted")
    return 1 if missed else 0


def play_seeds(count: int) -> dict[str, Any]:
    """How many seeds of the simulator a minute holds, and how many of these failed."""
    if not count:
        return {}
    played = _simulate("--seeds", str(count))
    return {
        "seeds_per_minute": played["seeds_per_minute"],
        "seeds_played": played["seeds"],
        "seeds_failed": played["failed"],
    }


def compare_forecasts(count: int) -> dict[str, Any]:
    """Forecasts over what a simulated fleet has recorded, against what then happens there."""
    if not count:
        return {}
    found = _simulate("--what-if", "--seeds", str(count))
    found.pop("took_s")
    return found


def _simulate(*options: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as folder:
        file = Path(folder) / "sim.json"
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", *options, "--json", str(file)],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            check=False,
            stdout=subprocess.DEVNULL,
        )
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def measure_ticks() -> dict[str, Any]:
    """A tick with 1,000 devices behind it, and with 100,000."""
    return {"tick_ms_1k": tick_ms(1_000), "tick_ms_100k": tick_ms(100_000)}


def run_one(seed: int) -> Outcome:
    """One rollout."""
    return Rollout(seed).run()


if __name__ == "__main__":
    raise SystemExit(main())
