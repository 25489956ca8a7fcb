"""``fleetctl build report``: what builds of a version trade, as table, JSON or one HTML page."""

from collections.abc import Sequence
from pathlib import Path

import click

from controller.cli import records, units
from controller.cli.build_figures import (
    USABLE,
    accuracy_cell,
    device_text,
    p50_cell,
    quality_cells,
    quality_column,
    quality_of,
)
from controller.cli.build_show import build_name
from controller.cli.problem import CliError
from controller.cli.report_classes import class_legend, class_lines
from controller.cli.report_page import report_page
from controller.cli.session import Session, common, parse_ref
from lighterman.v1 import fleet_pb2

LEGEND = "*: no other usable one beats it in accuracy, p95 and size; in brackets: 95 % interval"


@click.command("report")
@click.argument("ref", metavar="NAME:VERSION")
@click.option("--profile", default="", help="Builds for this profile alone.")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False),
    help="Write one page with the plot, all figures and where builds come from.",
)  # fmt: skip
@common
def report(session: Session, ref: str, profile: str, page: Path | None) -> None:
    """Compare the builds of a version: accuracy, p95 and size, and which ones no other beats."""
    name, version = parse_ref(ref)
    request = fleet_pb2.ListBuildsRequest(model=name, version=version, profile=profile)
    builds = list(session.stub.ListBuilds(request, timeout=30).builds)
    best = front(builds)
    labels = _labels(session, builds)
    if page is not None and builds:
        try:
            page.write_text(report_page(ref, builds, best, labels), encoding="utf-8")
        except OSError as error:
            raise CliError(f"{page} cannot be written: {error.strerror}") from error
        session.note(f"written: {page}")
    if session.machine and session.output != "name":
        session.dump(_document(builds, best))
        return
    session.show_list(
        "build",
        builds,
        build_name,
        lambda: _show(session, builds, best, labels),
        f"no build; make some: fleetctl build run {ref} --wait",
    )


def _labels(session: Session, builds: Sequence[fleet_pb2.Build]) -> Sequence[str]:
    """The names of the version's classes, where some class is spoken of."""
    if session.machine or not any(item.figures.classes for item in builds):
        return ()
    asked = fleet_pb2.GetModelRequest(model=builds[0].model, version=builds[0].version)
    return list(session.stub.GetModel(asked, timeout=30).labels)


def quality(item: fleet_pb2.Build) -> float | None:
    """Accuracy in percent, agreement where there are no labels, None where neither is known."""
    figures, found = item.figures, quality_of(item.figures)
    if found is not None:
        return found.value.value
    return figures.agreement_pct.value if figures.HasField("agreement_pct") else None


def front(builds: Sequence[fleet_pb2.Build]) -> frozenset[int]:
    """Places of the usable builds that no other one of their profile beats (Pareto front).

    Beaten is who is not better in any of quality, p95 and size, and worse in one.
    """
    usable = {
        place: (-found, item.figures.p95_ms, item.size_bytes)
        for place, item in enumerate(builds)
        if item.state in USABLE and item.figures.latency_n and (found := quality(item)) is not None
    }
    return frozenset(
        place
        for place, mine in usable.items()
        if not any(
            builds[other].profile == builds[place].profile
            and theirs != mine
            and all(a <= b for a, b in zip(theirs, mine, strict=True))
            for other, theirs in usable.items()
        )
    )


def _document(builds: Sequence[fleet_pb2.Build], best: frozenset[int]) -> records.Record:
    document = records.listing("build_report", list(builds))
    for place, item in enumerate(document["items"]):
        item["on_front"] = place in best
    return document


def _show(
    session: Session,
    builds: Sequence[fleet_pb2.Build],
    best: frozenset[int],
    labels: Sequence[str] = (),
) -> None:
    columns = ["recipe", "", "state", ">size", ">p50 ms", ">p95 ms", f">{quality_column(builds)}"]
    rows: list[list[str] | str] = []
    heading = ""
    for place, item in enumerate(builds):
        where = f"{item.profile}  {item.variant}"
        if where != heading:
            rows.append(where)
            heading = where
        figures = item.figures
        rows.append(
            [
                f"  {item.recipe}",
                "*" if place in best else "",
                item.state,
                units.size(item.size_bytes) if item.size_bytes else units.UNKNOWN,
                p50_cell(figures) if figures.latency_n else units.UNKNOWN,
                units.ms(figures.p95_ms) if figures.latency_n else units.UNKNOWN,
                accuracy_cell(figures),
                *quality_cells(figures),
            ]
        )
    session.table([*columns, ">change, points", ">n"], rows)
    session.say(LEGEND)
    for item in builds:
        for one in item.measured:
            session.say(f"{item.variant}  {item.recipe}  on {device_text(one)}")
    _show_classes(session, builds, labels)


def _show_classes(
    session: Session, builds: Sequence[fleet_pb2.Build], labels: Sequence[str]
) -> None:
    """Which classes lose, of the builds that say so."""
    lines = class_lines(builds, labels)
    if not lines:
        return
    columns = ["recipe", "class", ">source %", ">build %", ">change, points", ">n", ""]
    session.say("")
    session.table(
        columns,
        [
            [one.build, one.name, one.source, one.value, one.change, one.n, one.word]
            for one in lines
        ],
    )
    session.say(class_legend(builds))
