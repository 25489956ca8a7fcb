"""What telemetry and presence make of a device's status: the health document of the feed.

Windows are merged as histograms; nothing here averages a quantile.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from controller.domain.histogram import Histogram
from controller.services.context import Ctx, Deps
from controller.services.devices import select_ids
from controller.services.samples import StatusUpdate
from controller.services.totals import OTHER, Place, Series
from controller.store import devices, events, labels, metrics
from controller.store.events import NewEvent
from controller.store.samples import SampleRow

SCHEMA_VERSION = 1
SITE = "site"  # the label that metrics tell
PLACE_LEAST, PLACE_MOST = timedelta(seconds=5), timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class RungSample:
    """One rung's service times in one window."""

    model: str
    version: str
    rung: str
    build_digest: str
    service: Histogram
    errors: int
    non_finite: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the device says of one model."""

    model: str
    version: str
    rung: str
    phase: str
    rung_reason: str


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One message of a device. Temperatures in °C, shares in percent; None is unknown."""

    samples: Sequence[RungSample] = ()
    models: Sequence[ModelStatus] = ()
    temperature_c: float | None = None
    memory_used_pct: float | None = None
    cpu_used_pct: float | None = None
    applied_generation: int = 0


@dataclass(slots=True)
class Seen:
    """What the door remembers of a device between two messages."""

    profile: str
    project: str
    status: dict[str, Any] = field(default_factory=dict)
    boot_id: str = ""


def find_seen(deps: Deps, device_id: str) -> Seen | None:
    """A device's stored facts, or None when it may not speak (unknown, retired, quarantined)."""
    return find_all_seen(deps, [device_id]).get(device_id)


def find_all_seen(deps: Deps, device_ids: Collection[str]) -> dict[str, Seen]:
    """`find_seen` of many at once; those that may not speak are absent."""
    with deps.store.read() as conn:
        rows = devices.find_devices(conn, device_ids)
    return {
        row.device_id: Seen(row.profile or "", row.project, row.status or {}, row.boot_id or "")
        for row in rows
        if row.state in ("ACTIVE", "PENDING")
    }


def take_telemetry(
    deps: Deps, now: datetime, device_id: str, seen: Seen, telemetry: Telemetry
) -> dict[str, Any]:
    """Put a message into the window and return the device's health document."""
    minute_at = now.replace(second=0, microsecond=0)
    for one in telemetry.samples:
        if one.service.count or one.errors or one.non_finite:
            deps.samples.add(
                SampleRow(
                    device_id=device_id,
                    model=one.model,
                    version=one.version,
                    rung=one.rung,
                    minute_at=minute_at,
                    build_digest=one.build_digest,
                    histogram=one.service,
                    errors=one.errors,
                    non_finite=one.non_finite,
                    last_at=now,
                )
            )
            series = _series(_place(deps, now, device_id, one), seen.profile, one)
            deps.totals.add(series, one.service, one.errors, one.non_finite)
    status = health_document(device_id, seen.profile, now, True, telemetry)
    seen.status = status
    deps.samples.note(StatusUpdate(device_id, now, status, telemetry.applied_generation))
    return status


def _place(deps: Deps, now: datetime, device_id: str, one: RungSample) -> Place:
    """Looked up once a minute, and sooner for a version that is new: each look costs reads."""
    known = deps.totals.places.get(device_id)
    if known is not None:
        age, new = now - known.looked_at, (one.model, one.version) not in known.versions
        if age < (PLACE_LEAST if new else PLACE_MOST):
            return known
    _look_up_places(deps, now, [device_id])
    return deps.totals.places[device_id]


def look_ahead(deps: Deps, now: datetime, device_ids: Collection[str]) -> None:
    """Look up at once what the telemetry of these devices would ask for one by one."""
    places = deps.totals.places
    stale = [
        device_id
        for device_id in device_ids
        if (known := places.get(device_id)) is None or now - known.looked_at >= PLACE_LEAST
    ]
    if stale:
        _look_up_places(deps, now, stale)


