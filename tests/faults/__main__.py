"""Ten minutes of random faults over six devices: `python -m tests.faults --minutes 10 --seed 7`.

`--models demo` (the default): the demo's devices, policies and models; `--models digits`: small
models that build in seconds. Exit code 0: no request failed but in killed processes, I1 to I8 held
at every calm point, and every good version that did not win has a cause in the faults; its evidence
is in ROOT/ended-otherwise.
"""

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from examples.fleet.clock import TooLateError
from examples.models import ExampleModelsError
from tests.faults.fleets import digits_fleet, photo_fleet
from tests.faults.run import Run
from tests.faults.story import Story
from tests.faults.world import FaultyWorld


def main() -> int:
    """Run, tell, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of a run to play again")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--models", choices=("demo", "digits"), default="demo")
    parser.add_argument("--json", type=Path, metavar="FILE", help="story, schedule and figures")
    parser.add_argument("--root", type=Path, help="keep all files and logs there")
    parser.add_argument("--break", dest="breaks", default="", help="a negative control by name")
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    root = options.root or Path(tempfile.mkdtemp(prefix="lighterman-faults-"))
    root.mkdir(parents=True, exist_ok=True)
    story = Story(seed, loud=True)
    story.say(f"SEED={seed} MINUTES={options.minutes:g} MODELS={options.models}, logs in {root}")
    try:
        fleet = photo_fleet(root) if options.models == "demo" else digits_fleet(root)
    except ExampleModelsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    world = FaultyWorld(fleet, seed, options.breaks)
    try:
        world.start()
        Run(world, story, seed, options.minutes * 60).go(versions=6)
        story.figures["passed"] = True
    except (AssertionError, TooLateError) as error:
        story.figures |= {"passed": False, "error": str(error)}
        story.say(f"BROKEN: {error}")
    finally:
        world.close()
    for end in story.figures.get("good_ended_otherwise", []):
        story.say(f"{end['version']} did not win: {end['why']}; evidence in {end['folder']}")
    story.say("all promises held" if story.figures["passed"] else f"play it again: SEED={seed}")
    if options.json:
        story.write(options.json)
    return 0 if story.figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
