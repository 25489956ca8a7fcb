"""``fleetctl build``: run, list, override, retry. Shows the worker's progress, judges nothing."""

import time

import click
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from controller.cli import units
from controller.cli.follow import follow, watch_option
from controller.cli.problem import CliError
from controller.cli.session import CLOCK, Session, common, parse_ref
from lighterman.v1 import fleet_pb2

FINAL = ("passed", "refused", "failed", "overridden")
USABLE = ("passed", "overridden")
POLL_S = 0.5


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
    """Build every variant of a version for device profiles."""
    name, version = parse_ref(ref)
    request = fleet_pb2.StartBuildRequest(
        model=name, version=version, profiles=profiles, dataset=dataset, recipes=recipes
    )
    builds = list(session.stub.StartBuild(request, timeout=60).builds)
    if wait:
        wanted = {_key(item) for item in builds}
        builds = _wait(session, name, version, wanted, timeout)
    if session.machine or not wait:
        _show(session, builds)
    unusable = _without_usable(builds) if wait else []
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
    said: dict[tuple[str, str, str], str] = {}
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
    session: Session, builds: list[fleet_pb2.Build], said: dict[tuple[str, str, str], str]
) -> None:
    for item in builds:
        now = item.state if item.state in FINAL else f"{item.state} {item.step}"
        if said.get(_key(item)) != now:
            said[_key(item)] = now
            session.say(f"{item.profile}  {item.variant}  {item.recipe}  {_state_text(item)}")


def _state_text(item: fleet_pb2.Build) -> str:
    if item.state in USABLE:
        text = f"done  {units.size(item.size_bytes)}  {figures_text(item.figures)}"
        if item.state == "overridden":
            text += f"  overridden by {item.override_by}: {item.override_reason}"
        elif item.cached:
            text += "  compiled before"
        elsewhere = item.figures.latency_n and not item.figures.measured_on_class
        return f"{text}  not measured on this class" if elsewhere else text
    if item.state == "running":
        return f"{item.step or 'running'} {item.progress_pct:.0f} %"
    return f"{item.state}: {item.reason}" if item.reason else item.state


def figures_text(figures: fleet_pb2.BuildFigures) -> str:
    """``acc 91.2 % (−0.3 pt, n=2,000)  agrees 98.2 %  p95 38 ms on …``."""
    parts: list[str] = []
    if figures.HasField("accuracy_pct"):
        delta = ""
        if figures.HasField("accuracy_delta_pts"):
            change = figures.accuracy_delta_pts
            sign = "+" if change.value > 0 else "−" if change.value < 0 else "±"
            delta = f"{sign}{abs(change.value):.1f} pt [{change.low:+.1f}, {change.high:+.1f}], "
        parts.append(
            f"acc {figures.accuracy_pct.value:.1f} % ({delta}n={figures.accuracy_pct.n:,})"
        )
    if figures.HasField("agreement_pct"):
        agreement = figures.agreement_pct
        parts.append(
            f"agrees {agreement.value:.1f} % [{agreement.low:.1f}, {agreement.high:.1f}]"
            f" (n={agreement.n:,})"
        )
    if figures.latency_n:
        p50, p95 = units.ms(figures.p50_ms), units.ms(figures.p95_ms)
        parts.append(f"p50 {p50}  p95 {p95} ms (n={figures.latency_n})")
    return "  ".join(parts)


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
        lambda item: item.build_id or f"{item.profile}/{item.variant}/{item.recipe}",
        lambda: (
            _show_wide(session, builds)
            if session.output == "wide"
            else _show_table(session, builds)
        ),
        "no build; make some: fleetctl build run NAME:VERSION --wait",
    )


def _show_table(session: Session, builds: list[fleet_pb2.Build]) -> None:
    """A heading per version and profile, and what was measured under it."""
    columns = ["build", "state", ">size", ">p95 ms", ">n", ">acc %", ">Δ pt, or agreement %", ">n"]
    rows: list[list[str] | str] = []
    heading = ""
    for item in builds:
        where = f"{item.model}:{item.version}  {item.profile}"
        if where != heading:
            rows.append(where)
            heading = where
        figures = item.figures
        rows.append(
            [
                f"  {item.variant}  {item.recipe}",
                _state_cell(item),
                units.size(item.size_bytes) if item.size_bytes else units.UNKNOWN,
                units.ms(figures.p95_ms) if figures.latency_n else units.UNKNOWN,
                f"{figures.latency_n:,}" if figures.latency_n else units.UNKNOWN,
                _accuracy_cell(figures),
                *_quality_cells(figures),
            ]
        )
    session.table(columns, rows)
    for item in builds:
        if item.reason:
            session.say(f"{item.profile}  {item.variant}  {item.recipe}: {item.reason}")
        for line in item.last_lines if item.state == "failed" else ():
            session.say(f"    {line}")


def _show_wide(session: Session, builds: list[fleet_pb2.Build]) -> None:
    columns = ["version", "profile", "variant", "recipe", "state", ">size", ">p50 ms", ">p95 ms"]
    columns += [">n", ">acc %", ">Δ pt (95 %)", ">n", ">agrees % (95 %)", ">n"]
    session.table([*columns, "measured on", "reason"], [_wide_row(item) for item in builds])


def _state_cell(item: fleet_pb2.Build) -> str:
    return f"{item.step} {item.progress_pct:.0f} %" if item.state == "running" else item.state


def _accuracy_cell(figures: fleet_pb2.BuildFigures) -> str:
    known = figures.HasField("accuracy_pct")
    return f"{figures.accuracy_pct.value:.1f}" if known else units.UNKNOWN


def _delta_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """Change of accuracy with its interval, and the rows behind it."""
    if not figures.HasField("accuracy_delta_pts"):
        n = f"{figures.accuracy_pct.n:,}" if figures.HasField("accuracy_pct") else units.UNKNOWN
        return units.UNKNOWN, n
    found = figures.accuracy_delta_pts
    low, high = units.signed(found.low), units.signed(found.high)
    return f"{units.signed(found.value)} ({low} to {high})", f"{found.n:,}"


def _agreement_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """Share with its interval, and the rows behind it."""
    if not figures.HasField("agreement_pct"):
        return units.UNKNOWN, units.UNKNOWN
    found = figures.agreement_pct
    return f"{found.value:.1f} ({found.low:.1f}–{found.high:.1f})", f"{found.n:,}"


def _quality_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """The change of accuracy; where there are no labels, how often both say the same."""
    if figures.HasField("accuracy_delta_pts") or not figures.HasField("agreement_pct"):
        return _delta_cells(figures)
    share, rows = _agreement_cells(figures)
    return f"agrees {share}", rows


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
        units.ms(figures.p50_ms) if measured else units.UNKNOWN,
        units.ms(figures.p95_ms) if measured else units.UNKNOWN,
        f"{figures.latency_n:,}" if measured else units.UNKNOWN,
        _accuracy_cell(figures),
        *_delta_cells(figures),
        *_agreement_cells(figures),
        figures.measured_on + on_class if figures.measured_on else units.UNKNOWN,
        item.reason,
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
@common
def retry(session: Session, ref: str) -> None:
    """Queue again the builds of a version whose job failed."""
    name, version = parse_ref(ref)
    request = fleet_pb2.RetryBuildRequest(model=name, version=version)
    builds = list(session.stub.RetryBuild(request, timeout=30).builds)
    if not builds and not session.machine:
        session.say(f"{name}:{version} has no failed build")
        return
    _show(session, builds)
