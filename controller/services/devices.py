"""What operators ask of devices: list, show, label, accept, retire. Facts come from the devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller.domain.device import Capabilities, DeviceState
from controller.domain.selection import Selector, Subject, matches
from controller.errors import InvalidError, NotFoundError, RefusedError
from controller.services.certificates import revoke_name
from controller.services.context import Ctx, Deps
from controller.services.labels import check_label, refuse_versions
from controller.services.selections import nobody_matches, slips
from controller.services.subjects import check_models, load_subjects, read_selector
from controller.services.suggestions import suggest_names
from controller.store import certificates, devices, engines, events, labels
from controller.store.devices import DeviceRow
from controller.store.session import Connection


@dataclass(frozen=True, slots=True)
class DeviceModelView:
    """One model on a device, as the device said last."""

    model: str
    version: str
    rung: str
    rung_reason: str
    phase: str
    previous_version: str


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device with all that is known of it. None is unknown."""

    device_id: str
    profile: str | None
    state: str
    online: bool
    last_seen_at: datetime | None
    labels: Mapping[str, str]
    capabilities: Capabilities
    models: tuple[DeviceModelView, ...]
    desired_generation: int
    applied_generation: int
    temperature_c: float | None
    memory_used_pct: float | None
    cpu_used_pct: float | None
    enrolled_at: datetime
    certificate_expires_at: datetime | None
    retired_at: datetime | None = None  # while it is retired
    retired_by: str = ""
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """Devices of a list; `matched` counts those beyond its limit too, `notes` say what is odd."""

    devices: list[DeviceView]
    matched: int
    notes: tuple[str, ...] = ()


def list_devices(deps: Deps, ctx: Ctx, selector: str = "", limit: int = 0) -> list[DeviceView]:
    """Devices that match, by id; an empty selector means all. InvalidError for a bad selector."""
    return find_devices(deps, ctx, selector, limit).devices


def find_devices(deps: Deps, ctx: Ctx, selector: str = "", limit: int = 0) -> Listing:
    """Devices that match, by id, at most `limit` unless 0; where none does the notes say why."""
    with deps.store.read() as conn:
        rows = devices.list_devices(conn, ctx.project)
        parsed, subjects = _read(conn, ctx, selector, rows)
        picked = {one.device_id for one in subjects if matches(parsed, one)}
        chosen = [row for row in rows if row.device_id in picked]
        views = _views(conn, chosen[:limit] if limit > 0 else chosen)
    if chosen or not subjects or not selector:
        return Listing(views, len(chosen), slips(parsed, subjects))
    return Listing(views, 0, nobody_matches(parsed, subjects, selector).lines)


def get_device(deps: Deps, ctx: Ctx, device_id: str) -> DeviceView:
    """One device; NotFoundError says which are close."""
    with deps.store.read() as conn:
        return _views(conn, [_existing(conn, ctx, device_id)])[0]


def select_ids(deps: Deps, ctx: Ctx, selector: str) -> frozenset[str]:
    """Ids of the devices that match; an empty selector means all. NotFoundError where none does."""
    with deps.store.read() as conn:
        rows = devices.list_devices(conn, ctx.project, with_status=False)
        parsed, subjects = _read(conn, ctx, selector, rows)
    chosen = frozenset(one.device_id for one in subjects if matches(parsed, one))
    if not chosen:
        raise nobody_matches(parsed, subjects, selector or "all")
    return chosen


def label_devices(
    deps: Deps,
    ctx: Ctx,
    *,
    selector: str = "",
    device_ids: Sequence[str] = (),
    values: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
) -> int:
    """Set and remove labels on devices by id or selector; says on how many devices."""
    values = values or {}
    if not values and not remove:
        raise InvalidError("no label to set or to remove", "for example: site=berlin, or site- ")
    if not selector and not device_ids:
        raise InvalidError("no device named", "name devices or give a selector, `-l all` for all")
    for name, value in values.items():
        check_label(name, value)
    chosen = select_ids(deps, ctx, selector) if selector else frozenset()
    with deps.store.write() as conn:
        refuse_versions(conn, ctx.project, values)
        wanted = sorted({*chosen, *device_ids})
        for device_id in wanted:
            _existing(conn, ctx, device_id)
            labels.change_labels(conn, device_id, values, remove)
            events.append(
                conn,
                ctx.project,
                ctx.now,
                "device_labelled",
                ctx.actor,
                device_id=device_id,
                details={**values, **{f"{name}-": "" for name in remove}},
            )
    return len(wanted)


