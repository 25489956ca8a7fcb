"""The set-up behind make: says what it needs, and does nothing the second time."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.sources import ROOT

TOOLS = ("sh", "dirname", "cat", "cksum", "tr", "printf", "tail", "id")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the set-up reads of a checkout, and a `bin` with little more than a shell."""
    for name in ("tools/setup.sh", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found is not None:
            (bin_dir / tool).symlink_to(found)
    return tmp_path


def fake(path: Path, script: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run_setup(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    shell = shutil.which("sh")
    assert shell is not None
    return subprocess.run(
        [shell, "tools/setup.sh", *arguments],
        cwd=checkout,
        env={"PATH": str(checkout / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_old_python_is_named(checkout: Path) -> None:
    fake(checkout / "bin" / "python3", '[ "$1" = --version ] && echo "Python 3.9.2" || exit 1')
    done = run_setup(checkout, "dev")
    assert done.returncode == 1
    assert "needs Python 3.11 or newer, found: Python 3.9.2" in done.stderr
    assert "PYTHON=" in done.stderr


def test_nothing_happens_the_second_time(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # Stands for an interpreter whose pip is happy with everything.
    calls = checkout / "calls"
    fake(python, f'case "$*" in *pip*) echo "$*" >>{calls} ;; esac; exit 0')
    first = run_setup(checkout, "dev")
    assert first.returncode == 0, first.stderr
    assert "installing" in first.stdout
    assert "--constraint constraints/constraints.txt --editable .[dev]" in calls.read_text()
    calls.unlink()
    second = run_setup(checkout, "dev")
    assert (second.returncode, second.stdout, calls.exists()) == (0, "", False)
    with (checkout / "constraints" / "constraints.txt").open("a") as constraints:
        constraints.write("# changed\n")
    assert "installing" in run_setup(checkout, "dev").stdout


def test_a_failed_installation_is_tried_again(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fake(python, 'case "$*" in *pip*) echo "no such index" >&2; exit 1 ;; esac; exit 0')
    for _ in range(2):
        done = run_setup(checkout, "dev")
        assert done.returncode == 1
        assert "no such index" in done.stderr
        assert "installing the Python packages failed" in done.stderr


def test_an_unknown_mode_is_refused(checkout: Path) -> None:
    done = run_setup(checkout, "everything")
    assert done.returncode == 1
    assert "unknown set-up: everything" in done.stderr


@pytest.mark.parametrize("there", [(), ("mosquitto",)])
def test_without_root_a_missing_broker_is_named(checkout: Path, there: tuple[str, ...]) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fake(python, "exit 0")
    fake(checkout / "bin" / "id", "echo 1000")
    for name in there:
        fake(checkout / "bin" / name, "exit 0")
    done = run_setup(checkout, "demo", "broker")
    assert done.returncode == 1
    assert "apt-get install mosquitto mosquitto-clients" in done.stderr


def test_both_programs_of_the_broker_are_enough(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fake(python, "exit 0")
    fake(checkout / "bin" / "id", "echo 1000")
    fake(checkout / "bin" / "mosquitto", "exit 0")
    fake(checkout / "bin" / "mosquitto_sub", "exit 0")
    first = run_setup(checkout, "demo", "broker")
    assert first.returncode == 0, first.stderr
    second = run_setup(checkout, "demo", "broker")
    assert (second.returncode, second.stdout) == (0, "")
