"""``fleetctl build``: run, list, override, retry, cancel. Shows progress, judges nothing.

``show`` and ``explain`` are in `build_show`, ``report`` in `build_report`, ``tune`` in
`build_tune`.
"""

import time

import click
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from controller.cli import build_report, build_show, build_tune, units
from controller.cli.build_figures import (
    FINAL,
    USABLE,
    accuracy_cell,
    agreement_cells,
    change_cells,
    eager_cells,
    error_line,
    figures_text,
    override_text,
    p50_cell,
    quality_cells,
    quality_column,
)
from controller.cli.build_show import NOTHING_BUILT, build_name
from controller.cli.follow import follow, watch_option
from controller.cli.problem import CliError
from controller.cli.session import CLOCK, Session, common, parse_ref
from lighterman.v1 import fleet_pb2

POLL_S = 0.5
LEGEND = (
    "in brackets: 95 % interval; n: calls timed, rows evaluated; change: against the source's"
    " accuracy"
)


@click.group()
def build() -> None:
    """Builds: make them per profile, see what the gate said."""


@build.command("run")
@click.argument("ref", metavar="NAME:VERSION")
@click.option("--profile", "profiles", multiple=True, help="Default: profiles of enrolled devices.")
@click.option("--dataset", default="", help="Default: the dataset named like the model.")
@click.option("--recipe", "recipes", multiple=True, help="Default: those that the profile allows.")
@click.option("--wait", is_flag=True, help="Wait, with progress, until every build is judged.")
@click.option("--timeout", type=units.DURATION, default="1h", help="Longest wait, as in 30m.")
@common
def run(
    session: Session,
    ref: str,
    profiles: tuple[str, ...],
    dataset: str,
    recipes: tuple[str, ...],
    wait: bool,
    timeout: float,
) -> int:
    """Build every variant of a version for device profiles.

    What was built before is only judged; what runs already is joined, and --wait waits for it.
    """
    name, version = parse_ref(ref)
    request = fleet_pb2.StartBuildRequest(
        model=name, version=version, profiles=profiles, dataset=dataset, recipes=recipes
    )
    builds = list(session.stub.StartBuild(request, timeout=60).builds)
    if not builds:
        raise CliError(NOTHING_BUILT.format(ref=ref))
    if not wait:
        _show(session, builds)
        return 0
    return _follow(session, name, version, builds, timeout)


def _follow(
    session: Session, name: str, version: str, builds: list[fleet_pb2.Build], timeout_s: float
) -> int:
    """Wait until these are judged, whoever asked for them; 1 where a variant got no build."""
    builds = _wait(session, name, version, {_key(item) for item in builds}, timeout_s)
    if session.machine:
        _show(session, builds)
    unusable = _without_usable(builds)
    for line in unusable:
        session.note(line)
    return 1 if unusable else 0


def _key(build: fleet_pb2.Build) -> tuple[str, str, str]:
    return build.profile, build.variant, build.recipe


def _without_usable(builds: list[fleet_pb2.Build]) -> list[str]:
    pairs = {(item.profile, item.variant) for item in builds}
    good = {(item.profile, item.variant) for item in builds if item.state in USABLE}
    return [f"{profile}  {variant}: no build passed" for profile, variant in sorted(pairs - good)]


def _fetch(
    session: Session, name: str, version: str, wanted: set[tuple[str, str, str]] | None
) -> list[fleet_pb2.Build]:
    request = fleet_pb2.ListBuildsRequest(model=name, version=version)
    builds = list(session.stub.ListBuilds(request, timeout=30).builds)
    return [item for item in builds if wanted is None or _key(item) in wanted]


def _wait(
    session: Session, name: str, version: str, wanted: set[tuple[str, str, str]], timeout_s: float
) -> list[fleet_pb2.Build]:
    deadline = CLOCK.monotonic() + timeout_s
    live_ok = session.out.is_terminal and not session.quiet and not session.machine
    said: dict[str, set[str]] = {}
    live = Live(console=session.out, auto_refresh=False) if live_ok else None
    if live:
        live.start()
    try:
        while True:
            builds = _fetch(session, name, version, wanted)
            if live:
                live.update(_live_table(builds), refresh=True)
            else:
                _say_changes(session, builds, said)
            if builds and all(item.state in FINAL for item in builds):
                return builds
            if CLOCK.monotonic() > deadline:
                raise CliError(
                    f"builds of {name}:{version} are not done after {units.duration(timeout_s)}\n"
                    f"they go on; look again: fleetctl build list {name}:{version}"
                )
            time.sleep(POLL_S)
    finally:
        if live:
            live.stop()


