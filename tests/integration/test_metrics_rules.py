"""The shipped alert rules, by promtool: valid, right on made-up series, and each test can fail."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus import RULES, promtool
from tests.support.sources import ROOT

CASES = Path(__file__).with_name("metrics_rules.yml")


def shipped() -> Any:
    return yaml.safe_load(RULES.read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in shipped()["groups"] for rule in group["rules"]]


def said_of(folder: Path, rules: str) -> tuple[int, str]:
    """What `promtool test rules` says of our cases with these rules."""
    (folder / "rules.yml").write_text(rules)
    (folder / "cases.yml").write_text(CASES.read_text().replace("[RULES]", "[rules.yml]"))
    return promtool("test", "rules", str(folder / "cases.yml"))


def test_promtool_takes_the_rules() -> None:
    code, said = promtool("check", "rules", str(RULES))
    assert code == 0, said


def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    code, said = said_of(tmp_path, RULES.read_text())
    assert code == 0, said


def test_every_alert_has_cases() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fires = {
        case["alertname"]
        for test in cases
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fires == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("name", [alert["alert"] for alert in alerts()])
@pytest.mark.parametrize("broken", ["vector(0) > 1", "vector(1)"], ids=["never", "always"])
def test_a_broken_rule_is_noticed(tmp_path: Path, name: str, broken: str) -> None:
    rules = shipped()
    for group in rules["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == name:
                rule["expr"] = broken
    code, said = said_of(tmp_path, yaml.safe_dump(rules))
    assert code != 0
    assert name in said


def test_negative_control_a_rule_that_counts_devices_twice_is_noticed(tmp_path: Path) -> None:
    rules = RULES.read_text()
    assert ',device=""' in rules
    code, said = said_of(tmp_path, rules.replace(',device=""', ""))
    assert code != 0
    assert "LightermanLatencyOverBudget" in said


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_what_is_wrong_and_where_to_read_on(alert: dict[str, Any]) -> None:
    said = alert["annotations"]
    assert set(said) == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in ("warning", "critical")
    page, _, anchor = said["runbook"].partition("#")
    headings = [
        line.removeprefix("## ").strip().lower()
        for line in (ROOT / page).read_text().splitlines()
        if line.startswith("## ")
    ]
    assert anchor in headings
