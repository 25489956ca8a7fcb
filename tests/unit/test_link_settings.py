"""Settings of the agent: where they come from, and what is refused instead of guessed."""

from dataclasses import fields
from pathlib import Path

import pytest

from agent.settings import SETTINGS, Settings, SettingsError, load_settings


def test_every_setting_is_in_the_table_with_its_default() -> None:
    assert [s.name for s in SETTINGS] == [f.name for f in fields(Settings)]
    assert load_settings({}, environ={}) == Settings()
    assert all(s.env == f"LIGHTERMAN_{s.name.upper()}" for s in SETTINGS)


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('state_dir = "/file"\ntelemetry_s = 3\nlog = "json"\n')
    environ = {"LIGHTERMAN_STATE_DIR": "/environ", "LIGHTERMAN_TELEMETRY_S": "2"}
    found = load_settings({"state_dir": "/flag"}, file, environ)
    assert (found.state_dir, found.telemetry_s, found.log) == (Path("/flag"), 2.0, "json")


@pytest.mark.parametrize(
    ("environ", "story"),
    [
        ({"LIGHTERMAN_TELEMETRY_S": "soon"}, "'soon' is not a number"),
        ({"LIGHTERMAN_TELEMETRY_S": "0"}, "not between"),
        ({"LIGHTERMAN_TELEMETRY_S": "nan"}, "not between"),
        ({"LIGHTERMAN_LISTEN_GRPC": "8001"}, "not HOST:PORT"),
        ({"LIGHTERMAN_LISTEN_GRPC": "127.0.0.1:99999"}, "not HOST:PORT"),
        ({"LIGHTERMAN_LOG": "xml"}, "none of text, json"),
    ],
)
def test_what_cannot_be_meant_is_refused(environ: dict[str, str], story: str) -> None:
    with pytest.raises(SettingsError, match=story):
        load_settings({}, environ=environ)


@pytest.mark.parametrize(
    ("text", "story"),
    [
        ("statedir = 'x'", "'statedir' is unknown"),
        ("log = [1]", "a text or a number"),
        ("log = ", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, story: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=story):
        load_settings({}, file, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings({}, tmp_path / "absent.toml", {})
