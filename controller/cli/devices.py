"""``fleetctl device``: list, show, label, accept, retire, grant, revoke, explain."""

import textwrap

import click

from controller.cli import units
from controller.cli.follow import follow, watch_option
from controller.cli.printable import one_line
from controller.cli.session import Session, common, selector_option, yes_option
from lighterman.v1 import fleet_pb2


@click.group()
def device() -> None:
    """Devices: what is out there, what it runs, why."""


def _labels(item: fleet_pb2.Device) -> str:
    return ",".join(f"{name}={item.labels[name]}" for name in sorted(item.labels)) or units.UNKNOWN


def _runs(item: fleet_pb2.Device) -> str:
    return (
        ", ".join(f"{m.model}:{m.version} {m.rung}".strip() for m in item.models) or units.UNKNOWN
    )


def _state(item: fleet_pb2.Device) -> str:
    if item.state != "active":
        return item.state
    if not item.online and not item.HasField("last_seen_at"):
        return "never connected"
    return "online" if item.online else "offline"


def _seen(session: Session, item: fleet_pb2.Device) -> str:
    """``online, seen 2.0 s ago``; of one that never spoke there is nothing to add."""
    if not item.HasField("last_seen_at"):
        return _state(item)
    return f"{_state(item)}, seen {units.ago(item.last_seen_at, session.now())}"


@device.command("list")
@selector_option
@click.option("--limit", type=int, default=0, help="At most so many.")
@watch_option
@common
def list_devices(session: Session, selector: str, limit: int, watch: bool) -> int:
    """List devices."""
    request = fleet_pb2.ListDevicesRequest(selector=selector, limit=limit)
    if watch:
        return follow(session, lambda: _list(session, request))
    _list(session, request)
    return 0


def _list(session: Session, request: fleet_pb2.ListDevicesRequest) -> None:
    answer = session.stub.ListDevices(request, timeout=30)
    items = list(answer.devices)

    def render() -> None:
        columns = ["device", "profile", "state", "seen", "runs", ">°C"]
        wide = session.output == "wide"
        columns += [">memory %", ">cpu %", ">generation", "labels"] if wide else []
        session.table(columns, [_row(session, item, wide) for item in items])
        _count(session, answer, request)

    empty = (
        "\n  ".join((f"no device matches  {request.selector}", *map(one_line, answer.notes)))
        if request.selector
        else "no device yet; enrol one: fleetctl admin token create"
    )
    session.show_list("device", items, lambda item: str(item.device_id), render, empty)


def _count(
    session: Session,
    answer: fleet_pb2.ListDevicesResponse,
    request: fleet_pb2.ListDevicesRequest,
) -> None:
    """How many there are, where the table alone does not say it at a glance."""
    matched, shown = answer.matched, len(answer.devices)
    if request.selector or shown < matched:
        verb = "matches" if matched == 1 else "match"
        what = f" {verb} {request.selector}" if request.selector else ""
        first = f", the first {shown:,} shown" if shown < matched else ""
        session.note(f"{units.count_of(matched, 'device')}{what}{first}")
    for line in answer.notes:
        session.note(one_line(line))


def _row(session: Session, item: fleet_pb2.Device, wide: bool) -> list[str]:
    row = [
        item.device_id,
        item.profile or units.UNKNOWN,
        _state(item),
        units.ago(item.last_seen_at, session.now()),
        _runs(item),
        _optional(item, "temperature_c"),
    ]
    if wide:
        row += [
            _optional(item, "memory_used_pct"),
            _optional(item, "cpu_used_pct"),
            f"{item.applied_generation} of {item.desired_generation}",
            _labels(item),
        ]
    return row


def _optional(item: fleet_pb2.Device, field: str) -> str:
    return f"{getattr(item, field):.0f}" if item.HasField(field) else units.UNKNOWN  # type: ignore[arg-type]


