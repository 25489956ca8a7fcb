"""`make demo`: builds, rolls out, presses, breaks and checks."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from examples.demo.faults import bad_version, better_version, build_figures, killed_controller
from examples.demo.steps import first_version, ladder
from examples.demo.story import Missed, Story
from examples.demo.world import (
    EDGE_CLIENT,
    MODEL,
    World,
    apply_policies,
    consumer_line,
    write_json,
)
from examples.fleet.camera import Picture
from examples.fleet.clock import TooLateError
from examples.fleet.ctl import CtlError
from examples.fleet.processes import ChildError
from examples.models import ExampleModelsError, generate

LOGS = 6


def main() -> int:
    """Run the demo; exit code 0 where every claim held."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--json", default=os.environ.get("JSON", ""), help="write the figures here")
    parser.add_argument("--keep", action="store_true", default=os.environ.get("KEEP") == "1")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also when a shell started it in the background
        signal.signal(number, signal.default_int_handler)
    try:
        files = generate(Path(".cache") / "models")
    except ExampleModelsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    root = Path(tempfile.mkdtemp(prefix="lighterman-demo-"))
    story = Story()
    world = World.create(root)
    finished = False
    try:
        _run(story, world, files)
        finished = True
    except (
        Missed,
        TooLateError,
        CtlError,
        ChildError,
        StopIteration,
        AssertionError,
        OSError,
    ) as error:
        story.claim("the demo runs to its end", False, str(error))
        _show_logs(world)
    except KeyboardInterrupt:
        sys.stdout.write("\ninterrupted\n")
    try:
        if finished and options.keep:
            _stay(world)
    finally:
        world.close()
    held = story.table()
    if options.json and finished:
        write_json(Path(options.json), story.figures)
    if held and finished:
        shutil.rmtree(root, ignore_errors=True)
        return 0
    sys.stdout.write(f"logs and data stay in {root}\n")
    return 1


def _run(story: Story, world: World, files: Path) -> None:
    pictures = _pictures(files)
    story.begin("0 start", "a controller on its defaults, six agents of two profiles")
    world.start_controller()
    story.say("\n".join(f"{k:<7} {v}" for k, v in world.controller.endpoints.items()))
    world.prepare_agents()
    apply_policies(world, queue_ms=30.0)
    world.enrol_agents()
    world.wait_online(180)
    world.ctl.run("admin", "dataset", "push", MODEL, str(files / "photos.npz"))
    story.say(world.ctl.run("device", "list").out)
    story.say("n100-*: simulated host; identity and sensors from a tree, speed is this machine's")
    story.say(world.ctl.run("admin", "dataset", "show", MODEL).out)
    first_version(story, world, files, pictures)
    ladder(story, world, pictures)
    better_version(story, world, files, pictures)
    bad_version(story, world)
    killed_controller(story, world, files)
    _consumer(story, world)
    answers = world.all_answers()
    failed = [answer for answer in answers if not answer.ok]
    story.figures.update(
        requests_sent=len(answers),
        requests_failed=len(failed),
        builds=build_figures(world),
        wall_s=round(story.elapsed(), 1),
    )
    story.step = "all"
    story.claim(
        "every request of every camera was answered",
        bool(answers) and not failed,
        f"{len(failed)} of {len(answers)} failed"
        + (f", first: {failed[0].error}" if failed else ""),
    )


def _pictures(files: Path) -> list[Picture]:
    with np.load(files / "photos.npz", allow_pickle=False) as photos:
        images = photos["x"][:40].astype(np.float32)
    return [
        Picture("image", "FP32", (1, *image.shape), np.ascontiguousarray(image).tobytes())
        for image in images
    ]


def _consumer(story: Story, world: World) -> None:
    """A consumer of the health feed with a certificate of its own, for real."""
    story.begin("6 feed", "telemetry for consumers, over MQTT")
    command = consumer_line(world)
    story.say("anyone with a consumer certificate can follow the fleet:\n" + shlex.join(command))
    seen = subprocess.run(
        [*command, "-C", "1", "-W", "15"], capture_output=True, text=True, timeout=30, check=False
    )
    story.claim(
        "a consumer reads a device's health",
        seen.returncode == 0 and "/health " in seen.stdout,
        seen.stdout.partition(" ")[0] or seen.stderr.strip(),
    )


def _stay(world: World) -> None:
    config = world.root / "config"
    sys.stdout.write(
        "\nIt runs on. In another terminal:\n"
        f"  export LIGHTERMAN_CONFIG_DIR={config} PATH={Path(sys.executable).parent}:$PATH\n"
        "  fleetctl status\n"
        "  fleetctl device list\n"
        f"  fleetctl device explain {EDGE_CLIENT}\n"
        "  fleetctl rollout list\n"
        "  fleetctl event tail\n"
        f"  {shlex.join(consumer_line_shown(world))}\n"
        "Ctrl-C ends it all.\n"
    )
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        sys.stdout.write("\n")


def consumer_line_shown(world: World) -> list[str]:
    """The line again, with the certificate that the demo has issued already."""
    folder = world.root / "consumer"
    host, _, port = world.controller.endpoints["mqtt"].rpartition(":")
    tls = [
        "--cafile",
        f"{folder}/ca.pem",
        "--cert",
        f"{folder}/cert.pem",
        "--key",
        f"{folder}/key.pem",
    ]
    return ["mosquitto_sub", "-h", host, "-p", port, *tls, "-v", "-t", "lighterman/v1/feed/#"]


def _show_logs(world: World) -> None:
    for child in (world.controller, *world.agents.values()):
        sys.stdout.write(f"--- {child.name}\n{child.last_lines(LOGS)}\n")


if __name__ == "__main__":
    raise SystemExit(main())
