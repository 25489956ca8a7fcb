"""The demo's second half: a better version, a bad one that returns, a killed controller."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from examples.demo.steps import (
    RUNG_S,
    SLOW_S,
    _claim_succeeded,
    build,
    build_lines,
    failures,
    push,
    running,
    start_rollout,
    wait_built,
    watch,
)
from examples.demo.story import Story
from examples.demo.world import MODEL, REAL, World
from examples.fleet.camera import Answer, Picture
from examples.fleet.clock import monotonic, utc_now, wait_until
from examples.fleet.processes import process_gone

OPEN = ("OFFERED", "DOWNLOADING", "VERIFIED", "STAGED", "ACTIVATED", "PROBATION")


def better_version(story: Story, world: World, files: Path, pictures: list[Picture]) -> None:
    """1.1.0 goes out while the cameras send twice as much on one device."""
    story.begin("3 better version", "1.1.0 goes out under load")
    facts = json.loads((files / "facts.json").read_text(encoding="utf-8"))["better"]
    story.claim(
        f"1.1.0 has a lower {facts['figure']} than 1.0.0 (six photos, seen before it was chosen)",
        facts["better"],
        f"{facts['old']:.3f} → {facts['new']:.3f} (n={facts['n']})",
    )
    story.say(build_lines(wait_built(world, "1.1.0")))
    failed_before = failures(world)
    world.add_load(REAL[0], pictures, 1)
    shown = watch(world, start_rollout(world, "1.1.0"))
    world.drop_load(REAL[0])
    _claim_succeeded(story, world, shown, "1.1.0")
    failed = failures(world) - failed_before
    story.claim("no request failed while every device swapped", failed == 0, f"{failed} failed")


def bad_version(story: Story, world: World) -> None:
    """1.2.0 is pushed past the gate and caught by its canary."""
    story.begin("4 bad version", "1.2.0 is too slow; somebody overrides the gate")
    builds = wait_built(world, "1.2.0")
    story.say(build_lines(builds))
    refused = [b for b in builds if b["state"] == "refused"]
    story.need(
        "the gate refuses 1.2.0 by itself",
        bool(refused),
        refused[0]["reason"]
        if refused
        else "; ".join(sorted({f"{b['variant']} {b['state']}: {b['reason']}" for b in builds})),
    )
    for profile in sorted({b["profile"] for b in refused}):
        world.ctl.run(
            "build", "override", f"{MODEL}:1.2.0", "--profile", profile,
            "--reason", "demo: we want to see the canary catch it",
        )  # fmt: skip
    failed_before = failures(world)
    started_at = monotonic()
    rollout = start_rollout(world, "1.2.0")
    shown = watch(world, rollout)
    wait_until(lambda: running(world, "1.1.0") == 6, RUNG_S, "all devices back on 1.1.0")
    story.say(shown["phase_reason"])
    slow = {
        name: [a for a in world.answers(name, started_at) if a.version == "1.2.0"]
        for name in world.agents
    }
    saw = sorted(name for name, answers in slow.items() if answers)
    story.figures["devices_exposed_bad"] = len(saw)
    story.claim(
        "the rollout failed and returned what it touched",
        shown["phase"] == "ROLLED_BACK" and running(world, "1.1.0") == 6,
        f"{shown['phase']}, {running(world, '1.1.0')} of 6 on 1.1.0",
    )
    story.claim(
        "five devices never saw it",
        len(saw) == 1,
        f"{', '.join(saw)} saw it, exposed {shown['exposed']} of {shown['devices']}",
    )
    if saw:
        _claim_canary(story, world, rollout, saw[0], slow[saw[0]])
    failed = failures(world) - failed_before
    story.claim("no request failed", failed == 0, f"{failed} failed")


def _assignments(world: World, rollout: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.ctl.json("rollout", "explain", rollout)["assignments"]
    return found


def _claim_canary(
    story: Story, world: World, rollout: str, canary: str, on_bad: list[Answer]
) -> None:
    story.claim(
        "the canary is back before its sixth inference",
        len(on_bad) <= 5,
        f"{canary}: {len(on_bad)} answers by 1.2.0: "
        + " ".join(f"{a.took_s * 1000:.0f}" for a in on_bad)
        + " ms",
    )
    slow = next((a for a in on_bad if a.took_s > SLOW_S), on_bad[0])
    after = next(a for a in world.answers(canary, slow.sent_at) if a.version == "1.1.0" and a.ok)
    back_s = after.sent_at - slow.sent_at
    slow_at = utc_now() - timedelta(seconds=monotonic() - slow.sent_at)
    halt_s = (_halted_at(world, rollout) - slow_at).total_seconds()
    story.figures["first_slow_to_device_rollback_s"] = round(back_s, 3)
    story.figures["first_slow_to_fleet_halt_s"] = round(halt_s, 3)
    story.say(
        f"from the first slow request: {back_s:.2f} s until {canary} asked 1.1.0 again, "
        f"{halt_s:.2f} s until the fleet halted"
    )


def _halted_at(world: World, rollout: str) -> datetime:
    events = world.ctl.items("event", "list", "--rollout", rollout, "--kind", "rollout_phase")
    for event in events:
        if event["details"].get("to") in ("ROLLING_BACK", "ROLLED_BACK", "FAILED"):
            return datetime.fromisoformat(event["at"].replace("Z", "+00:00"))
    raise AssertionError(f"{rollout} has no event of its halt")


def killed_controller(story: Story, world: World, files: Path) -> None:
    """1.3.0 (1.1.0 with corrected labels) goes out; the controller is killed in the middle."""
    story.begin("5 killed controller", "kill -9 in the middle of a rollout, then a restart")
    push(world, files, "1.3.0", labels="labels-1.3.0.txt")
    builds = build(world, "1.3.0", wait=True, expect=(0,))
    cached = all(b["cached"] for b in builds if b["state"] == "passed")
    story.claim(
        "1.3.0 has the weights of 1.1.0: nothing is compiled twice",
        cached,
        f"{len(builds)} builds cached",
    )
    failed_before = failures(world)
    rollout = start_rollout(world, "1.3.0")

    def in_the_middle() -> bool:
        assignments = _assignments(world, rollout)
        committed = sum(a["state"] == "COMMITTED" for a in assignments)
        return committed >= 1 and any(a["state"] in OPEN for a in assignments)

    wait_until(in_the_middle, RUNG_S, "a second wave in flight", every_s=0.2)
    pid = world.controller.kill_hard()
    story.say(f"controller {pid} killed; devices serve on")
    wait_until(lambda: process_gone(pid), 10, "the controller's end")
    world.controller.start()
    story.say("controller started again")
    shown = watch(world, rollout)
    _claim_succeeded(story, world, shown, "1.3.0")
    story.figures["controller_restarts"] = world.controller.starts - 1
    failed = failures(world) - failed_before
    story.claim("no request failed while the controller was away", failed == 0, f"{failed} failed")


def build_figures(world: World) -> list[dict[str, Any]]:
    """Every distinct build of the demo, for the JSON file."""
    rows: dict[str, dict[str, Any]] = {}
    for version in ("1.0.0", "1.1.0", "1.2.0", "1.3.0"):
        for item in world.ctl.items("build", "list", f"{MODEL}:{version}"):
            figures = item["figures"]
            if not item["digest"] or not figures or item["digest"] in rows:
                continue
            agreement = figures["agreement_pct"] or {}
            rows[item["digest"]] = {
                "version": version,
                "variant": item["variant"],
                "recipe": item["recipe"],
                "size_bytes": item["size_bytes"],
                "source_size_bytes": item["source_size_bytes"],
                "agreement_pct": agreement.get("value"),
                "n": agreement.get("n"),
                "p50_ms": figures["p50_ms"],
                "eager_p50_ms": figures["eager_p50_ms"],
            }
    return list(rows.values())
