"""The systemd unit as shipped: what systemd itself says of it. Nothing is installed or started."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.__main__ import service_file
from tests.support.sources import ROOT

SYSTEMD = ROOT / "agent" / "systemd"
# Exposure in tenths, as `--threshold` takes it: 2.5 of 10.
EXPOSURE = 25

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit for this very environment, because systemd looks for the command."""
    command = Path(sys.executable).with_name("lighterman-agent")
    path = tmp_path / "lighterman-agent.service"
    path.write_text(service_file(command))
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


def verify(unit: Path) -> str:
    """What it says; it ends with 0 after bad values, so any word is a failure."""
    done = analyze("verify", "--man=no", str(unit))
    return done.stdout or ("" if done.returncode == 0 else f"exit code {done.returncode}")


@needs_systemd
def test_systemd_has_nothing_to_say_of_the_unit(unit: Path) -> None:
    assert verify(unit) == ""


@needs_systemd
@pytest.mark.parametrize("bad", ["WatchdogSec=often", "WatchDogSec=30", "ProtectSystem=maybe"])
def test_a_bad_line_would_be_found(unit: Path, bad: str) -> None:
    text = unit.read_text().replace("UMask=0077", bad)
    unit.write_text(text)
    assert verify(unit) != ""


def exposed(unit: Path) -> subprocess.CompletedProcess[str]:
    return analyze("security", "--offline=yes", f"--threshold={EXPOSURE}", str(unit))


@needs_systemd
def test_the_service_is_exposed_no_more_than_promised(unit: Path) -> None:
    done = exposed(unit)
    assert done.returncode == 0, done.stdout


@needs_systemd
def test_a_service_without_its_walls_is_exposed(unit: Path) -> None:
    kept = [
        line
        for line in unit.read_text().splitlines()
        if not re.match(r"(Protect|Private|SystemCall|Capability|Restrict[A-Z])", line)
    ]
    unit.write_text("\n".join(kept))
    assert exposed(unit).returncode != 0


@needs_systemd
@pytest.mark.parametrize("name", ["jetson.conf", "openvino.conf"])
def test_the_drop_ins_fit_the_unit(unit: Path, name: str) -> None:
    folder = unit.with_name("lighterman-agent.service.d")
    folder.mkdir()
    shutil.copy(SYSTEMD / name, folder)
    assert verify(unit) == ""


def test_the_unit_never_stays_dead() -> None:
    text = (SYSTEMD / "lighterman-agent.service").read_text()
    for line in ("Type=notify", "Restart=always", "StartLimitIntervalSec=0", "WatchdogSec=30"):
        assert line in text.splitlines()


def test_the_printed_unit_starts_this_installation() -> None:
    printed = service_file(Path("/srv/lm/bin/lighterman-agent"))
    assert "ExecStart=/srv/lm/bin/lighterman-agent run\n" in printed
    assert "/opt/lighterman" not in printed
