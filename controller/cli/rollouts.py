"""``fleetctl rollout``: plan, start, steer and explain. Decides nothing; the controller does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from controller.cli import units
from controller.cli.devices import show_facts
from controller.cli.follow import follow, watch_option
from controller.cli.forecast import picture as draw
from controller.cli.forecast import read_fleet, show_forecast
from controller.cli.rollout_watch import phase_name, show_rollout, unsaid, watch_rollout
from controller.cli.session import Session, common, parse_ref, yes_option
from lighterman.v1 import fleet_pb2

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def rollout() -> None:
    """Rollouts: bring a version to devices in waves."""


def _spec_options(function: F) -> F:
    options = [
        click.option(
            "--to", "selector", required=True, metavar="SELECTOR", help="Devices, or `all`."
        ),
        click.option(
            "--waves",
            default="1,10%,50%,100%",
            show_default=True,
            help="Cumulative numbers or shares of the selection.",
        ),
        click.option(
            "--soak",
            type=units.DURATION,
            default="10m",
            show_default=True,
            help="How long evidence must arrive before a wave is judged.",
        ),
        click.option(
            "--min-samples",
            type=click.IntRange(min=1),
            default=200,
            show_default=True,
            help="Inferences on the new build per exposed device.",
        ),
        click.option(
            "--policy", default="", help="Default: the one that matches model and device."
        ),
        click.option(
            "--deadline",
            type=units.DURATION,
            default="1h",
            show_default=True,
            help="A wave without enough evidence for so long waits for a person.",
        ),
        click.option(
            "--override",
            "overrides",
            type=click.Choice(["first-wave", "rolled-back", "signature", "missing-rung"]),
            multiple=True,
            help="Overrule a rule: a larger first wave; devices that rolled this version back"
            " before get it again; inputs or outputs differ from what runs; devices get it without"
            " a rung that has no passed build. Needs --reason.",
        ),
        click.option("--reason", default="", help="Why the rule is overruled; kept as an event."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _spec(
    ref: str,
    selector: str,
    waves: str,
    soak: float,
    min_samples: int,
    policy: str,
    deadline: float,
    overrides: tuple[str, ...],
    reason: str,
) -> fleet_pb2.RolloutSpec:
    name, version = parse_ref(ref)
    if overrides and not reason.strip():
        raise click.UsageError("--override needs --reason")
    return fleet_pb2.RolloutSpec(
        model=name,
        version=version,
        selector=selector,
        waves=[entry.strip() for entry in waves.split(",") if entry.strip()],
        soak_s=soak,
        min_samples=min_samples,
        policy=policy,
        deadline_s=deadline,
        override_first_wave_reason=reason if "first-wave" in overrides else "",
        override_rolled_back_reason=reason if "rolled-back" in overrides else "",
        override_signature_reason=reason if "signature" in overrides else "",
        override_missing_rung_reason=reason if "missing-rung" in overrides else "",
    )


def _show_plan(session: Session, spec: fleet_pb2.RolloutSpec, plan: fleet_pb2.RolloutPlan) -> None:
    profiles = ", ".join(f"{name} {count}" for name, count in sorted(plan.profiles.items()))
    session.say(
        f"{units.count_of(plan.devices, 'device')} ({profiles}) · "
        f"{units.count_of(len(plan.waves), 'wave')} · "
        f"at most {units.size(plan.bytes)} to send"
    )
    before = ", ".join(
        f"{version or 'nothing'} on {count}"
        for version, count in sorted(plan.from_versions.items())
    )
    if before:
        session.say(f"{spec.model}: now {before}; then {spec.version}")
    session.table(
        ["wave", ">devices", ">exposed at most"],
        [[f"{w.number} {w.entry}", str(w.devices), str(w.cumulative)] for w in plan.waves],
    )
    if plan.unready:
        session.say(f"{units.count_of(len(plan.unready), 'device')} will not get it:")
        session.table(
            ["device", "profile", "reason"],
            [[u.device_id, u.profile or units.UNKNOWN, u.reason] for u in plan.unready[:20]],
        )
        if len(plan.unready) > 20:
            session.say(f"  and {len(plan.unready) - 20} more")
    for note in plan.notes:
        session.say(f"note: {note}")


@rollout.command("plan")
@click.argument("ref", metavar="NAME:VERSION")
@_spec_options
@click.option("--forecast", is_flag=True, help="Play it: how long, how many bytes, how far.")
@click.option(
    "--fails-on",
    type=click.FloatRange(0.0, 100.0),
    metavar="PCT",
    help="Forecast a version that fails on so many percent of the devices.",
)
@click.option(
    "--fleet",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Forecast over a fleet that this YAML file describes, not over the recorded one.",
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the forecast there, as SVG: waves over time, exposure under its cap.",
)
@click.option("--seed", type=click.IntRange(min=1), default=1, help="Of the forecast.")
@common
def plan(
    session: Session,
    ref: str,
    forecast: bool,
    fails_on: float | None,
    fleet: Path | None,
    picture: Path | None,
    seed: int,
    **options: Any,
) -> None:
    """Show what a rollout would do: devices, waves, bytes, devices without a passed build.

    With --forecast, --fails-on, --fleet or --picture also what it would take.
    """
    spec = _spec(ref, **options)
    answer = fleet_pb2.RolloutPlan() if fleet else session.stub.PlanRollout(spec, timeout=60)
    if forecast or picture or fleet or fails_on is not None:
        request = fleet_pb2.ForecastRequest(spec=spec, fails_on_pct=fails_on or 0.0, seed=seed)
        request.fleet = read_fleet(fleet) if fleet else ""
        answer.forecast.CopyFrom(session.stub.ForecastRollout(request, timeout=120))
    if picture:
        bad = f", failing on {fails_on:g} %" if fails_on else ""
        title = f"{ref} to {answer.forecast.devices:,} devices{bad}"
        picture.write_text(draw(answer.forecast, title), encoding="utf-8")

    def render() -> None:
        if not fleet:
            _show_plan(session, spec, answer)
        if answer.HasField("forecast"):
            show_forecast(session, answer.forecast)

    session.show("rollout_plan", answer, ref, render)


@rollout.command("start")
@click.argument("ref", metavar="NAME:VERSION")
@_spec_options
@yes_option
@click.option("--wait", is_flag=True, help="Watch it to its end; exit 3 if it does not succeed.")
@click.option("--timeout", type=units.DURATION, default="24h", help="Longest wait, as in 30m.")
@common
def start(
    session: Session, ref: str, yes: int | None, wait: bool, timeout: float, **options: Any
) -> int:
    """Start a rollout, after a typed confirmation of the number of devices."""
    spec = _spec(ref, **options)
    answer = session.stub.PlanRollout(spec, timeout=60)
    if yes is None and not session.machine:
        _show_plan(session, spec, answer)
    elif not answer.needs_overrides:  # who confirms unasked still has to learn what the plan warns
        for note in answer.notes:
            session.note(f"note: {note}")
    if answer.needs_overrides:  # nobody is asked to confirm what is refused: 0 never starts
        refused = fleet_pb2.StartRolloutRequest(spec=spec, confirmed_devices=0)
        session.stub.StartRollout(refused, timeout=60)
    session.confirm_count(answer.devices, yes, _sentence(ref, answer))
    request = fleet_pb2.StartRolloutRequest(spec=spec, confirmed_devices=answer.devices)
    started = session.stub.StartRollout(request, timeout=60)
    if not wait:
        session.show(
            "rollout",
            started,
            started.rollout_id,
            lambda: session.say(
                f"rollout {started.rollout_id} started; follow it: fleetctl rollout watch"
                f" {started.rollout_id}"
            ),
        )
        return 0
    session.say(f"rollout {started.rollout_id} started")
    return watch_rollout(session, started.rollout_id, timeout)


def _sentence(ref: str, plan: fleet_pb2.RolloutPlan) -> str:
    text = (
        f"{units.count_of(plan.devices, 'device')} will get {ref} in "
        f"{units.count_of(len(plan.waves), 'wave')}"
    )
    return f"{text}, {len(plan.unready)} of the selected will not" if plan.unready else text


@rollout.command("list")
@click.option("--active", is_flag=True, help="Only those that are not at their end.")
@click.option("--limit", type=int, default=50, show_default=True)
@watch_option
@common
def list_rollouts(session: Session, active: bool, limit: int, watch: bool) -> int:
    """List rollouts, newest first."""
    request = fleet_pb2.ListRolloutsRequest(active_only=active, limit=limit)
    if watch:
        return follow(session, lambda: _list(session, request))
    _list(session, request)
    return 0


def _list(session: Session, request: fleet_pb2.ListRolloutsRequest) -> None:
    items = list(session.stub.ListRollouts(request, timeout=30).rollouts)

    def render() -> None:
        session.table(
            ["rollout", "brings", "to", "phase", "wave", ">exposed", "started", "by"],
            [
                [
                    item.rollout_id,
                    f"{item.spec.model}:{item.spec.version}",
                    item.spec.selector,
                    phase_name(item),
                    f"{item.current_wave} of {len(item.waves)}",
                    f"{item.exposed} of {item.devices}",
                    units.local(item.created_at),
                    item.created_by,
                ]
                for item in items
            ],
        )

    session.show_list("rollout", items, lambda item: str(item.rollout_id), render, "no rollout")


@rollout.command("show")
@click.argument("rollout_id", metavar="ROLLOUT")
@common
def show(session: Session, rollout_id: str) -> None:
    """Show one rollout: waves, states, verdicts."""
    item = session.stub.GetRollout(fleet_pb2.RolloutRequest(rollout_id=rollout_id), timeout=30)
    session.show("rollout", item, rollout_id, lambda: show_rollout(session, item))


@rollout.command("watch")
@click.argument("rollout_id", metavar="ROLLOUT")
@click.option("--timeout", type=units.DURATION, default="24h", help="Longest wait, as in 30m.")
@common
def watch(session: Session, rollout_id: str, timeout: float) -> int:
    """Follow a rollout to its end; exit 3 if it does not succeed or waits for a person."""
    return watch_rollout(session, rollout_id, timeout)


def _set_intent(
    session: Session,
    rollout_id: str,
    intent: fleet_pb2.RolloutIntent.ValueType,
    reason: str,
    said: str,
) -> None:
    request = fleet_pb2.SetIntentRequest(rollout_id=rollout_id, intent=intent, reason=reason)
    item = session.stub.SetIntent(request, timeout=30)
    session.show("rollout", item, rollout_id, lambda: session.say(f"{rollout_id}: {said}"))


_reason = click.option("--reason", default="", help="Why; kept as an event with your name.")


@rollout.command("pause")
@click.argument("rollout_id", metavar="ROLLOUT")
@_reason
@common
def pause(session: Session, rollout_id: str, reason: str) -> None:
    """Offer it to no further device until resumed."""
    said = "will be paused; devices in flight finish, no further one is offered it"
    _set_intent(session, rollout_id, fleet_pb2.ROLLOUT_INTENT_PAUSE, reason, said)


@rollout.command("resume")
@click.argument("rollout_id", metavar="ROLLOUT")
@_reason
@common
def resume(session: Session, rollout_id: str, reason: str) -> None:
    """Go on after a pause."""
    _set_intent(session, rollout_id, fleet_pb2.ROLLOUT_INTENT_RUN, reason, "goes on")


@rollout.command("abort")
@click.argument("rollout_id", metavar="ROLLOUT")
@_reason
@common
def abort(session: Session, rollout_id: str, reason: str) -> None:
    """Stop for good: withdraw it where it is not active yet, leave the rest."""
    said = "is being aborted; not active yet: withdrawn; active: stays"
    _set_intent(session, rollout_id, fleet_pb2.ROLLOUT_INTENT_ABORT, reason, said)


@rollout.command("rollback")
@click.argument("rollout_id", metavar="ROLLOUT")
@_reason
@yes_option
@common
def rollback(session: Session, rollout_id: str, reason: str, yes: int | None) -> None:
    """Return every device that it touched to what it ran before."""
    item = session.stub.GetRollout(fleet_pb2.RolloutRequest(rollout_id=rollout_id), timeout=30)
    session.confirm_count(
        item.exposed,
        yes,
        f"{units.count_of(item.exposed, 'device')} that {rollout_id} touched will be returned",
    )
    said = f"returns {units.count_of(item.exposed, 'device')} to what ran before"
    _set_intent(session, rollout_id, fleet_pb2.ROLLOUT_INTENT_ROLL_BACK, reason, said)


@rollout.command("explain")
@click.argument("rollout_id", metavar="ROLLOUT")
@common
def explain(session: Session, rollout_id: str) -> int:
    """Say why a rollout stands where it stands, with the evidence of each device."""
    answer = session.stub.ExplainRollout(
        fleet_pb2.RolloutRequest(rollout_id=rollout_id), timeout=30
    )

    def render() -> None:
        show_rollout(session, answer.rollout)
        session.say()
        show_facts(session, unsaid(answer.rollout, list(answer.facts)))
        session.say()
        session.table(
            ["device", ">wave", "state", "before", ">inferences", "why"],
            [
                [
                    a.device_id,
                    str(a.wave),
                    a.state,
                    a.previous_version or units.UNKNOWN,
                    f"{a.inferences:,}",
                    a.reason,
                ]
                for a in answer.assignments
            ],
        )

    session.show("rollout_explanation", answer, rollout_id, render)
    return 0
