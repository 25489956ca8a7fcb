"""Where fleetctl's output goes: a full disk, a tail that is interrupted, a form that has no end."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.gateway import Running, running

TAILS = (("event", "tail"), ("admin", "telemetry", "tail"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("streams") / "data") as started:
        yield started


def command(home: Running, *words: str) -> list[str]:
    context = str(home.folder / "operator.json")
    return [sys.executable, "-m", "controller.cli", "--context", context, *words]


@pytest.mark.parametrize("held_back", [True, False])
@pytest.mark.parametrize("form", ["table", "json", "yaml", "name"])
def test_a_full_disk_behind_the_output_is_told(
    home: Running, form: str, held_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if held_back else "1")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            command(home, "admin", "profile", "list", "-o", form),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the output cannot be written: No space left on device"
    ]


@pytest.mark.parametrize("held_back", [True, False])
def test_whoever_reads_no_more_is_told_nothing(
    home: Running, held_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if held_back else "1")
    child = subprocess.Popen(
        command(home, "admin", "profile", "list"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == b""
    assert child.wait(20) == 1


@pytest.mark.parametrize("tail", TAILS, ids=" ".join)
def test_whoever_ends_a_tail_has_seen_enough(home: Running, tail: tuple[str, ...]) -> None:
    child = subprocess.Popen(
        command(home, *tail), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(3)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
    finally:
        child.kill()
    assert (child.returncode, said) == (0, "")


@pytest.mark.parametrize("tail", TAILS, ids=" ".join)
def test_a_tail_has_no_end_and_so_no_yaml(home: Running, tail: tuple[str, ...]) -> None:
    done = subprocess.run(
        command(home, *tail, "-o", "yaml"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "-o json gives one document a line" in done.stderr