def _look_up_places(deps: Deps, now: datetime, device_ids: Collection[str]) -> None:
    with deps.store.read() as conn:
        named = labels.labels_of(conn, device_ids)
        versions = metrics.versions_of_devices(conn, device_ids)
    for device_id in device_ids:
        site = named.get(device_id, {}).get(SITE, "")
        deps.totals.places[device_id] = Place(site, versions[device_id], now)


def _series(place: Place, profile: str, one: RungSample) -> Series:
    """A device that names versions it was never given must not make series of them."""
    if (one.model, one.version) not in place.versions:
        return Series(OTHER, OTHER, OTHER, profile, place.site)
    return Series(one.model, one.version, one.rung, profile, place.site)


def health_document(
    device_id: str, profile: str, now: datetime, online: bool, telemetry: Telemetry
) -> dict[str, Any]:
    """The document of ``lighterman/v1/feed/<project>/device/<device>/health``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device_id,
        "profile": profile,
        "at": now.isoformat(timespec="milliseconds"),
        "online": online,
        "temperature_c": telemetry.temperature_c,
        "memory_used_pct": telemetry.memory_used_pct,
        "cpu_used_pct": telemetry.cpu_used_pct,
        "models": [_model(one, telemetry.samples) for one in telemetry.models],
    }


def _model(one: ModelStatus, samples: Sequence[RungSample]) -> dict[str, Any]:
    service, errors = Histogram(), 0
    for sample in samples:
        if (sample.model, sample.version, sample.rung) == (one.model, one.version, one.rung):
            service = service.merge(sample.service)
            errors += sample.errors
    return {
        "model": one.model,
        "version": one.version,
        "rung": one.rung,
        "rung_reason": one.rung_reason,
        "phase": one.phase,
        "p50_ms": _ms(service.quantile(0.50)),
        "p95_ms": _ms(service.quantile(0.95)),
        "inferences": service.count,
        "errors": errors,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 3)


def set_online(deps: Deps, ctx: Ctx, words: Mapping[str, bool]) -> frozenset[str]:
    """Store the presence of devices; returns those for which it changed (each is an event)."""
    changed: set[str] = set()
    told: list[NewEvent] = []
    with deps.store.write() as conn:
        rows = [row for row in devices.find_devices(conn, words) if row.state != "RETIRED"]
        for row in rows:
            online = words[row.device_id]
            if row.online != online:
                changed.add(row.device_id)
                kind = "device_online" if online else "device_offline"
                told.append(
                    NewEvent(row.project, ctx.now, kind, row.device_id, device_id=row.device_id)
                )
        devices.note_presence(
            conn,
            [
                (
                    row.device_id,
                    words[row.device_id],
                    ctx.now if words[row.device_id] else row.last_seen_at,
                    row.status and {**row.status, "online": words[row.device_id]},
                )
                for row in rows
            ],
        )
        events.append_many(conn, told)
    if changed:
        deps.wake()
    return frozenset(changed)


def list_health(deps: Deps) -> list[tuple[str, str, dict[str, Any]]]:
    """(project, device, stored health document) of all devices that have one."""
    with deps.store.read() as conn:
        return devices.list_statuses(conn)


def mark_silent_offline(deps: Deps, ctx: Ctx, before: datetime) -> list[str]:
    """Devices that were online before a restart and did not speak since `before` are offline."""
    with deps.store.write() as conn:
        rows = devices.mark_unseen_offline(conn, before)
        for row in rows:
            events.append(
                conn,
                row.project,
                ctx.now,
                "device_offline",
                ctx.actor,
                device_id=row.device_id,
                reason="not heard of since the controller listens again",
            )
    if rows:
        deps.wake()
    return [row.device_id for row in rows]


def tail_telemetry(
    deps: Deps, ctx: Ctx, selector: str, wait_s: float
) -> Iterator[tuple[str, dict[str, Any]] | None]:
    """(device, health document) as they come; None after `wait_s` without one. Never ends."""
    chosen = None if selector in ("", "all") else select_ids(deps, ctx, selector)
    after = deps.samples.newest()
    while True:
        after, statuses = deps.samples.wait_newer(after, wait_s)
        for status in statuses:
            if chosen is None or status["device"] in chosen:
                yield status["device"], status
        if not statuses:
            yield None
