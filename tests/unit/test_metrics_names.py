"""Rules, dashboard and code speak of the same metrics and labels; the dashboard is the code's."""

import json
import re
from collections.abc import Iterable, Iterator

import pytest
import yaml

from agent.serve import metric_table as agent_table
from controller.web import metric_table
from lighterman.metrics import Metric, MetricKind, names_of
from tests.support.prometheus import RULES
from tools import dashboard

NAMES = re.compile(r"\b(?:lighterman|process)_[a-z_]+")
MATCHERS = re.compile(r"\b((?:lighterman|process)_[a-z_]+)\{([^}]*)\}")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
BY_SCRAPING = {"instance", "job"}


def labels_by_name() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for metric in metric_table.METRICS:
        for name in metric.names():
            found[name] = {*metric.labels, *BY_SCRAPING}
            if name.endswith("_bucket"):
                found[name].add("le")
    for metric in agent_table.METRICS:  # where both tell, `device=""` is the controller's
        for name in found.keys() & metric.names():
            found[name] |= {"device"} & set(metric.labels)
    return found


def wrong_in(queries: Iterable[str]) -> Iterator[str]:
    """What queries name that the controller does not export."""
    known = labels_by_name()
    for query in queries:
        for name in NAMES.findall(query):
            if name not in known:
                yield name
        for name, matchers in MATCHERS.findall(query):
            for label in LABEL.findall(matchers):
                if label not in known.get(name, set()):
                    yield f"{name}{{{label}}}"


def rule_queries() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def shipped_queries() -> list[str]:
    """Of the JSON as it is, rather than of its description."""
    board = json.loads(dashboard.FILE.read_text())
    panels = [one["expr"] for panel in board["panels"] for one in panel.get("targets", ())]
    variables = [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    return [*panels, *variables]


def test_rules_and_dashboard_name_what_is_exported() -> None:
    assert len(shipped_queries()) == len(dashboard.queries()) + 3
    assert list(wrong_in([*rule_queries(), *shipped_queries()])) == []


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(lighterman_inference_duration_second_bucket[5m])",
         "lighterman_inference_duration_second_bucket"),
        ('lighterman_rollbacks_total{reason="slow"}', "lighterman_rollbacks_total{reason}"),
        ('lighterman_store_up{job=~"a",host="b"}', "lighterman_store_up{host}"),
    ],
)  # fmt: skip
def test_a_misspelt_name_is_found(query: str, wrong: str) -> None:
    assert list(wrong_in([query])) == [wrong]


def test_the_shipped_dashboard_is_what_the_program_writes() -> None:
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.render()


def test_panels_have_numbers_of_their_own_and_lie_on_the_grid() -> None:
    panels = json.loads(dashboard.FILE.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    corners = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(corners)) == len(corners)


@pytest.mark.parametrize("table", [metric_table.METRICS, agent_table.METRICS])
def test_tables_keep_the_rules_of_names(table: tuple[Metric, ...]) -> None:
    assert len(names_of(table)) == sum(len(metric.names()) for metric in table)
    for metric in table:
        assert metric.name.startswith(("lighterman_", "process_"))
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
        assert metric.help.endswith((".", ";")) or metric.help.startswith("1;"), metric.name
        if metric.labels and not metric.name.endswith("_info"):
            assert metric.series != "1", f"{metric.name}: what bounds its series?"


def test_the_names_that_were_promised() -> None:
    promised = {
        "lighterman_inference_duration_seconds": ("model", "version", "rung", "profile", "site"),
        "lighterman_rollout_devices": ("rollout", "state"),
        "lighterman_rollout_phase": ("rollout", "phase"),
        "lighterman_rung_changes_total": ("model", "from", "to", "reason"),
        "lighterman_rollbacks_total": ("model", "version", "cause"),
    }
    have = {metric.name: metric.labels for metric in metric_table.METRICS}
    assert {name: have[name] for name in promised} == promised
    assert all("device" not in labels for labels in have.values())
    promised_by_agents = {
        "lighterman_inference_duration_seconds": ("model", "version", "rung", "profile", "device"),
        "lighterman_device_temperature_celsius": ("zone", "type"),
        "lighterman_device_memory_bytes": ("kind",),
        "lighterman_rung_changes_total": ("model", "from", "to", "reason"),
        "lighterman_rollbacks_total": ("model", "version", "cause"),
    }
    have = {metric.name: metric.labels for metric in agent_table.METRICS}
    assert {name: have[name] for name in promised_by_agents} == promised_by_agents
