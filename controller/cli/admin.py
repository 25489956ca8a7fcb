"""``fleetctl admin``: the nouns that are not of every day."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from controller.cli import contexts, follow, units
from controller.cli.datasets import dataset
from controller.cli.printable import one_line, printable_json
from controller.cli.session import Session, common, selector_option, yes_option
from lighterman.v1 import fleet_pb2


@click.group()
def admin() -> None:
    """Contexts, profiles, policies, recipes, groups, datasets, tokens, telemetry."""


@admin.group("context")
def context() -> None:
    """Which controller fleetctl asks, as whom."""


@context.command("list")
@common
def list_contexts(session: Session) -> None:
    """List registered contexts; the current one is marked."""
    current = contexts.current_name()
    found = [contexts.load(name) for name in contexts.names()]
    if session.machine and session.output != "name":
        items = [
            {
                "name": c.name,
                "controller": c.controller,
                "project": c.project,
                "current": c.name == current,
            }
            for c in found
        ]
        session.dump({"schema_version": 1, "kind": "context_list", "items": items})
    elif session.output == "name":
        for c in found:
            session.out.print(c.name, markup=False)
    elif found:
        session.table(
            ["", "context", "controller", "project"],
            [["*" if c.name == current else "", c.name, c.controller, c.project] for c in found],
        )
    else:
        session.say(f"no context in {contexts.config_dir()}")


@context.command("use")
@click.argument("name")
def use_context(name: str) -> None:
    """Make a context the current one."""
    contexts.use(name)
    click.echo(f"current context: {name}")


@context.command("add")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default=None, help="Register under another name than the file says.")
def add_context(file: Path, name: str | None) -> None:
    """Register a context file from `lighterman-controller operator issue`."""
    added = contexts.add(file, name)
    click.echo(f"context {added.name} asks {added.controller}")


def _object_group(kind: str, plural: str) -> click.Group:
    group = click.Group(
        kind.lower(), help=f"{plural}: list, show. Change them by `fleetctl apply`."
    )

    @group.command("list", help=f"List {plural.lower()}.")
    @common
    def list_objects(session: Session) -> None:
        request = fleet_pb2.ListObjectsRequest(kind=kind)
        items = list(session.stub.ListObjects(request, timeout=30).objects)
        specs = {item.name: json.loads(item.spec_json) for item in items}

        def render() -> None:
            columns, row = _TABLES[kind]
            session.table(columns, [row(item, specs[item.name]) for item in items])

        session.show_list(
            kind.lower(), items, lambda item: str(item.name), render, f"no {kind.lower()}"
        )

    @group.command("show", help=f"Show one {kind.lower()} as YAML that `fleetctl apply` takes.")
    @click.argument("name")
    @common
    def show_object(session: Session, name: str) -> None:
        found = session.stub.GetObject(fleet_pb2.GetObjectRequest(kind=kind, name=name), timeout=30)
        document = {"kind": kind, "name": found.name, "spec": json.loads(found.spec_json)}

        def render() -> None:
            origin = "shipped" if found.shipped else f"by {found.updated_by}"
            count = _holds(session, name) if kind == "Group" else ""
            session.note(f"# {origin}, {units.local(found.updated_at)}{count}")
            session.out.file.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))

        session.show(kind.lower(), found, name, render)

    return group


def _profile_row(item: fleet_pb2.Object, spec: dict[str, Any]) -> list[str]:
    match = spec.get("match", {})
    notes = []
    if not spec.get("verified", False):
        notes.append("unverified")
    if spec.get("container_only", False):
        notes.append("container only")
    return [
        item.name,
        ", ".join(
            f"{name}={value}" for name, value in match.items() if value not in ("*", None, [])
        ),
        str(spec.get("latency_budget_ms") or units.UNKNOWN),
        ", ".join(notes),
    ]


def _policy_row(item: fleet_pb2.Object, spec: dict[str, Any]) -> list[str]:
    return [
        item.name,
        str(spec.get("model", units.UNKNOWN)),
        str(spec.get("selector") or units.UNKNOWN),
        str(spec.get("slow_threshold_ms", units.UNKNOWN)),
        str(spec.get("slow_count", units.UNKNOWN)),
        "shipped" if item.shipped else f"by {item.updated_by}",
    ]


def _group_row(item: fleet_pb2.Object, spec: dict[str, Any]) -> list[str]:
    return [
        item.name,
        str(spec.get("selector") or units.UNKNOWN),
        str(spec.get("description") or units.UNKNOWN),
        f"by {item.updated_by}",
    ]


def _recipe_row(item: fleet_pb2.Object, spec: dict[str, Any]) -> list[str]:
    return [
        item.name,
        str(spec.get("runtime", units.UNKNOWN)),
        str(spec.get("precision", units.UNKNOWN)),
        "shipped" if item.shipped else f"by {item.updated_by}",
    ]


def _holds(session: Session, name: str) -> str:
    """How many devices a group holds now."""
    request = fleet_pb2.ListDevicesRequest(selector=f"@{name}", limit=1)
    matched = session.stub.ListDevices(request, timeout=30).matched
    return f", holds {units.count_of(matched, 'device')} now"


_TABLES: dict[str, tuple[list[str], Callable[[fleet_pb2.Object, dict[str, Any]], list[str]]]] = {
    "Profile": (["profile", "matches", ">latency ms", "notes"], _profile_row),
    "Policy": (["policy", "model", "selector", ">slow ms", ">in a row", "origin"], _policy_row),
    "Recipe": (["recipe", "runtime", "precision", "origin"], _recipe_row),
    "Group": (["group", "selector", "description", "origin"], _group_row),
}
admin.add_command(_object_group("Profile", "Device profiles"))
admin.add_command(_object_group("Policy", "Policies"))
admin.add_command(_object_group("Recipe", "Recipes of builds"))
admin.add_command(_object_group("Group", "Named groups of devices"))


admin.add_command(dataset)


@admin.group("token")
def token() -> None:
    """One-time tokens with which devices enrol."""


@token.command("create")
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, show_default=True)
@click.option("--ttl", type=units.DURATION, default="24h", show_default=True)
@click.option("--hardware-id", default="", help="Good for this hardware alone.")
@click.option("--pending", is_flag=True, help="The device waits for `fleetctl device accept`.")
@click.option("--label", "labels", type=units.KEY_VALUE, multiple=True, metavar="NAME=VALUE")
@common
def create_token(
    session: Session,
    uses: int,
    ttl: float,
    hardware_id: str,
    pending: bool,
    labels: tuple[tuple[str, str], ...],
) -> None:
    """Create a token; it is shown once. On a pipe, prints the token alone."""
    request = fleet_pb2.CreateTokenRequest(
        uses=uses, ttl_s=ttl, hardware_id=hardware_id, pending=pending, labels=dict(labels)
    )
    answer = session.stub.CreateToken(request, timeout=30)

    def render() -> None:
        session.out.print(answer.token, markup=False)
        if session.out.is_terminal:
            session.note(
                f"{answer.info.token_id}: {units.count_of(uses, 'use')}, until"
                f" {units.local(answer.info.expires_at)}; shown this once\non the device:"
                " lighterman-agent enroll --controller https://HOST:7444 --token TOKEN"
            )

    session.show("token_created", answer, answer.token, render)


@token.command("list")
@common
def list_tokens(session: Session) -> None:
    """List tokens, without their secrets."""
    items = list(session.stub.ListTokens(fleet_pb2.ListTokensRequest(), timeout=30).tokens)

    def render() -> None:
        session.table(
            ["token", ">used", "until", "by", "notes"],
            [
                [
                    item.token_id,
                    f"{item.used} of {item.uses}",
                    units.local(item.expires_at),
                    item.created_by,
                    ", ".join(
                        note
                        for note, on in (
                            ("revoked", item.revoked),
                            ("expired", has_passed(item.expires_at, session.now())),
                            ("used up", item.used >= item.uses),
                            ("pending", item.pending),
                            (f"hardware {item.hardware_id}", bool(item.hardware_id)),
                        )
                        if on
                    ),
                ]
                for item in items
            ],
        )

    session.show_list("token", items, lambda item: str(item.token_id), render, "no token")


@token.command("revoke")
@click.argument("token_id")
@yes_option
@common
def revoke_token(session: Session, token_id: str, yes: int | None) -> None:
    """Make a token worthless; devices that used it stay."""
    tokens = session.stub.ListTokens(fleet_pb2.ListTokensRequest(), timeout=30).tokens
    if token_id in {one.token_id for one in tokens}:  # an unknown one is refused, unasked
        session.confirm_count(1, yes, f"token {token_id} will enrol nobody any more")
    item = session.stub.RevokeToken(fleet_pb2.RevokeTokenRequest(token_id=token_id), timeout=30)
    session.show("token", item, token_id, lambda: session.say(f"revoked {token_id}"))


def has_passed(stamp: Timestamp, now: datetime) -> bool:
    """Whether a wire time lies behind."""
    when = units.instant(stamp)
    return when is not None and when <= now


@admin.group("telemetry")
def telemetry() -> None:
    """Live figures of devices."""


@telemetry.command("tail")
@selector_option
@common
def tail_telemetry(session: Session, selector: str) -> int:
    """Follow device health as it arrives, one JSON document a line with -o json."""
    request = fleet_pb2.TailTelemetryRequest(selector=selector)

    def say(sample: fleet_pb2.TelemetrySample) -> None:
        if session.output == "json":
            session.out.file.write(printable_json(sample.json.strip()) + "\n")
            session.out.file.flush()
        elif session.output == "name":
            session.out.print(sample.device_id, markup=False)
        else:
            at = units.local(sample.at, with_date=False)
            line = f"{at}  {sample.device_id}  {_health_text(json.loads(sample.json))}"
            session.out.print(one_line(line), markup=False)

    return follow.tail(session, lambda: session.stub.TailTelemetry(request), say)


def _health_text(health: dict[str, Any]) -> str:
    parts = []
    for name, unit in (
        ("temperature_c", "°C"),
        ("memory_used_pct", "% memory"),
        ("cpu_used_pct", "% cpu"),
    ):
        value = health.get(name)
        parts.append(
            f"{value:.0f} {unit}" if isinstance(value, int | float) else f"{units.UNKNOWN} {unit}"
        )
    for running in health.get("models", []):
        p95 = running.get("p95_ms")
        parts.append(
            f"{running.get('model')}:{running.get('version')} {running.get('rung')}"
            f" {running.get('phase')} "
            + (f"p95 {units.ms(p95)} ms" if isinstance(p95, int | float) else "")
        )
    return "  ".join(part.strip() for part in parts)
