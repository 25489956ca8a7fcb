"""``fleetctl build show`` and ``explain``: all that is known of builds, and why they are so."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from controller.cli import units
from controller.cli.build_figures import (
    change_text,
    device_text,
    metric_name,
    override_text,
    share_text,
)
from controller.cli.devices import show_facts
from controller.cli.printable import one_line
from controller.cli.records import record
from controller.cli.session import Session, common, parse_ref
from lighterman.v1 import fleet_pb2

F = TypeVar("F", bound=Callable[..., Any])

NOTHING_BUILT = (
    "nothing is built of {ref}: no device reports a runtime that these profiles build for\n"
    "name recipes with --recipe, or enrol a device first: fleetctl device list"
)


def _which_options(function: F) -> F:
    options = [
        click.option("--variant", default="", help="Builds of this variant alone."),
        click.option("--profile", default="", help="Builds for this profile alone."),
        click.option("--recipe", default="", help="Builds by this recipe alone."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _request(ref: str, **names: str) -> fleet_pb2.ListBuildsRequest:
    name, version = parse_ref(ref)
    return fleet_pb2.ListBuildsRequest(model=name, version=version, **names)


@click.command("show")
@click.argument("ref", metavar="NAME:VERSION")
@_which_options
@common
def show(session: Session, ref: str, **names: str) -> None:
    """Show all that is known of builds: digests, figures, the gate line by line, who overrode."""
    builds = list(session.stub.ListBuilds(_request(ref, **names), timeout=30).builds)

    def render() -> None:
        for number, item in enumerate(builds):
            session.say("\n" * bool(number) + _title(item))
            last = ""
            for topic, text in _lines(item):
                session.say(f"{topic if topic != last else '':<12}{one_line(text)}".rstrip())
                last = topic

    nothing = f"no such build; make some: fleetctl build run {ref} --wait"
    session.show_list("build", builds, build_name, render, nothing)


@click.command("explain")
@click.argument("ref", metavar="NAME:VERSION")
@_which_options
@common
def explain(session: Session, ref: str, **names: str) -> None:
    """Say why builds passed, were refused or failed, which ones devices get, and what to do."""
    found = list(session.stub.ExplainBuilds(_request(ref, **names), timeout=30).builds)

    def render() -> None:
        for number, one in enumerate(found):
            session.say("\n" * bool(number) + _title(one.build))
            show_facts(session, list(one.facts))

    session.show_list(
        "build_explanation", found, lambda one: build_name(one.build), render, "no such build"
    )


def build_name(item: fleet_pb2.Build) -> str:
    """The build's id; what was refused before it was made has none."""
    return item.build_id or f"{item.profile}/{item.variant}/{item.recipe}"


def _title(item: fleet_pb2.Build) -> str:
    return f"{item.model}:{item.version}  {item.profile}  {item.variant}  {item.recipe}"


def _lines(item: fleet_pb2.Build) -> Iterator[tuple[str, str]]:
    state = item.state + (", compiled before for the same target" if item.cached else "")
    if item.state == "running":
        state += f", {item.step or 'at work'} {item.progress_pct:.0f} %"
    yield "state", state
    if item.override_by:
        yield "overridden", override_text(item).removeprefix("overridden ")
    if item.digest:
        of = f" of {units.size(item.source_size_bytes)}"
        share = f" ({100 * item.size_bytes / item.source_size_bytes:.0f} %)"
        yield "build", f"{item.build_id}  {item.digest}"
        yield "size", units.size(item.size_bytes) + (of + share if item.source_size_bytes else "")
    yield "source", item.source_digest or units.UNKNOWN
    if item.target_key:
        yield "target", f"{item.runtime}  {item.target_key}"
    for name, value in _flat(record(item)["recipe_spec"] or {}):
        yield "recipe", f"{name} {value}"
    digest = f"  {item.dataset_digest}" if item.dataset_digest else ""
    yield "dataset", (item.dataset or "none") + digest
    yield from (("figures", text) for text in _figures(item.figures))
    if item.figures.measured_on:
        where = "a host of" if item.figures.measured_on_class else "not a host of"
        yield "measured on", f"{item.figures.measured_on}, {where} {item.profile}"
    yield from (("on devices", device_text(one)) for one in item.measured)
    if item.rung:
        yield "ladder", f"rung {item.rung} of the ladder chosen for {item.profile}"
    for one in item.findings:
        yield "gate", f"{'holds  ' if one.ok else 'refused'}  {one.text}"
    if item.reason and not item.findings:
        yield "why", item.reason.replace("\n", "; ")
    tools = ", ".join(f"{name} {item.tool_versions[name]}" for name in sorted(item.tool_versions))
    if tools:
        yield "tools", tools
    yield from _times(item)
    yield from (("last lines", line) for line in item.last_lines)


def _times(item: fleet_pb2.Build) -> Iterator[tuple[str, str]]:
    for name, stamp in (
        ("asked for", item.asked_at),
        ("made", item.built_at),
        ("judged", item.updated_at),
    ):
        if units.instant(stamp) is not None:
            yield "times", f"{name:<9}  {units.local(stamp)}"
    if item.job_id:
        by = f" by {item.worker}" if item.worker else ""
        yield "job", f"{item.job_id}, {units.count_of(item.attempts, 'attempt')}{by}"


def _figures(figures: fleet_pb2.BuildFigures) -> Iterator[str]:
    if figures.HasField("accuracy_pct"):
        yield f"accuracy    {share_text(figures.accuracy_pct)}"
    if figures.HasField("source_accuracy_pct"):
        yield f"source's    {share_text(figures.source_accuracy_pct)}"
    if figures.HasField("accuracy_delta_pts"):
        yield f"change      {change_text(figures.accuracy_delta_pts)}"
    for one in figures.metrics:
        name = metric_name(one.name)
        yield f"{name:<12}{share_text(one.value_pct)}"
        yield f"source's    {share_text(one.source_pct)}"
        yield f"change      {change_text(one.delta_pts)}"
    if figures.HasField("agreement_pct"):
        share = share_text(figures.agreement_pct)
        yield f"agreement   {share.replace(', n=', ' with the source, n=')}"
    for name, value, field in (
        ("p50", figures.p50_ms, "p50_interval_ms"),
        ("p95", figures.p95_ms, "p95_interval_ms"),
        ("fp32 p50", figures.fp32_p50_ms, "fp32_p50_interval_ms"),
        ("eager p50", figures.eager_p50_ms, "eager_p50_interval_ms"),
    ):
        if value:
            yield f"{name:<12}{_quantile(figures, value, field)}"
    if figures.peak_rss_bytes:
        yield f"memory      {units.size(figures.peak_rss_bytes)} at most, the whole process"
    if figures.HasField("rows_checked"):
        yield (
            f"rows        {figures.rows_checked:,} looked at, {figures.rows_not_finite:,} of them"
            " with NaN or infinity"
        )


def _quantile(figures: fleet_pb2.BuildFigures, value: float, field: Any) -> str:
    known = figures.HasField(field)
    found = getattr(figures, field)
    if known:
        low, high = units.ms(found.low, 3), units.ms(found.high, 3)
        return f"{units.ms(value, 3)} ms ({low}–{high}), n={found.n:,}"
    calls = f", n={figures.latency_n:,}" if field != "eager_p50_interval_ms" else ""
    return (
        f"{units.ms(value, 3)} ms{calls}, too few calls for an interval, or made before it was kept"
    )


def _flat(value: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{front}{name}.")
        else:
            yield f"{front}{name}", str(inner).lower() if isinstance(inner, bool) else inner
