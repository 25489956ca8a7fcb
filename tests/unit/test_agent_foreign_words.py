"""Words of others in the agent's log and on its screens: shown on their line, never obeyed."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.app_log import JsonFormatter, TextFormatter
from agent.domain.words import in_line, one_line, plain
from agent.errors import AgentError
from agent.status import Facts, show
from controller.domain import words as controller_words
from tests.support.link_server import LinkServer, Trust, now

HOSTILE = "slow\x1b[2J\x00\n09:00:00,000 INFO    all is well\x9b1A\u202egnp"
CLEAN = "slow\ufffd[2J\ufffd 09:00:00,000 INFO    all is well\ufffd1A\ufffdgnp"


@given(st.text())
def test_both_sides_clean_alike_and_nothing_is_left_that_steers(text: str) -> None:
    assert one_line(text) == controller_words.one_line(text)
    assert one_line(text).isprintable()
    assert plain(text).replace("\n", "").isprintable()


def logged(formatter: logging.Formatter, *said: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.emit(logging.LogRecord("agent", logging.INFO, "", 1, "%s: %s", said, None))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("formatter", "lines"), [(TextFormatter, 1), (logging.Formatter, 2)], ids=["ours", "control"]
)
def test_a_name_or_message_cannot_forge_a_line(
    formatter: type[logging.Formatter], lines: int
) -> None:
    said = logged(formatter("%(levelname)s %(message)s"), HOSTILE, "applied")
    assert len(said.splitlines()) == lines
    assert (said == f"INFO {CLEAN}: applied\n") is (lines == 1)


def test_what_to_do_stands_in_the_line() -> None:
    error = AgentError("no common protocol", "update the agent")
    assert logged(TextFormatter("%(message)s"), "controller", error) == (
        "controller: no common protocol; update the agent\n"
    )


def test_json_means_what_was_said() -> None:
    line = logged(JsonFormatter(), HOSTILE, "applied")
    assert json.loads(line)["message"] == f"{HOSTILE}: applied"
    assert line.count("\n") == 1


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(Trust.create())
    yield made
    made.stop()


def test_a_refusal_is_shown_and_not_obeyed(server: LinkServer, tmp_path: Path) -> None:
    server.script.fail["Enroll"] = (grpc.StatusCode.FAILED_PRECONDITION, f"no: {HOSTILE}")
    token = server.trust.token()
    done = subprocess.run(
        [sys.executable, "-m", "agent", "enroll", "--controller", server.url, "--token", token,
         "--state-dir", str(tmp_path / "state")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no: slow\ufffd[2J")
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_status_shows_names_and_reasons_plainly() -> None:
    model = {"model": HOSTILE, "version": "1", "rung": "heavy", "phase": "COMMITTED",
             "previous": "", "reason": HOSTILE, "rung_reason": ""}  # fmt: skip
    facts = Facts(controller_state=HOSTILE, controller_hint="a\n  b", models=[model])
    lines = [in_line(line) for line in show(facts, now())]
    assert all(line.isprintable() for line in lines)
    assert "           a; b" in lines