@device.command("show")
@click.argument("device_id", metavar="DEVICE")
@common
def show(session: Session, device_id: str) -> None:
    """Show one device: hardware, models, health."""
    item = session.stub.GetDevice(fleet_pb2.GetDeviceRequest(device_id=device_id), timeout=30)
    session.show("device", item, item.device_id, lambda: _show(session, item))


def _show(session: Session, item: fleet_pb2.Device) -> None:
    session.say(
        f"{item.device_id}   {item.profile or 'no profile matches'}   {_labels(item)}  "
        f" {_seen(session, item)}"
    )
    capabilities = item.capabilities
    simulated = "  (simulated host)" if capabilities.host_simulated else ""
    rows = [
        ("hardware", f"{capabilities.device_model or units.UNKNOWN}{simulated}"),
        ("cpu", f"{capabilities.cpu_model or units.UNKNOWN}, {capabilities.arch}"),
        (
            "memory",
            (
                f"{units.size(capabilities.memory_bytes)}, disk free"
                f" {units.size(capabilities.disk_bytes)}"
            ),
        ),
        ("runtimes", ", ".join(f"{k} {v}" for k, v in sorted(capabilities.runtimes.items()))),
        ("accelerators", ", ".join(capabilities.accelerators)),
        ("os", capabilities.os),
        ("agent", f"{capabilities.agent_version}, Python {capabilities.python}"),
        (
            "health",
            (
                f"{_optional(item, 'temperature_c')} °C, memory"
                f" {_optional(item, 'memory_used_pct')} %, cpu {_optional(item, 'cpu_used_pct')} %"
            ),
        ),
        ("generation", f"{item.applied_generation} applied of {item.desired_generation}"),
        ("certificate", f"until {units.local(item.certificate_expires_at)}"),
        ("enrolled", units.local(item.enrolled_at)),
    ]
    if item.roles:
        rows.append(("roles", ", ".join(item.roles)))
    if item.HasField("retired_at"):
        rows.append(("retired", f"{units.local(item.retired_at)} by {item.retired_by}"))
    for name, text in rows:
        session.say(f"{name:<13}{text or units.UNKNOWN}")
    for running in item.models:
        back = f", can return to {running.previous_version}" if running.previous_version else ""
        reason = f" ({running.rung_reason})" if running.rung_reason else ""
        session.say(
            f"{'runs':<13}{running.model}:{running.version}  {running.phase}  rung"
            f" {running.rung}{reason}{back}"
        )


@device.command("explain")
@click.argument("device_id", metavar="DEVICE")
@common
def explain(session: Session, device_id: str) -> None:
    """Say why a device runs what it runs, with evidence."""
    answer = session.stub.ExplainDevice(fleet_pb2.DeviceRequest(device_id=device_id), timeout=30)

    def render() -> None:
        item = answer.device
        session.say(
            f"{item.device_id}   {item.profile or 'no profile'}   {_labels(item)}  "
            f" {_seen(session, item)}"
        )
        show_facts(session, list(answer.facts))

    session.show("device_explanation", answer, device_id, render)


def show_facts(session: Session, facts: list[fleet_pb2.Fact]) -> None:
    """Facts as ``topic      text`` lines, a repeated topic named once, each part of one a line."""
    last = ""
    for fact in facts:
        for part in fact.text.split(" · ") if fact.topic == "last" else [fact.text]:
            topic = fact.topic if fact.topic != last else ""
            for line in _wrapped(topic, session.readable(one_line(part)), session.width):
                session.say(line)
            last = fact.topic


