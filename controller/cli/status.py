"""``fleetctl status``: one screen. Is anything wrong, and what is running?"""

import click

from controller.cli import units
from controller.cli.rollout_watch import phase_name
from controller.cli.session import Session, common
from lighterman.v1 import fleet_pb2


@click.command()
@common
def status(session: Session) -> int:
    """Is anything wrong, and what is running? Exit 1 while something is wrong."""
    answer = session.stub.GetStatus(fleet_pb2.GetStatusRequest(), timeout=30)
    session.show("status", answer, session.controller, lambda: _show(session, answer))
    return 1 if answer.problems else 0


def _show(session: Session, answer: fleet_pb2.GetStatusResponse) -> None:
    if answer.problems:
        for problem in answer.problems:
            session.say(f"problem    {problem}")
    else:
        session.say("nothing is wrong")
    up = units.ago(answer.started_at, session.now()).removesuffix(" ago")
    broker = "connected" if answer.broker_ok else "away"
    session.say(
        f"controller {session.controller}  {answer.controller_version}  up {up}  "
        f"broker {broker}  workers {answer.worker_count}"
    )
    session.say(f"devices    {units.counts(dict(answer.devices)) or 'none enrolled'}")
    builds = units.counts(dict(answer.builds))
    if builds:
        session.say(f"builds     {builds}")
    for item in answer.running:
        session.say(f"runs       {item.model}:{item.version} on {item.devices}")
    for rollout in answer.rollouts:
        session.say(
            f"rollout    {rollout.rollout_id}  {rollout.spec.model}:{rollout.spec.version} "
            f" {phase_name(rollout)}  wave {rollout.current_wave} of {len(rollout.waves)}  exposed"
            f" {rollout.exposed} of {rollout.devices}"
            + (f"  {rollout.phase_reason}" if rollout.phase_reason else "")
        )
