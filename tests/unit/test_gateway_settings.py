"""Where settings come from, which source wins, and that nothing unknown passes."""

from pathlib import Path

import pytest

from controller.errors import InvalidError
from controller.settings import SETTINGS, Settings, load_settings, parse_value


def test_the_defaults_of_the_table_read_as_the_defaults_of_the_code() -> None:
    settings = Settings()
    for row in SETTINGS:
        attribute = row.name.replace(".", "_")
        assert parse_value(attribute, row.default, row.name) == getattr(settings, attribute)


def test_flags_beat_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('log = "json"\npoll_s = 5\n[listen]\ngrpc = 1\nmqtt = 2\nweb = 3\n')
    environ = {"LIGHTERMAN_LISTEN_MQTT": "20", "LIGHTERMAN_LISTEN_WEB": "30", "OTHER": "x"}
    settings = load_settings(file, environ, {"listen.web": "300"})
    assert (settings.listen_grpc, settings.listen_mqtt, settings.listen_web) == (1, 20, 300)
    assert (settings.log, settings.poll_s) == ("json", 5.0)


def test_host_names_come_as_text_or_list(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('advertise = ["a.example", "b.example"]\n')
    assert load_settings(file, {}, {}).names() == ("a.example", "b.example")
    environ = {"LIGHTERMAN_ADVERTISE": "c.example, d.example"}
    assert load_settings(None, environ, {}).names() == ("c.example", "d.example")
    assert load_settings(None, {}, {}).names() == ("127.0.0.1",)


def test_other_variables_of_the_product_are_not_ours() -> None:
    assert load_settings(None, {"LIGHTERMAN_STATE_DIR": "/x"}, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gprc = 1", "gprc"),
        ("[listen]\ngprc = 1", "listen.gprc"),
        ('[listen]\ngrpc = "many"', "listen.grpc"),
        ("[listen]\ngrpc = 70000", "listen.grpc"),
        ("workers = 2", "workers"),
        ("workers = true", "workers"),
        ('log = "loud"', "log"),
        ("sample_flush_s = 0", "sample_flush_s"),
        ("sample_flush_s = nan", "sample_flush_s"),
        ("= 1", "TOML"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(InvalidError, match=told):
        load_settings(file, {}, {})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="cannot be read"):
        load_settings(tmp_path / "none.toml", {}, {})


def test_a_line_end_of_a_secret_is_no_part_of_it() -> None:
    environ = {"LIGHTERMAN_DATABASE": "postgresql://u:p@h/n\n", "LIGHTERMAN_LOG": " json\n"}
    settings = load_settings(None, environ, {})
    assert (settings.database, settings.log) == ("postgresql://u:p@h/n", "json")


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:70000", "a/b:1", "h:²"])
def test_an_address_of_a_broker_has_host_and_port(address: str) -> None:
    with pytest.raises(InvalidError, match="broker_address"):
        parse_value("broker_address", address, "broker_address")
    assert parse_value("broker_address", "mqtt.example:8883", "x") == "mqtt.example:8883"
