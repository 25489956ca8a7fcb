"""A misspelt LIGHTERMAN_* variable is named with the one that was meant; foreign ones are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.settings import SETTINGS as AGENT
from controller.settings import SETTINGS as CONTROLLER
from lighterman.settings import NAMES, PREFIX, slips

OF_THE_COMMAND_LINE = {"LIGHTERMAN_CONFIG_DIR", "LIGHTERMAN_CONTEXT"}
# What Kubernetes sets in a pod beside services called `lighterman` and `lighterman-mqtt`.
OF_KUBERNETES = [
    f"LIGHTERMAN{service}_{name}"
    for service in ("", "_MQTT")
    for name in (
        "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "SERVICE_PORT_ENROLL",
        "SERVICE_PORT_WEB", "SERVICE_PORT_MQTT", "PORT", "PORT_7443_TCP", "PORT_7443_TCP_ADDR",
        "PORT_7443_TCP_PORT", "PORT_7443_TCP_PROTO",
    )
]  # fmt: skip


def test_every_name_that_is_read_is_known() -> None:
    assert {s.env for s in (*AGENT, *CONTROLLER)} | OF_THE_COMMAND_LINE == NAMES


@pytest.mark.parametrize(
    ("name", "meant"),
    [("TELEMETRY", "TELEMETRY_S"), ("STATEDIR", "STATE_DIR"), ("SERVE_GPRC", "SERVE_GRPC")],
)
def test_a_slip_is_named_with_what_was_meant(name: str, meant: str) -> None:
    said = slips([PREFIX + name, PREFIX + meant, "HOME"], AGENT)
    assert said == [f"{PREFIX}{name} is not read by anybody: did you mean {PREFIX}{meant} ?"]


@pytest.mark.parametrize("settings", [AGENT, CONTROLLER])
def test_names_of_others_are_no_slips(settings: tuple[object, ...]) -> None:
    # The negative control of the test above: what is read by one of us, or by other tools.
    assert slips([*NAMES, *OF_KUBERNETES, "LIGHTERMAN_FRONTEND_URL"], settings) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "words", "wrong", "right"),
    [
        ("agent", ["status"], "STATE_DIRR", "STATE_DIR"),
        ("controller", ["operator", "list"], "DATADIR", "DATA_DIR"),
    ],
)
def test_commands_say_it_and_go_on(
    module: str, words: list[str], wrong: str, right: str, tmp_path: Path
) -> None:
    def told(name: str) -> str:
        where = {PREFIX + right: str(tmp_path), PREFIX + name: str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", module, *words], env={**os.environ, **where},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stderr

    warning = f"warning: {PREFIX}{wrong} is not read by anybody: did you mean {PREFIX}{right} ?\n"
    assert told(wrong) == warning + told(right)
    assert "warning" not in told(right)
