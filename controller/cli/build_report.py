"""``fleetctl build report``: what builds of a version trade, as table, JSON or one HTML page."""

from collections.abc import Sequence
from pathlib import Path

import click

from controller.cli import records, units
from controller.cli.build_figures import USABLE, p50_cell, quality_cells
from controller.cli.build_show import build_name
from controller.cli.problem import CliError
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
    if page is not None and builds:
        try:
            page.write_text(report_page(ref, builds, best), encoding="utf-8")
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
        lambda: _show(session, builds, best),
        f"no build; make some: fleetctl build run {ref} --wait",
    )


def quality(item: fleet_pb2.Build) -> float | None:
    """Accuracy in percent, agreement where there are no labels, None where neither is known."""
    figures = item.figures
    if figures.HasField("accuracy_pct"):
        return figures.accuracy_pct.value
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


def _show(session: Session, builds: Sequence[fleet_pb2.Build], best: frozenset[int]) -> None:
    columns = ["recipe", "", "state", ">size", ">p50 ms", ">p95 ms", ">acc %"]
    rows: list[list[str] | str] = []
    heading = ""
    for place, item in enumerate(builds):
        where = f"{item.profile}  {item.variant}"
        if where != heading:
            rows.append(where)
            heading = where
        figures = item.figures
        known = figures.HasField("accuracy_pct")
        rows.append(
            [
                f"  {item.recipe}",
                "*" if place in best else "",
                item.state,
                units.size(item.size_bytes) if item.size_bytes else units.UNKNOWN,
                p50_cell(figures) if figures.latency_n else units.UNKNOWN,
                units.ms(figures.p95_ms) if figures.latency_n else units.UNKNOWN,
                f"{figures.accuracy_pct.value:.1f}" if known else units.UNKNOWN,
                *quality_cells(figures),
            ]
        )
    session.table([*columns, ">change, points", ">n"], rows)
    session.say(LEGEND)
