"""The demo's steps. Each does what an operator would do, by fleetctl, and claims what it saw."""

from pathlib import Path
from typing import Any

from examples.demo.pressure import burst_for, queue_threshold_ms
from examples.demo.story import Story
from examples.demo.world import EDGE_CLIENT, MODEL, SIMULATED, World, apply_policies
from examples.fleet.camera import Picture
from examples.fleet.clock import monotonic, wait_until
from examples.hosts import set_temperature

WAVES = ["--waves", "1,50%,100%", "--soak", "3s", "--min-samples", "20"]
RECIPES = ["--recipe", "onnxruntime-int8", "--recipe", "onnxruntime-fp32"]
HEAT_DEVICE = SIMULATED[0]
LOAD_DEVICE = SIMULATED[1]
SLOW_S = 0.100
# Patience, many times what an idle machine of two cores takes (in brackets): a busy one may take
# longer, and only what never comes is a fault.
ROLLOUT_S = 300.0  # (25)
BUILD_S = 900.0  # (60 for the slowest version)
RUNG_S = 90.0  # (3 down, 8 back)


def push(world: World, files: Path, version: str, labels: str = "labels.txt") -> None:
    """Push one version's two variants."""
    world.ctl.run(
        "model", "push", f"{MODEL}:{version}",
        "--variant", f"heavy={files / version / 'heavy.pt2'}",
        "--variant", f"light={files / version / 'light.pt2'}",
        "--labels", str(files / labels),
    )  # fmt: skip


def build(world: World, version: str, *options: str, wait: bool, expect: tuple[int, ...]) -> Any:
    """Build for the profiles of the enrolled devices, whatever other runtimes are installed."""
    recipes = [] if "--recipe" in options else RECIPES
    waiting = ["--wait"] if wait else []
    return world.ctl.json(
        "build", "run", f"{MODEL}:{version}", *recipes, *options, *waiting,
        expect=expect, timeout_s=BUILD_S,
    )["items"]  # fmt: skip


def wait_built(world: World, version: str) -> list[dict[str, Any]]:
    """Wait until every build of a version is judged."""

    def done() -> list[dict[str, Any]]:
        builds = world.ctl.items("build", "list", f"{MODEL}:{version}")
        final = ("passed", "refused", "failed", "overridden")
        return builds if builds and all(b["state"] in final for b in builds) else []

    return wait_until(done, BUILD_S, f"builds of {version}", every_s=1.0)


def start_rollout(world: World, version: str) -> str:
    """Start a rollout to all devices; returns its id."""
    count = len(world.agents)
    answer = world.ctl.json(
        "rollout", "start", f"{MODEL}:{version}", "--to", "all", *WAVES, f"--yes={count}"
    )
    return str(answer["rollout_id"])


def watch(world: World, rollout: str) -> dict[str, Any]:
    """Wait for a rollout's end and return it."""
    world.ctl.run("rollout", "watch", rollout, "--timeout", f"{ROLLOUT_S:.0f}s", expect=(0, 3))
    shown: dict[str, Any] = world.ctl.json("rollout", "show", rollout)
    return shown


def build_lines(builds: list[dict[str, Any]]) -> str:
    """Builds for the story, one line each, a shared compile once."""
    lines: dict[str, str] = {}
    for item in builds:
        figures = item["figures"] or {}
        agreement = figures.get("agreement_pct")
        text = f"{item['variant']:<6} {item['recipe']:<17} {item['state']}"
        if item["size_bytes"]:
            text += (
                f"  {item['size_bytes'] / 1e6:.1f} MB (source"
                f" {item['source_size_bytes'] / 1e6:.1f})"
            )
        if agreement:
            text += f"  agrees {agreement['value']:.1f} % (n={agreement['n']})"
        if figures.get("latency_n"):
            text += f"  p50 {figures['p50_ms']:.1f} ms (eager {figures['eager_p50_ms']:.1f})"
        lines.setdefault(f"{item['variant']}{item['recipe']}", text)
    return "\n".join(lines.values())


def first_version(story: Story, world: World, files: Path, pictures: list[Picture]) -> None:
    """1.0.0: push, build, roll out in waves."""
    story.begin("1 build and roll out", "1.0.0 becomes INT8 builds and goes out in waves")
    push(world, files, "1.0.0")
    builds = build(world, "1.0.0", wait=True, expect=(0,))
    story.say(build_lines(builds))
    int8 = [b for b in builds if b["recipe"] == "onnxruntime-int8" and b["state"] == "passed"]
    story.need(
        "INT8 builds of both variants passed for both profiles", len(int8) == 4, f"{len(int8)} of 4"
    )
    smaller = max((b["size_bytes"] / b["source_size_bytes"] for b in int8), default=1.0)
    story.claim(
        "INT8 is less than a third of the source", smaller < 1 / 3, f"at most {smaller:.0%}"
    )
    world.heavy_ms = max(b["figures"]["p50_ms"] for b in int8 if b["variant"] == "heavy")
    apply_policies(world, queue_ms=queue_threshold_ms(world.heavy_ms))
    rollout = start_rollout(world, "1.0.0")
    story.say(f"rollout {rollout}: 6 devices in 3 waves; cameras start as devices get a model")
    world.open_cameras(pictures)
    # The next versions are compiled while this one goes out.
    push(world, files, "1.1.0")
    build(world, "1.1.0", wait=False, expect=(0,))
    push(world, files, "1.2.0")
    build(world, "1.2.0", "--recipe", "onnxruntime-fp32", wait=False, expect=(0,))
    shown = watch(world, rollout)
    _claim_succeeded(story, world, shown, "1.0.0")