def _wrapped(topic: str, text: str, width: int | None) -> list[str]:
    """A fact in lines of at most `width` characters, aligned under its text; None: in one."""
    words = text.lstrip()
    indent = " " * (len(text) - len(words))
    head = f"{topic:<12}{indent}"
    if width is None:
        return [head + words]
    return textwrap.wrap(
        words,
        width,
        initial_indent=head,
        subsequent_indent=f"{'':<12}{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]


@device.command("label")
@click.argument("words", metavar="[DEVICE]… NAME=VALUE… NAME-…", nargs=-1, required=True)
@selector_option
@yes_option
@common
def label(session: Session, words: tuple[str, ...], selector: str, yes: int | None) -> None:
    """Set NAME=VALUE or remove NAME- on devices, or on all that a selector picks."""
    setting = dict(word.split("=", 1) for word in words if "=" in word)
    removing = [word[:-1] for word in words if "=" not in word and word.endswith("-")]
    ids = [word for word in words if "=" not in word and not word.endswith("-")]
    if not setting and not removing:
        raise click.UsageError("give at least one NAME=VALUE or NAME-")
    if bool(ids) == bool(selector):
        raise click.UsageError("name devices, or pick them by --selector, not both")
    if selector:
        request = fleet_pb2.ListDevicesRequest(selector=selector)
        count = len(session.stub.ListDevices(request, timeout=30).devices)
        if count:  # none is an error of the controller, which says what was meant
            verb = "matches" if count == 1 else "match"
            session.confirm_count(
                count, yes, f"{units.count_of(count, 'device')} {verb} {selector}"
            )
    response = session.stub.LabelDevices(
        fleet_pb2.LabelDevicesRequest(
            selector=selector, device_ids=ids, set=setting, remove=removing
        ),
        timeout=60,
    )
    if session.machine:
        session.dump({"schema_version": 1, "kind": "device_label", "devices": response.devices})
    session.say(f"labelled {units.count_of(response.devices, 'device')}")


@device.command("accept")
@click.argument("device_id", metavar="DEVICE")
@common
def accept(session: Session, device_id: str) -> None:
    """Let a pending device in."""
    item = session.stub.AcceptDevice(fleet_pb2.DeviceRequest(device_id=device_id), timeout=30)
    session.show("device", item, device_id, lambda: session.say(f"accepted {device_id}"))


@device.command("retire")
@click.argument("device_id", metavar="DEVICE")
@yes_option
@common
def retire(session: Session, device_id: str, yes: int | None) -> None:
    """Revoke a device's certificate for good; it serves on what it has."""
    before = session.stub.GetDevice(fleet_pb2.GetDeviceRequest(device_id=device_id), timeout=30)
    if before.state == "retired":
        since = f" since {units.local(before.retired_at)}" if before.HasField("retired_at") else ""
        by = f", by {before.retired_by}" if before.retired_by else ""
        said = f"{device_id} was already retired{since}{by}; nothing was done"
        session.show("device", before, device_id, lambda: session.say(said))
        return
    session.confirm_count(1, yes, f"{device_id} will be cut off and must enrol anew to return")
    item = session.stub.RetireDevice(fleet_pb2.DeviceRequest(device_id=device_id), timeout=30)
    session.show(
        "device", item, device_id, lambda: session.say(f"retired {device_id}, certificate revoked")
    )


@device.command("grant")
@click.argument("device_id", metavar="DEVICE")
@click.argument("role", metavar="ROLE", type=click.Choice(["builder"]))
@common
def grant(session: Session, device_id: str, role: str) -> None:
    """Make a device a builder: what it compiles goes to all devices of exactly its kind.

    They run it as native code: only for a board that you have in your hands.
    """
    _set_role(session, device_id, role, granted=True)


@device.command("revoke")
@click.argument("device_id", metavar="DEVICE")
@click.argument("role", metavar="ROLE", type=click.Choice(["builder"]))
@common
def revoke(session: Session, device_id: str, role: str) -> None:
    """Take a role from a device; what it compiled is given to nobody any more."""
    _set_role(session, device_id, role, granted=False)


def _set_role(session: Session, device_id: str, role: str, *, granted: bool) -> None:
    request = fleet_pb2.SetDeviceRoleRequest(device_id=device_id, role=role, granted=granted)
    item = session.stub.SetDeviceRole(request, timeout=30)
    text = f"{device_id} is a {role}" if granted else f"{device_id} is no {role} any more"
    session.show("device", item, device_id, lambda: session.say(text))
