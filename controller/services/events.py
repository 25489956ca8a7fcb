"""Reads the log of what happened; nobody writes through here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.services.context import Ctx, Deps
from controller.store import events
from controller.store.events import EventRow

LIMIT_MAX = 10_000

EventView = EventRow


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; empty fields do not filter."""

    device_id: str = ""
    rollout_id: str = ""
    model: str = ""
    kinds: Sequence[str] = ()
    since: datetime | None = None


def list_events(
    deps: Deps, ctx: Ctx, wanted: EventFilter, *, limit: int = 100, after: int = 0
) -> list[EventView]:
    """Ascending: the newest `limit` that match, or with `after` the first behind that number."""
    return _read(deps, ctx, wanted, min(limit, LIMIT_MAX) if limit > 0 else 100, after, after == 0)


def events_behind(deps: Deps, ctx: Ctx, wanted: EventFilter, after: int) -> list[EventView]:
    """The next events behind a number, for those who follow."""
    return _read(deps, ctx, wanted, 500, after, False)


def last_number(deps: Deps) -> int:
    """Number of the newest event, where a tail may start."""
    with deps.store.read() as conn:
        return events.last_number(conn)


def _read(
    deps: Deps, ctx: Ctx, wanted: EventFilter, limit: int, after: int, newest: bool
) -> list[EventView]:
    with deps.store.read() as conn:
        return events.list_events(
            conn,
            ctx.project,
            device_id=wanted.device_id or None,
            rollout_id=wanted.rollout_id or None,
            model=wanted.model or None,
            kinds=wanted.kinds,
            since=wanted.since,
            after=after,
            limit=limit,
            newest=newest,
        )
