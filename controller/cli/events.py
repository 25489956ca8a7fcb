"""``fleetctl event``: what happened, gapless and in order."""

from datetime import timedelta
from typing import Any

import click

from controller.cli import follow, records, units
from controller.cli.printable import one_line, printable_json
from controller.cli.session import Session, common
from lighterman.v1 import fleet_pb2

# Without these a line does not say which build it speaks of.
WHICH = ("profile", "variant", "recipe", "build")


@click.group()
def event() -> None:
    """Events: what happened, to what, why."""


def _filters(function: Any) -> Any:
    options = [
        click.option("--device", default="", help="Of one device."),
        click.option("--rollout", default="", help="Of one rollout."),
        click.option("--model", default="", help="Of one model."),
        click.option("--kind", "kinds", multiple=True, help="Of these kinds, e.g. rung_changed."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def event_line(item: fleet_pb2.Event, wide: bool = False) -> str:
    """One event as a line; with ``wide`` also its number and details."""
    what = f"{item.model}:{item.version}" if item.version else item.model
    where = item.device_id or item.rollout_id
    who = f"by {item.actor}" if item.actor not in (item.device_id, "controller") else ""
    rollout = f"({item.rollout_id})" if item.rollout_id and item.rollout_id != where else ""
    details = [f"{name}={item.details[name]}" for name in sorted(item.details)]
    which = [f"{name}={item.details[name]}" for name in WHICH if name in item.details]
    # What has no reason speaks by its details.
    tail = [item.reason, *(details if wide or not item.reason else which), who, rollout]
    front = [f"{item.number:>6}"] if wide else []
    front += [units.local(item.at), f"{where or units.UNKNOWN:<10}", f"{item.kind:<22}", what]
    # One event is one line, whatever a device wrote into its reason.
    return one_line("  ".join(part for part in (*front, *tail) if part))


@event.command("list")
@_filters
@click.option("--since", type=units.DURATION, default=None, help="Not older than, e.g. 2h.")
@click.option("--limit", type=int, default=100, show_default=True)
@common
def list_events(
    session: Session,
    device: str,
    rollout: str,
    model: str,
    kinds: tuple[str, ...],
    since: float | None,
    limit: int,
) -> None:
    """List the newest events, oldest first."""
    request = fleet_pb2.ListEventsRequest(
        device_id=device, rollout_id=rollout, model=model, kinds=kinds, limit=limit
    )
    if since is not None:
        request.since.FromDatetime(session.now() - timedelta(seconds=since))
    items = list(session.stub.ListEvents(request, timeout=30).events)

    def render() -> None:
        for item in items:
            session.say(event_line(item, session.output == "wide"))

    session.show_list("event", items, lambda item: str(item.number), render, "no event matches")


@event.command("tail")
@_filters
@common
def tail(session: Session, device: str, rollout: str, model: str, kinds: tuple[str, ...]) -> int:
    """Follow events as they are stored, until interrupted."""
    request = fleet_pb2.ListEventsRequest(
        device_id=device, rollout_id=rollout, model=model, kinds=kinds
    )

    def say(item: fleet_pb2.Event) -> None:
        if session.output == "json":
            import json

            line = printable_json(json.dumps(records.document("event", item)))
            session.out.file.write(line + "\n")
            session.out.file.flush()
        elif session.output == "name":
            session.out.print(str(item.number))
        else:
            line = event_line(item, session.output == "wide")
            session.out.print(units.localise(line, session.now()), markup=False)

    return follow.tail(session, lambda: session.stub.TailEvents(request), say)
