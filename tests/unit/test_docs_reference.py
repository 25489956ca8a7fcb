"""Examples in the reference are what the code takes and gives."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli.apply import read_objects
from controller.domain.build import parse_recipe
from controller.domain.device import parse_profile
from controller.domain.group import parse_group
from controller.domain.ladder import parse_policy
from controller.errors import InvalidError
from controller.services.telemetry import ModelStatus, Telemetry, health_document

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
PARSERS: dict[str, Any] = {
    "Profile": parse_profile,
    "Policy": parse_policy,
    "Recipe": parse_recipe,
    "Group": parse_group,
}


def blocks(page: str, language: str) -> list[str]:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def objects() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks("objects.md", "yaml")]


@pytest.mark.parametrize("document", objects(), ids=lambda d: d["kind"])
def test_every_documented_object_is_taken(document: dict[str, Any]) -> None:
    PARSERS[document["kind"]](document["name"], document["spec"])


@pytest.mark.parametrize("document", objects(), ids=lambda d: d["kind"])
def test_a_misspelt_key_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        PARSERS[document["kind"]](document["name"], {**document["spec"], "prioritee": 1})


@pytest.mark.parametrize("document", objects(), ids=lambda d: d["kind"])
def test_fleetctl_takes_every_documented_object(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert [one.kind for one in read_objects(tmp_path / "o.yaml")] == [document["kind"]]


def test_every_kind_is_documented() -> None:
    assert {document["kind"] for document in objects()} == set(PARSERS)


def test_the_health_document_has_the_documented_fields() -> None:
    documented = json.loads(blocks("mqtt.md", "json")[0])
    model = ModelStatus("photo", "1.1.0", "heavy", "COMMITTED", "")
    telemetry = Telemetry(models=(model,), temperature_c=47.0)
    now = datetime(2026, 11, 24, tzinfo=UTC)
    given = health_document("n100-1", "intel-n100", now, True, telemetry)
    assert list(given) == list(documented)
    assert list(given["models"][0]) == list(documented["models"][0])