def _say_changes(
    session: Session, builds: list[fleet_pb2.Build], said: dict[str, set[str]]
) -> None:
    """A line for each build that ended, and one for a job whose step is new, naming its builds.

    A job compiles recipes together and comes back to a step for each of them; `said` has what was
    told of each job and build.
    """
    together: dict[str, list[fleet_pb2.Build]] = {}
    for item in builds:
        alone = item.state in FINAL or not item.job_id
        together.setdefault("/".join(_key(item)) if alone else item.job_id, []).append(item)
    for name, items in together.items():
        first = items[0]
        now = first.state
        if now not in FINAL:  # what a second attempt does is news
            now += f" {first.step} {first.attempts}"
        if now not in said.setdefault(name, set()):
            said[name].add(now)
            parts = (", ".join(dict.fromkeys(part)) for part in zip(*map(_key, items), strict=True))
            session.say("  ".join((*parts, _state_text(first))))


def _state_text(item: fleet_pb2.Build) -> str:
    if item.state in USABLE:
        text = f"done  {units.size(item.size_bytes)}  {figures_text(item.figures)}"
        if item.state == "overridden":
            text += f"  {override_text(item)}"
        elif item.cached:
            text += "  compiled before"
        elsewhere = item.figures.latency_n and not item.figures.measured_on_class
        return f"{text}  not measured on this class" if elsewhere else text
    if item.state == "running":
        return f"{item.step or 'running'} {item.progress_pct:.0f} %"
    return f"{item.state}: {item.reason}" if item.reason else item.state


