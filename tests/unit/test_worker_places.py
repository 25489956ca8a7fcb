"""The worker's folder: one worker at a time, and what killed ones left is removed; nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from controller.errors import RefusedError
from controller.worker.places import PREFIX, remove_stale, workplace

HOLD = """
import sys, tempfile
from pathlib import Path
from controller.worker.places import workplace
tempfile.tempdir = sys.argv[1]
with workplace(None) as folder:
    (folder / "cache").mkdir()
    (folder / "cache" / "large").write_bytes(bytes(1000))
    print(folder, flush=True)
    input()
"""


def start(parent: Path) -> "tuple[subprocess.Popen[bytes], Path]":
    """A process that works in a temporary folder of its own until it is ended."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    return child, Path(child.stdout.readline().decode().strip())


def test_what_a_killed_worker_left_goes_at_the_next_start_and_a_living_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lighterman-other").mkdir()
    (tmp_path / f"{PREFIX}no-lock-yet").mkdir()
    alive, its = start(tmp_path)
    dead, left = start(tmp_path)
    dead.kill()
    dead.communicate(timeout=10)
    assert dead.returncode == -signal.SIGKILL
    assert (left / "cache" / "large").exists(), "a killed worker cleans nothing"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with workplace(None) as mine:
        assert not left.exists()
        assert (its / "cache" / "large").exists()
        assert remove_stale(tmp_path) == 0, "our own is held as well"
        assert mine.exists()
    assert not mine.exists()
    alive.communicate(b"\n", timeout=10)
    assert not its.exists(), "one that ends by itself leaves nothing"
    assert sorted(os.listdir(tmp_path)) == ["lighterman-other", f"{PREFIX}no-lock-yet"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "lock").write_text("")
    (tmp_path / f"{PREFIX}link").symlink_to(victim)
    assert remove_stale(tmp_path) == 0
    assert victim.exists()


def test_two_workers_never_share_a_folder(tmp_path: Path) -> None:
    with (
        workplace(tmp_path / "work") as folder,
        pytest.raises(RefusedError, match="another worker works in"),
        workplace(folder),
    ):
        pass
    with workplace(tmp_path / "work"):
        pass