def accept_device(deps: Deps, ctx: Ctx, device_id: str) -> DeviceView:
    """Let a pending device in, or a quarantined one back. RefusedError in any other state."""
    with deps.store.write() as conn:
        row = _existing(conn, ctx, device_id)
        if row.state not in (DeviceState.PENDING, DeviceState.QUARANTINED):
            raise RefusedError(
                f"device {device_id} is {row.state.lower()}",
                "only pending and quarantined devices can be accepted",
            )
        # A device comes out of quarantine with whichever boot speaks next.
        devices.update_device(conn, device_id, state=DeviceState.ACTIVE, boot_id=None)
        events.append(conn, ctx.project, ctx.now, "device_accepted", ctx.actor, device_id=device_id)
        view = _views(conn, [_existing(conn, ctx, device_id)])[0]
    deps.wake()
    return view


def retire_device(deps: Deps, ctx: Ctx, device_id: str) -> DeviceView:
    """Revoke a device's certificates and end its session; its history stays.

    Once retired it stays as it is: the view says since when, and by whom.
    """
    with deps.store.write() as conn:
        row = _existing(conn, ctx, device_id)
        if row.state != DeviceState.RETIRED:
            revoke_name(conn, ctx, device_id, f"retired by {ctx.actor}")
            devices.update_device(conn, device_id, state=DeviceState.RETIRED, online=False)
            engines.set_role(conn, device_id, "builder", False, ctx.actor, ctx.now)
            engines.drop_engines(conn, device_id)
            events.append(
                conn, ctx.project, ctx.now, "device_retired", ctx.actor, device_id=device_id
            )
        view = _views(conn, [_existing(conn, ctx, device_id)])[0]
    deps.wake()
    return view


def _existing(conn: Connection, ctx: Ctx, device_id: str) -> DeviceRow:
    row = devices.get_device(conn, device_id)
    if row is None or row.project != ctx.project:
        known = [each.device_id for each in devices.list_devices(conn, ctx.project)]
        raise NotFoundError(
            f"no device {device_id}",
            *suggest_names(device_id, known, "no device is enrolled yet"),
        )
    return row


def _read(
    conn: Connection, ctx: Ctx, text: str, rows: Sequence[DeviceRow]
) -> tuple[Selector, list[Subject]]:
    selector = read_selector(conn, ctx.project, text)
    subjects = load_subjects(conn, rows, devices.capabilities_of(conn), selector.models)
    check_models(conn, ctx.project, selector, subjects)
    return selector, subjects


def _views(conn: Connection, rows: Sequence[DeviceRow]) -> list[DeviceView]:
    ids = [row.device_id for row in rows]
    named, reported = labels.labels_of(conn, ids), devices.capabilities_of(conn, ids)
    generations = devices.desired_generations(conn)
    ends = certificates.newest_end(conn)
    previous = devices.previous_versions(conn, ids)
    roles = engines.roles_of(conn, ids)
    gone = [row.device_id for row in rows if row.state == DeviceState.RETIRED]
    retired = events.newest_of_devices(conn, "device_retired", gone)
    views = []
    for row in rows:
        status = row.status or {}
        views.append(
            DeviceView(
                device_id=row.device_id,
                profile=row.profile,
                state=row.state,
                online=row.online,
                last_seen_at=row.last_seen_at,
                labels=named.get(row.device_id, {}),
                capabilities=Capabilities.from_json(reported.get(row.device_id, {})),
                models=tuple(
                    _model(row.device_id, one, previous) for one in status.get("models", ())
                ),
                desired_generation=generations.get(row.device_id, 0),
                applied_generation=row.applied_generation,
                temperature_c=status.get("temperature_c"),
                memory_used_pct=status.get("memory_used_pct"),
                cpu_used_pct=status.get("cpu_used_pct"),
                enrolled_at=row.enrolled_at,
                certificate_expires_at=ends.get(row.device_id),
                retired_at=retired[row.device_id][0] if row.device_id in retired else None,
                retired_by=retired[row.device_id][1] if row.device_id in retired else "",
                roles=roles.get(row.device_id, ()),
            )
        )
    return views


def _model(
    device_id: str, one: Mapping[str, Any], previous: Mapping[tuple[str, str, str], str]
) -> DeviceModelView:
    model, version = str(one.get("model", "")), str(one.get("version", ""))
    return DeviceModelView(
        model=model,
        version=version,
        rung=str(one.get("rung", "")),
        rung_reason=str(one.get("rung_reason", "")),
        phase=str(one.get("phase", "")),
        previous_version=previous.get((device_id, model, version), ""),
    )