def _live_table(builds: list[fleet_pb2.Build]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(5):
        table.add_column(overflow="fold")
    for item in builds:
        done = item.state in FINAL
        bar = ProgressBar(total=100, completed=100 if done else item.progress_pct, width=12)
        table.add_row(item.profile, item.variant, item.recipe, bar, _state_text(item))
    return table


def _show(session: Session, builds: list[fleet_pb2.Build]) -> None:
    session.show_list(
        "build",
        builds,
        build_name,
        lambda: (
            _show_wide(session, builds)
            if session.output == "wide"
            else _show_table(session, builds)
        ),
        "no build; make some: fleetctl build run NAME:VERSION --wait",
    )


def _show_table(session: Session, builds: list[fleet_pb2.Build]) -> None:
    """A heading per version, profile and variant, and what was measured under it."""
    columns = ["recipe", "state", ">size", ">p50 ms", ">p95 ms", ">n"]
    columns.append(f">{quality_column(builds)}")
    rows: list[list[str] | str] = []
    heading = ""
    for item in builds:
        where = f"{item.model}:{item.version}  {item.profile}  {item.variant}"
        if where != heading:
            rows.append(where)
            heading = where
        figures = item.figures
        rows.append(
            [
                f"  {item.recipe}",
                _state_cell(item),
                units.size(item.size_bytes) if item.size_bytes else units.UNKNOWN,
                p50_cell(figures) if figures.latency_n else units.UNKNOWN,
                units.ms(figures.p95_ms) if figures.latency_n else units.UNKNOWN,
                f"{figures.latency_n:,}" if figures.latency_n else units.UNKNOWN,
                accuracy_cell(figures),
                *quality_cells(figures),
            ]
        )
    session.table([*columns, ">change, points", ">n"], rows)
    if any(item.figures.latency_n for item in builds):
        session.say(LEGEND)
    for item in builds:
        for line in _below(item):
            session.say(f"{item.profile}  {item.variant}  {item.recipe}: {line}")
    for line in _elsewhere(builds):
        session.say(line)


def _below(item: fleet_pb2.Build) -> list[str]:
    """What a person has to know of a build that did not simply pass."""
    ref, reason = f"{item.model}:{item.version}", item.reason.replace("\n", "; ")
    which = f"--profile {item.profile} --variant {item.variant} --recipe {item.recipe}"
    match item.state:
        case "overridden":
            return [f"{override_text(item)} (refused: {reason})"]
        case "failed":
            said = error_line(item.last_lines, item.reason)
            more = f"all lines of the job: fleetctl build show {ref} {which}"
            return [reason, *([said] if said else []), *([more] if item.last_lines else [])]
        case "passed":
            return []
        case _:
            return [reason] if reason else []


def _elsewhere(builds: list[fleet_pb2.Build]) -> list[str]:
    """Where latencies come from a host that is none of the profile: no budget was held."""
    found = {
        item.profile: item.figures.measured_on
        for item in builds
        if item.figures.latency_n and not item.figures.measured_on_class
    }
    return [f"{name}: latencies are of {on}, no host of it" for name, on in found.items()]


def _show_wide(session: Session, builds: list[fleet_pb2.Build]) -> None:
    columns = ["version", "profile", "variant", "recipe", "state", ">size"]
    columns += [">p50 ms (95 %)", ">p95 ms", ">n", ">eager p50 ms (95 %)", ">n"]
    columns += [
        f">{quality_column(builds)}",
        ">change, points (95 %)",
        ">n",
        ">agrees % (95 %)",
        ">n",
    ]
    session.table(
        [*columns, "measured on", "reason", "overridden"], [_wide_row(item) for item in builds]
    )


def _state_cell(item: fleet_pb2.Build) -> str:
    return f"{item.step} {item.progress_pct:.0f} %" if item.state == "running" else item.state


def _wide_row(item: fleet_pb2.Build) -> list[str]:
    figures = item.figures
    measured = bool(figures.latency_n)
    on_class = "" if figures.measured_on_class else " (not this class)"
    return [
        f"{item.model}:{item.version}",
        item.profile,
        item.variant,
        item.recipe,
        _state_cell(item),
        units.size(item.size_bytes) if item.size_bytes else units.UNKNOWN,
        p50_cell(figures) if measured else units.UNKNOWN,
        units.ms(figures.p95_ms) if measured else units.UNKNOWN,
        f"{figures.latency_n:,}" if measured else units.UNKNOWN,
        *eager_cells(figures),
        accuracy_cell(figures),
        *change_cells(figures),
        *agreement_cells(figures),
        figures.measured_on + on_class if figures.measured_on else units.UNKNOWN,
        item.reason,
        override_text(item).removeprefix("overridden "),
    ]


@build.command("list")
@click.argument("ref", metavar="NAME[:VERSION]")
@click.option("--profile", default="", help="Builds for this profile alone.")
@watch_option
@common
def list_builds(session: Session, ref: str, profile: str, watch: bool) -> int:
    """List builds with figures and the gate's reasons."""
    name, version = parse_ref(ref, need_version=False)
    request = fleet_pb2.ListBuildsRequest(model=name, version=version, profile=profile)

    def show() -> int:
        _show(session, list(session.stub.ListBuilds(request, timeout=30).builds))
        return 0

    return follow(session, show) if watch else show()


@build.command("override")
@click.argument("ref", metavar="NAME:VERSION")
@click.option("--profile", required=True, help="The profile for which the gate is overruled.")
@click.option("--reason", required=True, help="Why; kept as an event with your name.")
@click.option("--variant", default="", help="Default: every refused variant.")
@click.option("--recipe", default="", help="Default: every refused recipe.")
@common
def override(
    session: Session, ref: str, profile: str, reason: str, variant: str, recipe: str
) -> None:
    """Let a refused build be released, by name and reason."""
    name, version = parse_ref(ref)
    if not reason.strip():
        raise click.UsageError("--reason must say why")
    request = fleet_pb2.OverrideBuildRequest(
        model=name, version=version, profile=profile, reason=reason, variant=variant, recipe=recipe
    )
    builds = list(session.stub.OverrideBuild(request, timeout=30).builds)
    for item in builds:
        session.say(
            f"{item.profile}  {item.variant}  {item.recipe}: overridden by {item.override_by} "
            f"(was refused: {item.reason})"
        )
    if session.machine:
        _show(session, builds)


@build.command("retry")
@click.argument("ref", metavar="NAME:VERSION")
@click.option("--wait", is_flag=True, help="Wait, with progress, until these builds are judged.")
@click.option("--timeout", type=units.DURATION, default="1h", help="Longest wait, as in 30m.")
@common
def retry(session: Session, ref: str, wait: bool, timeout: float) -> int:
    """Queue again the builds of a version whose job failed."""
    name, version = parse_ref(ref)
    request = fleet_pb2.RetryBuildRequest(model=name, version=version)
    builds = list(session.stub.RetryBuild(request, timeout=30).builds)
    if not builds and not session.machine:
        session.say(f"{name}:{version} has no failed build")
        return 0
    if wait:
        going = [item for item in builds if item.state not in FINAL]
        return _follow(session, name, version, going, timeout)
    _show(session, builds)
    return 0


@build.command("cancel")
@click.argument("what", metavar="NAME:VERSION|JOB")
@click.option("--reason", default="", help="Why; kept as an event with your name.")
@common
def cancel(session: Session, what: str, reason: str) -> None:
    """End builds that wait or run: a job by its id, or all of a version.

    The worker kills its job within seconds. What was compiled before stays; `build retry` makes
    the rest again.
    """
    request = fleet_pb2.CancelBuildRequest(reason=reason)
    if what.startswith("j-") and ":" not in what:
        request.job_id = what
    else:
        request.model, request.version = parse_ref(what)
    builds = list(session.stub.CancelBuild(request, timeout=30).builds)
    if session.machine:
        _show(session, builds)
        return
    for item in builds:
        session.say(f"{item.profile}  {item.variant}  {item.recipe}: {item.reason}")
    if not builds:
        session.say(f"{what} has no build that waits or runs")


build.add_command(build_show.show)
build.add_command(build_show.explain)
build.add_command(build_report.report)
build.add_command(build_tune.tune)
build.add_command(build_tune.engines)
