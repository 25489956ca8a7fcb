"""``fleetctl build tune``: have builds measured on devices, see the ladder, choose it; ``engines``.

Measures nothing itself and changes no ladder unasked.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from controller.cli import units
from controller.cli.problem import CliError
from controller.cli.session import CLOCK, Session, common, parse_ref
from lighterman.v1 import fleet_pb2

F = TypeVar("F", bound=Callable[..., Any])

POLL_S = 0.5
ENDED = ("done", "cancelled", "expired", "none")


def _verbs(function: F) -> F:
    """What to do; without any: measure."""
    options = [
        click.option("--apply", "verb", flag_value="apply", help="Make the proposal the ladder."),
        click.option(
            "--reset", "verb", flag_value="reset", help="Back to the fastest of each variant."
        ),
        click.option("--cancel", "verb", flag_value="cancel", help="End what is being measured."),
        click.option("--show", "verb", flag_value="show", help="Ask no device: what is known."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _how(function: F) -> F:
    """On which devices, and how long."""
    options = [
        click.option("--on", "selector", default="", metavar="SELECTOR", help="On which of them."),
        click.option("--devices", type=int, default=0, help="At most so many; 0: three."),
        click.option("--soak", type=units.DURATION, default="20s", help="Load before timing."),
        click.option("--measure", type=units.DURATION, default="30s", help="Timed for so long."),
        click.option("--again", is_flag=True, help="Also what they measured already."),
        click.option("--wait", is_flag=True, help="Wait, with progress, until they are done."),
        click.option("--timeout", type=units.DURATION, default="1h", help="Longest, as in 30m."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command("tune")
@click.argument("ref", metavar="NAME:VERSION")
@click.option("--profile", required=True, help="The profile whose ladder is looked for.")
@_how
@_verbs
@common
def tune(session: Session, ref: str, profile: str, verb: str | None, wait: bool, **how: Any) -> int:
    """Measure the builds of a version on idle devices of a profile, and make its ladder of that.

    Serving comes first: a device measures only while nobody asks it anything. Without a device of
    the profile the figures are those of the build host, and it says so.
    """
    name, version = parse_ref(ref)
    names = fleet_pb2.TuningRequest(model=name, version=version, profile=profile)
    match verb:
        case "reset":
            _show(session, session.stub.ApplyLadder(_ladder(names, reset=True), timeout=30))
            return 0
        case "cancel":
            _show(session, session.stub.CancelTuning(names, timeout=30))
            return 0
        case "show":
            found = session.stub.GetTuning(names, timeout=30)
            _show(session, found)
            return _code(found)
        case "apply" if not (wait or how["selector"] or how["again"]):
            found = session.stub.GetTuning(names, timeout=30)  # what was shown, unmeasured anew
        case _:
            found = session.stub.TuneBuild(_request(names, how), timeout=30)
    notes = list(found.notes)
    if wait or verb == "apply":
        found = _wait(session, names, found, how["timeout"])
    if verb == "apply":
        found = session.stub.ApplyLadder(_ladder(found), timeout=30)
    _show(session, found, notes)
    if _asks(session, found) and click.confirm(f"make this the ladder of {profile}?"):
        session.stub.ApplyLadder(_ladder(found), timeout=30)
        session.say(f"{ref} has this ladder on {profile} from the next rollout on")
    return _code(found) if wait or verb else 0


def _request(names: fleet_pb2.TuningRequest, how: Mapping[str, Any]) -> fleet_pb2.TuneBuildRequest:
    return fleet_pb2.TuneBuildRequest(
        model=names.model,
        version=names.version,
        profile=names.profile,
        selector=how["selector"],
        devices=how["devices"],
        soak_s=how["soak"],
        measure_s=how["measure"],
        again=how["again"],
        expires_s=how["timeout"],
    )


def _ladder(
    of: fleet_pb2.TuningRequest | fleet_pb2.Tuning, *, reset: bool = False
) -> fleet_pb2.ApplyLadderRequest:
    """The proposal as it was shown, so that no other one is chosen; or none."""
    shown = [] if isinstance(of, fleet_pb2.TuningRequest) else of.candidates
    return fleet_pb2.ApplyLadderRequest(
        model=of.model,
        version=of.version,
        profile=of.profile,
        build_ids=[one.build_id for one in shown if one.rung],
        reset=reset,
    )


def _code(found: fleet_pb2.Tuning) -> int:
    return 0 if any(one.rung for one in found.candidates) and found.state != "expired" else 1


def _asks(session: Session, found: fleet_pb2.Tuning) -> bool:
    """Whether somebody is here to say yes to a ladder that is not the profile's yet."""
    ready = found.state in ENDED and not found.applied
    there = sys.stdin.isatty() and session.out.is_terminal
    return ready and there and not session.machine and any(one.rung for one in found.candidates)


