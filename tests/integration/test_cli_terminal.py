"""fleetctl on a terminal: bars, frames that give way to the result, jobs that are joined."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.services.builds import start_build
from controller.services.jobs import beat_job, complete_job
from tests.support.catalogue import World, tiny_onnx
from tests.support.gateway import Running, running
from tests.support.wait import wait_for

PROFILE = "intel-n100"
BUILD = ("--profile", PROFILE, "--recipe", "onnxruntime-fp32")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("terminal") / "data") as started:
        yield started


class Terminal:
    """A command on a pseudo terminal of 100 columns; `seen` is every byte that it wrote."""

    def __init__(self, home: Running, *words: str) -> None:
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        context = str(home.folder / "operator.json")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "controller.cli", "--context", context, *words],
            stdin=inner, stdout=inner, stderr=inner,
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"},
        )  # fmt: skip
        os.close(inner)
        self._said = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # the other side was closed
                return
            if not data:
                return
            self._said += data

    @property
    def seen(self) -> str:
        return self._said.decode("utf-8", "replace")

    def ends(self, code: int) -> str:
        """Wait for its end; gives all that it wrote."""
        assert self.process.wait(60) == code, self.seen
        self._reader.join(10)
        os.close(self._fd)
        return self.seen


def after_frames(seen: str) -> str:
    """What stands on the screen behind the last frame, without what steers it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", seen.rpartition(SHOW)[2])


def test_a_push_shows_what_was_sent_and_takes_the_bar_away(home: Running, tmp_path: Path) -> None:
    file = tmp_path / "heavy.onnx"
    file.write_bytes(tiny_onnx(1))
    seen = Terminal(home, "model", "push", "digits:1.0.0", "--variant", f"heavy={file}").ends(0)
    assert HIDE in seen
    assert seen.count(SHOW) == seen.count(HIDE), "the cursor is there again"
    assert re.search(r"sending .*━", seen), "a bar"
    assert "sending" not in after_frames(seen)
    assert "pushed digits:1.0.0" in seen


def test_a_wait_joins_what_runs_and_shows_it_to_its_end(home: Running) -> None:
    world = World(home.deps, home.ctx("ana"))
    world.push("joined:1.0.0", [("heavy", tiny_onnx(4))])
    world.push_data("joined")
    ask = {"model": "joined", "version": "1.0.0", "profiles": [PROFILE]}
    start_build(world.deps, world.ctx, recipes=["onnxruntime-fp32"], **ask)  # type: ignore[arg-type]
    job = world.claim()
    beat_job(
        world.deps, world.ctx, job_id=job.job_id, lease=job.lease, step="evaluating",
        progress_pct=61.0,
    )  # fmt: skip
    terminal = Terminal(home, "build", "run", "joined:1.0.0", *BUILD, "--wait")
    wait_for(lambda: "evaluating 61 %" in terminal.seen, 60, f"the job\n{terminal.seen}")
    complete_job(
        world.deps, world.ctx, job_id=job.job_id, lease=job.lease, ok=False, error="the disk broke"
    )
    seen = terminal.ends(1)
    assert re.search(r"━.*evaluating 61 %", seen), "a bar beside what is being done"
    assert "failed: the disk broke" in seen
    assert "heavy: no build passed" in after_frames(seen)
    # Again, and this time to a good end: the same wait.
    terminal = Terminal(home, "build", "retry", "joined:1.0.0", "--wait")
    wait_for(lambda: "queued" in terminal.seen, 60, f"the queue\n{terminal.seen}")
    world.finish_all()
    seen = terminal.ends(0)
    assert "done" in seen
    assert seen.count(SHOW) == seen.count(HIDE)
