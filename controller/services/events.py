"""Reads the log of what happened; nobody writes through here.

A filter that can never match because a name is wrong is an error, not an empty answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.domain.event import KINDS
from controller.errors import NotFoundError
from controller.services.context import Ctx, Deps
from controller.services.suggestions import suggest_names
from controller.store import devices, events, rollouts
from controller.store.events import EventRow
from controller.store.models import list_model_names

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
    """Ascending: the newest `limit` that match, or with `after` the first behind that number.

    NotFoundError for a device, rollout, model or kind that does not exist.
    """
    check_filter(deps, ctx, wanted)
    return _read(deps, ctx, wanted, min(limit, LIMIT_MAX) if limit > 0 else 100, after, after == 0)


def check_filter(deps: Deps, ctx: Ctx, wanted: EventFilter) -> None:
    """NotFoundError for a name of the filter that does not exist; it says what was meant."""
    with deps.store.read() as conn:
        if wanted.device_id:
            device = devices.get_device(conn, wanted.device_id)
            if device is None or device.project != ctx.project:
                known = [one.device_id for one in devices.list_devices(conn, ctx.project)]
                raise _unknown("device", wanted.device_id, known)
        if wanted.rollout_id and not rollouts.get_rollout(conn, ctx.project, wanted.rollout_id):
            rows = rollouts.list_rollouts(conn, ctx.project, limit=50)
            raise _unknown("rollout", wanted.rollout_id, [one.rollout_id for one in rows])
        names = list_model_names(conn, ctx.project) if wanted.model else []
        if wanted.model and wanted.model not in names:
            raise _unknown("model", wanted.model, names)
        for kind in wanted.kinds:
            if kind not in KINDS and not events.has_kind(conn, ctx.project, kind):
                raise _unknown("kind of event", kind, sorted(KINDS))


def _unknown(what: str, name: str, known: Sequence[str]) -> NotFoundError:
    return NotFoundError(
        f"there is no {what} {name}", *suggest_names(name, known, f"there is no {what} yet")
    )


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
