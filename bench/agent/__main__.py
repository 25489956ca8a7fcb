"""`python -m bench.agent [--json FILE]`: measures, prints, and fails when a figure is missed."""

import argparse
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.agent import idle, lite0, swaps, throughput
from bench.agent.processes import rss_mb
from bench.agent.world import World, served
from examples.fleet.clock import monotonic
from examples.models import ExampleModelsError

ROUNDS, ROUND_S = 7, 1.6
SWAPS = 1000
IDLE_S = 60.0
# Figure, bound, and whether it is the least that is allowed.
BOUNDS = (
    ("throughput_ratio_8", 0.90, True),
    ("rss_core_mb", 65.0, False),
    ("rss_model_mb", 120.0, False),
    ("swaps", SWAPS, True),
    ("swap_failures", 0, False),
    ("failed_requests", 0, False),
    ("cpu_idle_pct", 0.5, False),
    ("mb_per_month", 15.0, False),
)


def main() -> int:
    """Exit code 0 when every figure is within its bound, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.stderr.write("error: two cores are needed: one for the agent, one for who asks\n")
        return 1
    began = monotonic()
    try:
        files = lite0.files(Path(".cache") / "models")
    except ExampleModelsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="lighterman-bench-") as folder:
        world = World(Path(folder))
        try:
            figures = _measure(world, files)
        finally:
            world.close()
    figures["took_s"] = round(monotonic() - began, 1)
    missed = _show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if missed else 0


def _measure(world: World, files: Path) -> dict[str, Any]:
    world.controller.start()
    core = world.add_agent("core")
    core_began = monotonic()
    opening = idle.opening_bytes(core, world)
    # Another one asks often, so that what one question costs is seen in a minute.
    curious = world.add_agent("curious", LIGHTERMAN_POLL_S="10")
    asked = idle.Bytes(curious.pid, world.port("grpc"))
    world.build(files)
    busy = world.add_agent("busy")
    file = world.roll_out(busy)
    _say("throughput: the agent and the runtime alone take turns on one core")
    figures = throughput.measure(busy, file, ROUNDS, ROUND_S)
    figures["rss_model_loaded_mb"] = round(rss_mb(busy.pid), 1)
    # Being committed is told, as what was just answered is: neither is part of idleness.
    _wait(lambda: [one["phase"] for one in served(busy)] == ["COMMITTED"])
    threading.Event().wait(idle.SETTLE_S)
    _say(f"idle: {IDLE_S:.0f} s of an agent that serves a model nobody asks for")
    road = idle.Road(busy.pid, world.port("mqtt"))
    figures |= idle.measure(busy, IDLE_S)
    figures["rss_model_mb"] = round(rss_mb(busy.pid), 1)
    _wait(lambda: monotonic() - core_began >= IDLE_S)
    figures["rss_core_mb"] = round(rss_mb(core.pid), 1)
    figures["opening_bytes"] = opening
    _say(f"swaps: {SWAPS} versions in turn under load")
    figures |= swaps.measure(file, SWAPS)
    figures |= road.figures()
    figures |= idle.per_month(figures, asked)
    return figures


def _wait(done: Callable[[], bool]) -> None:
    from examples.fleet.clock import wait_until

    wait_until(done, 2 * IDLE_S, "an idle minute", every_s=0.5)


def _show(figures: dict[str, Any]) -> list[str]:
    missed = []
    for name, bound, least in BOUNDS:
        value = figures[name]
        holds = value >= bound if least else value <= bound
        if not holds:
            missed.append(name)
        sign = "≥" if least else "≤"
        _say(f"{name:<22} {value:>10}   {sign} {bound:<8g} {'holds' if holds else 'MISSED'}")
    for name, value in figures.items():
        if name not in [bound[0] for bound in BOUNDS]:
            _say(f"  {name:<32} {value}")
    return missed


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
