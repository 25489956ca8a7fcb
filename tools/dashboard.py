"""Writes the Grafana dashboard from this description of it. `--write` writes, without it compares.

Every query reads metrics of the controller; where agents are scraped as well, `device=""` and
`max by` keep their series out, so that nothing is counted twice.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import StackingMode, TooltipDisplayMode

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "controller" / "shipped" / "grafana" / "lighterman.json"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'model=~"$model",profile=~"$profile",profile!="",device="",site=~"$site"'
LATENCY = "lighterman_inference_duration_seconds"


@dataclass(frozen=True, slots=True)
class Query:
    """One line family: the query and how its series are named."""

    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """One panel over time, a third or a half of the width (of 24)."""

    title: str
    says: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Number:
    """One figure of now."""

    title: str
    says: str
    query: str
    unit: str = "short"


NUMBERS = (
    Number(
        "Online", "Active devices that are online.",
        'sum(max by (profile, state, presence) '
        '(lighterman_devices{state="active",presence="online"}))',
    ),
    Number(
        "Silent for 5 minutes", "Active devices not heard of for at least five minutes.",
        'sum(max by (profile) (lighterman_devices_silent{seconds="300"}))',
    ),
    Number(
        "Behind", "Active devices that have not applied what they should run.",
        "max(lighterman_devices_behind)",
    ),
    Number(
        "Rollouts under way", "PENDING, PROGRESSING, PAUSED or ROLLING_BACK.",
        "sum(max by (rollout) (lighterman_rollout_phase"
        '{phase=~"PENDING|PROGRESSING|PAUSED|ROLLING_BACK"}))',
    ),
    Number(
        "Wait for a person", "Rollouts that are paused.",
        'sum(max by (rollout) (lighterman_rollout_phase{phase="PAUSED"}))',
    ),
    Number(
        "p95 of all", "Over every inference in the chosen classes.",
        f"histogram_quantile(0.95, sum by (le) (rate({LATENCY}_bucket{{{CHOSEN}}}"
        "[$__rate_interval])))",
        "s",
    ),
)  # fmt: skip

ROWS: tuple[tuple[str, tuple[Graph, ...]], ...] = (
    (
        "Latency",
        (
            Graph(
                "p95 by version and rung", "From merged histograms, never averaged.", "s",
                (Query(
                    "histogram_quantile(0.95, sum by (model, version, rung, le) "
                    f"(rate({LATENCY}_bucket{{{CHOSEN}}}[$__rate_interval])))",
                    "{{model}}:{{version}} {{rung}}",
                ),),
                12,
            ),
            Graph(
                "p95 by profile, and its budget", "Dashes have no data: nothing was inferred.", "s",
                (
                    Query(
                        "histogram_quantile(0.95, sum by (profile, le) "
                        f"(rate({LATENCY}_bucket{{{CHOSEN}}}[$__rate_interval])))",
                        "{{profile}}",
                    ),
                    Query(
                        "max by (profile) (lighterman_profile_latency_budget_seconds"
                        '{profile=~"$profile"})',
                        "budget of {{profile}}",
                    ),
                ),
                12,
            ),
            Graph(
                "Inferences", "By version and rung.", "ops",
                (Query(
                    "sum by (model, version, rung) "
                    f"(rate({LATENCY}_count{{{CHOSEN}}}[$__rate_interval]))",
                    "{{model}}:{{version}} {{rung}}",
                ),),
                12, stacked=True,
            ),
            Graph(
                "Failed and not finite", "Errors of the runtime; outputs with NaN or infinity.",
                "ops",
                (
                    Query(
                        "sum by (model, version) (rate(lighterman_inference_errors_total"
                        f"{{{CHOSEN}}}[$__rate_interval]))",
                        "failed {{model}}:{{version}}",
                    ),
                    Query(
                        "sum by (model, version) (rate(lighterman_inference_non_finite_total"
                        f"{{{CHOSEN}}}[$__rate_interval]))",
                        "not finite {{model}}:{{version}}",
                    ),
                ),
                12,
            ),
        ),
    ),
    (
        "Devices",
        (
            Graph(
                "Temperature", "The hottest and the middle device of each profile.", "celsius",
                (
                    Query(
                        "max by (profile) (lighterman_device_temperature_celsius"
                        '{statistic="max",profile=~"$profile"})',
                        "hottest {{profile}}",
                    ),
                    Query(
                        "max by (profile) (lighterman_device_temperature_celsius"
                        '{statistic="median",profile=~"$profile"})',
                        "median {{profile}}",
                    ),
                    Query(
                        'max by (profile) (lighterman_profile_throttle_celsius'
                        '{profile=~"$profile"})',
                        "{{profile}} throttles",
                    ),
                ),
            ),
            Graph(
                "Memory in use", "The fullest and the middle device of each profile.", "bytes",
                (
                    Query(
                        "max by (profile, statistic) (lighterman_device_memory_bytes"
                        '{statistic=~"median|max",profile=~"$profile"})',
                        "{{profile}} {{statistic}}",
                    ),
                ),
            ),
            Graph(
                "What answers", "Devices online by version and rung.", "short",
                (Query(
                    "max by (model, version, rung) "
                    '(lighterman_serving_devices{model=~"$model"})',
                    "{{model}}:{{version}} {{rung}}",
                ),),
                stacked=True,
            ),
        ),
    ),
    (
        "Rollouts",
        (
            Graph(
                "Devices of rollouts", "By state of their assignment, where there are any.",
                "short",
                (Query(
                    "max by (rollout, state) (lighterman_rollout_devices) > 0",
                    "{{rollout}} {{state}}",
                ),),
                12, stacked=True,
            ),
            Graph(
                "Phase", "1 while the rollout is in it.", "short",
                (Query(
                    "max by (rollout, phase) (lighterman_rollout_phase) == 1",
                    "{{rollout}} {{phase}}",
                ),),
                12,
            ),
            Graph(
                "Assignments", "Of all rollouts, by state.", "short",
                (Query("max by (state) (lighterman_assignments)", "{{state}}"),),
                stacked=True,
            ),
            Graph(
                "Rollbacks", "Devices that left a version, by cause.", "short",
                (Query(
                    "max by (model, version, cause) (increase(lighterman_rollbacks_total"
                    '{model=~"$model"}[$__rate_interval]))',
                    "{{model}}:{{version}} {{cause}}",
                ),),
            ),
            Graph(
                "Rung changes", "Steps on the ladder, by reason.", "short",
                (Query(
                    "max by (model, from, to, reason) (increase(lighterman_rung_changes_total"
                    '{model=~"$model"}[$__rate_interval]))',
                    "{{model}} {{from}} → {{to}} {{reason}}",
                ),),
            ),
            Graph(
                "Builds", "By state.", "short",
                (Query("max by (state) (lighterman_builds)", "{{state}}"),),
                stacked=True,
            ),
        ),
    ),
    (
        "Controller",
        (
            Graph(
                "Ingest", "Messages of devices by outcome, and what was dropped.", "ops",
                (
                    Query(
                        "sum by (outcome) "
                        "(rate(lighterman_ingest_messages_total[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                    Query(
                        "sum by (what) (rate(lighterman_ingest_shed_total[$__rate_interval]))",
                        "dropped {{what}}",
                    ),
                ),
            ),
            Graph(
                "Waiting", "Messages before ingest, and what must still be told.", "short",
                (
                    Query("sum(lighterman_ingest_queue_messages)", "before ingest"),
                    Query("max(lighterman_outbox_messages)", "outbox"),
                ),
            ),
            Graph(
                "Parts", "1 while it answers; workers are counted.", "short",
                (
                    Query("min by (instance) (lighterman_store_up)", "database {{instance}}"),
                    Query("min by (instance) (lighterman_broker_up)", "broker {{instance}}"),
                    Query("max by (instance) (lighterman_workers)", "workers {{instance}}"),
                ),
            ),
        ),
    ),
)  # fmt: skip


def queries() -> list[str]:
    """Every query of the dashboard, with its variables in it."""
    graphs = [query.text for _, row in ROWS for graph in row for query in graph.queries]
    return [*(number.query for number in NUMBERS), *graphs]


def _target(query: Query, number: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.text).ref_id(chr(ord("A") + number))
    return target.legend_format(query.name) if query.name else target


def _graph(graph: Graph) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(graph.title)
        .description(graph.says)
        .datasource(SOURCE)
        .unit(graph.unit)
        .min(0)
        .height(8)
        .span(graph.width)
        .fill_opacity(20 if graph.stacked else 0)
        .legend(common.VizLegendOptions().show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if graph.stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for number, query in enumerate(graph.queries):
        panel.with_target(_target(query, number))
    return panel


def _number(number: Number) -> stat.Panel:
    target = prometheus.Dataquery().expr(number.query).ref_id("A").instant()
    return (
        stat.Panel()
        .title(number.title)
        .description(number.says)
        .datasource(SOURCE)
        .unit(number.unit)
        .height(4)
        .span(4)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .with_target(target)
    )


def _variable(name: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(f'label_values({LATENCY}_count{{profile!="",device=""}}, {name})')
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def render() -> str:
    """The dashboard's JSON."""
    board = (
        dashboard.Dashboard("Lighterman")
        .uid("lighterman")
        .description(
            "A fleet of devices that infer: latency, heat, rollouts. Written by a program."
        )
        .tags(["lighterman"])
        .readonly()
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for name in ("model", "profile", "site"):
        board.with_variable(_variable(name))
    ids = count(1)  # panels without one of their own cannot be linked to
    board.with_row(dashboard.Row("Now").id(next(ids)))
    for number in NUMBERS:
        board.with_panel(_number(number).id(next(ids)))
    for title, graphs in ROWS:
        board.with_row(dashboard.Row(title).id(next(ids)))
        for graph in graphs:
            board.with_panel(_graph(graph).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def main() -> int:
    """Compare, or write with `--write`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.dashboard", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the file")
    options = parser.parse_args()
    wanted, name = render(), FILE.relative_to(ROOT)
    have = FILE.read_text(encoding="utf-8") if FILE.exists() else ""
    if options.write:
        if have != wanted:
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_text(wanted, encoding="utf-8")
            print(f"dashboard: {name}")
        return 0
    print(f"{len(queries())} queries" if have == wanted else f"{name} differs; run make docs")
    return 0 if have == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
