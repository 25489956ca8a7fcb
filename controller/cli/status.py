"""``fleetctl status``: one screen. Is anything wrong, and what is running?"""

import click

from controller.cli import units
from controller.cli.follow import follow, watch_option
from controller.cli.rollout_watch import phase_name
from controller.cli.session import Session, common
from lighterman.v1 import fleet_pb2

DEVICE_STATES = ("online", "offline", "never_connected", "pending", "quarantined", "retired")
BUILD_STATES = ("queued", "running", "passed", "overridden", "refused", "failed")


@click.command()
@watch_option
@common
def status(session: Session, watch: bool) -> int:
    """Is anything wrong, and what is running? Exit 1 while something is wrong.

    A failed build is named for 7 days, until the same cell passed in a newer version or a newer
    version was brought to devices; a rollout that was rolled back or failed for one day, until a
    newer one of its model succeeded. One that was rolled back is said first, and is no reason for
    exit 1: its devices are back.
    """
    return follow(session, lambda: _status(session)) if watch else _status(session)


def _status(session: Session) -> int:
    answer = session.stub.GetStatus(fleet_pb2.GetStatusRequest(), timeout=30)
    session.show("status", answer, session.controller, lambda: _show(session, answer))
    return 1 if answer.problems else 0


def _show(session: Session, answer: fleet_pb2.GetStatusResponse) -> None:
    if answer.problems:
        for problem in answer.problems:
            session.say(f"problem    {problem}")
    else:
        session.say(_headline(answer))
    up = units.ago(answer.started_at, session.now()).removesuffix(" ago")
    broker = "connected" if answer.broker_ok else "away"
    session.say(
        f"controller {session.controller}  {answer.controller_version}  up {up}  "
        f"broker {broker}  workers {answer.worker_count}"
    )
    states = units.in_order(dict(answer.devices), DEVICE_STATES)
    devices = units.counts({name.replace("_", " "): count for name, count in states.items()})
    session.say(f"devices    {devices or 'none enrolled'}")
    builds = units.counts(units.in_order(dict(answer.builds), BUILD_STATES))
    if builds:
        session.say(f"builds     {builds}")
    for item in answer.running:
        session.say(f"runs       {item.model}:{item.version} on {item.devices}")
    for rollout in answer.rollouts:
        wave = f"  wave {rollout.current_wave} of {len(rollout.waves)}"
        session.say(_rollout_line(answer, rollout, wave))
    for rollout in answer.recent_rollouts:
        ended = f"  {units.ago(rollout.finished_at, session.now())}"
        session.say(_rollout_line(answer, rollout, ended))


def _headline(answer: fleet_pb2.GetStatusResponse) -> str:
    """Nothing is wrong, unless a version did not hold: people brought it and have to know."""
    if not answer.recent_rollouts:
        return "nothing is wrong"
    newest = answer.recent_rollouts[0].rollout_id
    named = ", ".join(
        f"{one.spec.model}:{one.spec.version} {phase_name(one).replace('_', ' ').lower()}"
        for one in answer.recent_rollouts
    )
    return f"{named}; nothing else is wrong; `fleetctl rollout explain {newest}` says why"


def _rollout_line(
    answer: fleet_pb2.GetStatusResponse, rollout: fleet_pb2.Rollout, when: str
) -> str:
    """One rollout; its reason only where no problem above has said it."""
    reason = rollout.phase_reason
    shown = reason.removeprefix(f"wave {rollout.current_wave} of {len(rollout.waves)}: ")
    said = any(reason in problem for problem in answer.problems)
    return (
        f"rollout    {rollout.rollout_id}  {rollout.spec.model}:{rollout.spec.version} "
        f" {phase_name(rollout)}{when}  exposed {rollout.exposed} of {rollout.devices}"
        + (f"  {shown}" if reason and not said else "")
    )
