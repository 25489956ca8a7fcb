"""The table of settings says what the code does: a row for each field, with the real default."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import agent.settings
import controller.settings
from lighterman.settings import Setting

SIDES = [
    pytest.param(controller.settings.SETTINGS, controller.settings.Settings, id="controller"),
    pytest.param(agent.settings.SETTINGS, agent.settings.Settings, id="agent"),
]


def as_written(name: str, value: Any) -> str:
    """A field's default as the table writes it."""
    match value:
        case None | False:
            return "off"
        case True:
            return "on"
        case int() if name.endswith("_mode"):
            return f"{value:o}"
        case tuple():
            return ",".join(value)
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


@pytest.mark.parametrize(("rows", "fields"), SIDES)
def test_every_field_has_a_row_with_its_default(
    rows: tuple[Setting, ...], fields: Callable[..., Any]
) -> None:
    table = {row.name.replace(".", "_"): row.default for row in rows}
    code = {
        field.name: as_written(field.name, field.default)
        for field in dataclasses.fields(fields)  # type: ignore[arg-type]
    }
    assert table == code


@pytest.mark.parametrize(("rows", "fields"), SIDES)
def test_environment_names_follow_the_setting(
    rows: tuple[Setting, ...], fields: Callable[..., Any]
) -> None:
    for row in rows:
        assert row.env == "LIGHTERMAN_" + row.name.upper().replace(".", "_")
        assert row.help.endswith(".")
        suffix = row.name.rpartition("_")[2]
        if suffix in ("s", "bytes", "ms"):
            assert row.unit == suffix


def test_the_reference_page_names_every_environment_variable() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
    for row in (*controller.settings.SETTINGS, *agent.settings.SETTINGS):
        assert f"`{row.env}`" in page