def _wait(
    session: Session, names: fleet_pb2.TuningRequest, found: fleet_pb2.Tuning, timeout_s: float
) -> fleet_pb2.Tuning:
    deadline = CLOCK.monotonic() + timeout_s
    said: set[str] = set()
    while True:
        for one in found.devices:
            text = f"{one.device_id}  {one.done} of {one.of} builds measured"
            text += f"  waits: {one.note}" if one.note and one.state != "done" else ""
            if text not in said:
                said.add(text)
                session.say(text)
        if found.state in ENDED:
            return found
        if CLOCK.monotonic() > deadline:
            ref = f"{names.model}:{names.version} --profile {names.profile}"
            raise CliError(
                f"the devices are not done after {units.duration(timeout_s)}\n"
                f"they go on; look again: fleetctl build tune {ref} --show"
            )
        time.sleep(POLL_S)
        found = session.stub.GetTuning(names, timeout=30)


def _show(session: Session, found: fleet_pb2.Tuning, notes: list[str] | None = None) -> None:
    name = found.tuning_id or f"{found.model}:{found.version}"
    session.show("tuning", found, name, lambda: _render(session, found, notes or []))


def _render(session: Session, found: fleet_pb2.Tuning, notes: list[str]) -> None:
    for line in notes:
        session.say(line)
    session.say(
        f"{found.model}:{found.version}  {found.profile}  {found.state}"
        f"  measured on {found.measured_on}"
    )
    for device in found.devices:
        if device.state != "done":
            waits = f", waits: {device.note}" if device.note else ""
            session.say(f"{device.device_id}  {device.done} of {device.of} builds{waits}")
    columns = ["rung", "variant", "recipe", ">size", ">memory", ">p50 ms", ">p95 ms", ">mJ"]
    session.table([*columns, ">quality %", ">devices"], [_row(one) for one in found.candidates])
    for one in found.candidates:
        if not one.rung:
            session.say(f"{one.variant}  {one.recipe}: {one.reason}")
    session.say(_about_the_ladder(found))


def _row(one: fleet_pb2.TuningCandidate) -> list[str]:
    known, unknown = bool(one.p95_ms), units.UNKNOWN
    return [
        one.rung or unknown,
        one.variant,
        one.recipe,
        units.size(one.size_bytes),
        units.size(one.rss_bytes) if one.rss_bytes else unknown,
        units.ms(one.p50_ms, 3) if known else unknown,
        units.ms(one.p95_ms, 3) if known else unknown,
        f"{one.energy_mj:.3g}" if one.HasField("energy_mj") else unknown,
        f"{one.quality_pct:.1f}" if one.HasField("quality_pct") else unknown,
        f"{one.devices}" if one.devices else unknown,
    ]


def _about_the_ladder(found: fleet_pb2.Tuning) -> str:
    ref = f"{found.model}:{found.version} --profile {found.profile}"
    if found.applied:
        return f"this is the ladder of {found.profile}, from the next rollout on"
    now = " > ".join(found.ladder) if found.ladder else "the fastest build of each variant"
    if not any(one.rung for one in found.candidates):
        return f"no build keeps to the budget; the ladder of {found.profile} stays: {now}"
    return (
        f"the ladder of {found.profile} is {now}; to choose this one:\n"
        f"  fleetctl build tune {ref} --apply"
    )


@click.command("engines")
@common
def engines(session: Session) -> None:
    """List what builders compiled for devices of their kind."""
    found = list(session.stub.ListEngines(fleet_pb2.ListEnginesRequest(), timeout=30).engines)

    def render() -> None:
        columns = ["engine", "build", "runtime", "by", ">size", "published"]
        session.table(columns, [_engine_row(session, one) for one in found])

    session.show_list(
        "engine", found, lambda one: str(one.digest), render,
        "no engine is shared; make a device compile for all: fleetctl device grant DEVICE builder",
    )  # fmt: skip


def _engine_row(session: Session, one: fleet_pb2.SharedEngine) -> list[str]:
    key = json.loads(one.key_json)
    return [
        one.digest[:19],
        one.build_digest[:19],
        f"{key.get('runtime', '')} {key.get('version', '')}",
        one.device_id,
        units.size(one.length),
        units.ago(one.published_at, session.now()),
    ]
