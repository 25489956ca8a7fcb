"""Words of others on an operator's terminal: shown, never obeyed, wherever fleetctl prints them."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from controller.cli import events as event_screen
from controller.cli import printable, root, session
from controller.store import devices, events
from tests.support.gateway import Running, running
from tests.support.stores import seed_device

# Renames the window, colours, clears the screen; then a line that nobody wrote; then C1 and bidi.
HOSTILE = "\x1b]0;owned\x07\x1b[31m\x1b[2J\nnothing is wrong\r\x9b1A\u202egnp.exe"
STEERING = "\x1b\x07\r\x9b\u202e"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("foreign") / "data") as started:
        with started.deps.store.write() as conn:
            seed_device(conn, "odd-1")
            devices.update_device(conn, "odd-1", profile="intel-n100", online=True)
            # What an older controller stored as it came; today's cleans it at the door.
            events.append(
                conn,
                "default",
                started.ctx("ana").now,
                "agent_note",
                "odd-1",
                device_id="odd-1",
                model="digits",
                version="1.0.0",
                reason=HOSTILE,
                details={"why": HOSTILE},
            )
        yield started


def run(home: Running, *words: str, expect: int = 0) -> str:
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = root.run(["--context", str(home.folder / "operator.json"), *words])
    assert code == expect, said.getvalue()
    return said.getvalue()


SCREENS = {
    "events": ("event", "list"),
    "events, wide": ("event", "list", "-o", "wide"),
    "events, JSON": ("event", "list", "-o", "json"),
    "events, YAML": ("event", "list", "-o", "yaml"),
    "explain": ("device", "explain", "odd-1"),
    "an error": ("device", "show", HOSTILE),
}


@pytest.mark.parametrize("name", SCREENS)
def test_nothing_that_steers_a_terminal_is_printed(home: Running, name: str) -> None:
    said = run(home, *SCREENS[name], expect=1 if name == "an error" else 0)
    assert not set(said) & set(STEERING) - ({"\u202e"} if "YAML" in name else set())
    assert not any(line.startswith("nothing is wrong") for line in said.splitlines())
    assert "gnp.exe" in said


def test_json_means_the_same(home: Running) -> None:
    (event,) = json.loads(run(home, "event", "list", "--device", "odd-1", "-o", "json"))["items"]
    assert event["reason"] == HOSTILE


def test_negative_control_unwatched_words_would_be_obeyed(
    home: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    same: Callable[[str], str] = str
    for module in (event_screen, session, root):
        for name in ("printable", "one_line", "printable_json"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, same)
    said = run(home, "event", "list")
    assert "\x1b[2J" in said
    assert any(line.startswith("nothing is wrong") for line in said.splitlines())
    assert printable.printable(said) != said
