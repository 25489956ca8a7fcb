"""`make sim SEEDS=1000`: rollouts with bad luck, decided by seeds; `SEED=n` plays one again.

Exit code 0 where every invariant held after every step. `--planted` asks the contrary: bugs planted
on purpose have to be found. The last line is the result.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from examples.fleet.clock import monotonic
from tests.simulation.sim_planted import PLANTED
from tests.simulation.sim_run import MEMORY, Found, Stage
from tests.simulation.sim_whatif import Compared, WhatIf

SHOWN = 3  # stories of failing seeds
PORTION = 5  # seeds that one process plays in a row
_stages: list[Stage] = []
_places: list[Path] = []


def main() -> int:
    """Play the seeds, or one of them, or look for planted bugs."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first seed")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="play one again")
    parser.add_argument("--planted", action="store_true", help="look for the planted bugs")
    parser.add_argument("--what-if", action="store_true", help="forecast and compare instead")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    began = monotonic()
    seeds = range(options.first, options.first + options.seeds)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    place = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="lighterman-sim-", dir=place) as folder,
        ProcessPoolExecutor(options.processes, initializer=_open, initargs=(folder,)) as pool,
    ):
        _open(folder)
        if options.planted:
            jobs = [(name, seeds.start, seeds.stop) for name in PLANTED]
            figures = _planted_figures(pool.map(_hunt, jobs))
        elif options.what_if:
            figures = _compared_figures(list(pool.map(_compare, seeds)))
        else:
            portions = [seeds[at : at + PORTION] for at in range(0, len(seeds), PORTION)]
            played = pool.map(_play_all, [(one.start, one.stop) for one in portions])
            figures = _figures([one for portion in played for one in portion])
    took_s = monotonic() - began
    figures |= {"took_s": round(took_s, 1)}
    if not options.planted and not options.what_if:
        figures |= {"seeds_per_minute": round(60 * len(seeds) / took_s, 1)}
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    _say("; ".join(f"{name} {value}" for name, value in figures.items() if name != "found_at"))
    return 0 if figures.get("failed", 0) == 0 and figures.get("missed", []) == [] else 1


def _figures(found: list[Found]) -> dict[str, Any]:
    broken = [one for one in found if one.broken]
    for one in broken[:SHOWN]:
        _say(_stage().shrink(one).text())
    if len(broken) > SHOWN:
        _say(f"and seeds {', '.join(str(one.seed) for one in broken[SHOWN:])}")
    return {
        "seeds": len(found),
        "rollouts": sum(one.rollouts for one in found),
        "failed": len(broken),
    }


def _planted_figures(found: Iterable[tuple[str, int | None, str]]) -> dict[str, Any]:
    hunted = []
    for name, seed, broken in found:
        _say(f"{name}: " + (f"seed {seed}, {broken}" if seed is not None else "not found"))
        hunted.append((name, seed))
    return {
        "planted": len(hunted),
        "planted_found": sum(seed is not None for _, seed in hunted),
        "missed": [name for name, seed in hunted if seed is None],
        "found_at": dict(hunted),
    }


def _compared_figures(found: list[Compared]) -> dict[str, Any]:
    """Forecasts whose nine of ten held: duration and blast radius."""
    return {
        "forecasts": len(found),
        "forecast_hit_pct": round(100 * sum(one.is_hit for one in found) / len(found), 1),
        "forecast_p90_over_took": round(median(one.p90_s / one.took_s for one in found), 2),
    }


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# -- in the processes -------------------------------------------------------------------------


def _open(folder: str) -> None:
    """Stages of this process stand there; who made the folder removes it."""
    _stages.clear()
    _places[:] = [Path(folder)]
    # What is loaded stays; the rest is mostly freed by counting. Looking for circles costs a tenth.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _stage() -> Stage:
    if not _stages:
        _stages.append(Stage(_places[0]))
    return _stages[0]


def _play_all(seeds: tuple[int, int]) -> list[Found]:
    return [_stage().play(seed) for seed in range(*seeds)]


def _compare(seed: int) -> Compared:
    return WhatIf(_stage()).compare(seed)


def _hunt(job: tuple[str, int, int]) -> tuple[str, int | None, str]:
    """The first seed that shows the bug, and how."""
    name, first, last = job
    for seed in range(first, last):
        found = _stage().play(seed, bug=name)
        if found.broken and not _stage().play(seed).broken:  # it is the bug that breaks it
            return name, seed, found.broken[:120]
    return name, None, ""


if __name__ == "__main__":
    raise SystemExit(main())
