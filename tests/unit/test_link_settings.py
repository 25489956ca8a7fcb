"""Settings of the agent: where they come from, and what is refused instead of guessed."""

from dataclasses import fields
from pathlib import Path

import pytest

from agent.settings import SETTINGS, Settings, SettingsError, load_settings


def test_every_setting_is_in_the_table_with_its_default() -> None:
    assert [s.name.replace(".", "_") for s in SETTINGS] == [f.name for f in fields(Settings)]
    assert load_settings({}, environ={}) == Settings()
    assert all(s.env == f"LIGHTERMAN_{s.name.upper().replace('.', '_')}" for s in SETTINGS)


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
        ({"LIGHTERMAN_SERVE_GRPC": "8001"}, "not HOST:PORT"),
        ({"LIGHTERMAN_SERVE_GRPC": "127.0.0.1:99999"}, "not HOST:PORT"),
        ({"LIGHTERMAN_SERVE_HTTP": "8000"}, "not HOST:PORT"),
        ({"LIGHTERMAN_SERVE_SOCKET": "run/http.sock"}, "neither an absolute path nor off"),
        ({"LIGHTERMAN_SERVE_MODE": "rw-"}, "no octal permissions"),
        ({"LIGHTERMAN_SERVE_MODE": "0888"}, "no octal permissions"),
        ({"LIGHTERMAN_SERVE_MODE": "4660"}, "more than read, write and execute"),
        ({"LIGHTERMAN_SERVE_SHARED_MEMORY": "yes"}, "none of on, off"),
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
        ("[serve]\nhttps = 'x'", "'serve.https' is unknown"),
        ("[serve.grpc]\nport = 1", "a text or a number"),
        ("listen_grpc = '127.0.0.1:1'", "'listen_grpc' has another name now\n +write serve.grpc"),
        ("log = ", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, story: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=story):
        load_settings({}, file, {})


def test_the_http_road_is_on_loopback_and_memory_is_not_shared_unless_asked_for() -> None:
    found = load_settings({}, environ={})
    assert (found.serve_http, found.serve_socket) == ("127.0.0.1:8000", None)
    assert (found.serve_mode, found.serve_shared_memory) == (0o660, False)
    names = ("HTTP", "SOCKET", "MODE", "SHARED_MEMORY")
    values = ("off", "/run/x.sock", "0600", "on")
    environ = {f"LIGHTERMAN_SERVE_{n}": v for n, v in zip(names, values, strict=True)}
    found = load_settings({}, environ=environ)
    assert (found.serve_http, found.serve_socket) == ("off", Path("/run/x.sock"))
    assert (found.serve_mode, found.serve_shared_memory) == (0o600, True)


def test_the_serving_address_has_a_table_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[serve]\ngrpc = "0.0.0.0:8001"\n')
    assert load_settings({}, file, {}).serve_grpc == "0.0.0.0:8001"
    environ = {"LIGHTERMAN_SERVE_GRPC": "127.0.0.1:9001"}
    assert load_settings({}, file, environ).serve_grpc == "127.0.0.1:9001"


def test_the_old_name_is_refused_and_the_controllers_port_is_not_taken_for_it() -> None:
    with pytest.raises(SettingsError, match=r"LIGHTERMAN_SERVE_GRPC=127\.0\.0\.1:9001"):
        load_settings({}, environ={"LIGHTERMAN_LISTEN_GRPC": "127.0.0.1:9001"})
    # The controller's own, on a machine that runs both.
    assert load_settings({}, environ={"LIGHTERMAN_LISTEN_GRPC": "7443"}) == Settings()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings({}, tmp_path / "absent.toml", {})