def _claim_succeeded(story: Story, world: World, shown: dict[str, Any], version: str) -> None:
    verdicts = [wave["verdict"] for wave in shown["waves"]]
    story.need(
        f"{version} is committed on all devices, wave by wave",
        shown["phase"] == "SUCCEEDED"
        and set(verdicts) == {"PASSED"}
        and running(world, version) == 6,
        f"{shown['phase']}, waves {', '.join(verdicts)}, {running(world, version)} of 6 run it",
    )


def running(world: World, version: str) -> int:
    """On how many devices this version is what answers the camera."""
    newest = [answers[-1] for name in world.agents if (answers := world.answers(name))]
    return sum(answer.version == version for answer in newest)


def ladder(story: Story, world: World, pictures: list[Picture]) -> None:
    """Heat, load and network in turn: each steps down and back."""
    story.begin("2 pressure", "heat, load and a cut link: a lighter rung, then back")
    failed_before = failures(world)
    changes = {
        "heat": _heat(story, world),
        "load": _load(story, world, pictures),
        "network": _network(story, world),
    }
    story.figures["rung_changes"] = changes
    story.claim(
        "no request failed by a step down or back",
        failures(world) == failed_before,
        f"{failures(world) - failed_before} failed",
    )


def _rung(world: World, name: str) -> str:
    answers = world.answers(name)
    return answers[-1].rung if answers else ""


def _step(
    story: Story,
    world: World,
    name: str,
    cause: str,
    down_to: str,
    back_to: str,
    press: Any,
    release: Any,
) -> int:
    """Press until the device steps down, release until it is back; returns the rung changes."""
    wait_until(lambda: _rung(world, name) == back_to, RUNG_S, f"{name} on rung {back_to}")
    before = len(world.rung_events(name))
    pressed_at = monotonic()
    press()
    # The event, not the camera: a cut link is answered locally at once, rung change or not.
    wait_until(
        lambda: any(e["details"]["to"] == down_to for e in world.rung_events(name)[before:]),
        RUNG_S,
        f"{name} to step down for {cause}",
        every_s=0.3,
    )
    down_s = monotonic() - pressed_at
    release()
    released_at = monotonic()
    wait_until(lambda: _rung(world, name) == back_to, RUNG_S, f"{name} to step back to {back_to}")
    back_s = monotonic() - released_at

    def both_events() -> list[dict[str, Any]]:
        new = world.rung_events(name)[before:]
        return new if len(new) > 1 else []

    new = wait_until(both_events, RUNG_S, f"the events of {name}", every_s=0.5)
    story.say(
        "\n".join(
            f"{name}: {e['details']['from']} → {e['details']['to']}: {e['reason']}" for e in new
        )
    )
    causes = [e["details"]["cause"] for e in new]
    story.claim(
        f"{cause}: {name} steps {back_to} → {down_to} and back, with its reason as an event",
        cause in causes and "recovered" in causes,
        f"down after {down_s:.1f} s, back {back_s:.1f} s after the pressure ended; {len(new)}"
        " changes",
    )
    return len(new)


def _heat(story: Story, world: World) -> int:
    root = world.agents[HEAT_DEVICE].host_root
    assert root is not None
    story.say(f"heat: the thermal zone of {HEAT_DEVICE} (simulated host) reads 92 °C")
    return _step(
        story, world, HEAT_DEVICE, "temperature", "light", "heavy",
        lambda: set_temperature(root, 92.0), lambda: set_temperature(root, 45.0),
    )  # fmt: skip


def _load(story: Story, world: World, pictures: list[Picture]) -> int:
    burst = burst_for(world.heavy_ms)
    story.say(
        f"load: {burst.cameras} more cameras on {LOAD_DEVICE} fire at once, {burst.pictures}"
        f" pictures in a request, every {burst.every_s:g} s"
    )
    return _step(
        story, world, LOAD_DEVICE, "load", "light", "heavy",
        lambda: world.add_bursts(LOAD_DEVICE, pictures, burst),
        lambda: world.drop_load(LOAD_DEVICE),
    )  # fmt: skip


def _network(story: Story, world: World) -> int:
    assert world.proxy is not None
    story.say(f"network: {EDGE_CLIENT} lets an edge server answer; its link is cut")
    return _step(
        story, world, EDGE_CLIENT, "network", "heavy", "edge", world.proxy.cut, world.proxy.restore
    )  # fmt: skip


def failures(world: World) -> int:
    """Requests that failed so far."""
    return sum(not answer.ok for answer in world.all_answers())
