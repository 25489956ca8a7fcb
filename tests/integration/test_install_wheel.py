"""The wheel, installed elsewhere: lean sides stay lean and complete, the controller serves.

Uses the package index that pip is configured for; without one these tests are skipped, and say so.
"""

import os
import re
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.sources import ROOT
from tests.support.wait import wait_for

pytestmark = pytest.mark.slow

NO_INDEX = re.compile(
    r"No matching distribution|Could not find a version|ConnectionError|Connection broken|"
    r"NewConnectionError|Temporary failure in name resolution|Read timed out"
)
HEAVY = ("torch", "sqlalchemy", "alembic")
IMPORT_ALL = """
import importlib, pkgutil, sys
root = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(root.__path__, root.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted({"torch", "sqlalchemy", "alembic"} & set(sys.modules)))
"""

Install = Callable[[str], Path]


def clean_environment(tmp_path: Path) -> dict[str, str]:
    """The environment without anything that would find the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept.pop("VIRTUAL_ENV", None)
    return {**kept, "LIGHTERMAN_CONFIG_DIR": str(tmp_path / "config")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(out), str(ROOT)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return next(out.glob("lighterman-*.whl"))


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Install:
    """Makes a virtual environment with the wheel and its extras; returns its bin folder."""

    def make(extras: str) -> Path:
        root = tmp_path / "venv"
        venv.create(root, with_pip=True, symlinks=True)
        done = subprocess.run(
            [
                *(str(root / "bin" / "python"), "-m", "pip", "install", "--quiet"),
                *("-c", str(ROOT / "constraints" / "constraints.txt"), f"{wheel}[{extras}]"),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(tmp_path),
        )
        if done.returncode != 0 and NO_INDEX.search(done.stderr):
            pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        return root / "bin"

    return make


def run(tmp_path: Path, *command: str) -> str:
    """The command's output; it must succeed, and sees nothing of the checkout."""
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(tmp_path),
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed_names(tmp_path: Path, bin_dir: Path) -> set[str]:
    listed = run(tmp_path, str(bin_dir / "python"), "-m", "pip", "list", "--format=freeze")
    return {line.partition("==")[0].partition(" ")[0].lower() for line in listed.splitlines()}


@pytest.mark.parametrize(
    ("extras", "package", "command"),
    [
        ("agent,onnxruntime", "agent", "lighterman-agent"),
        ("cli", "controller.cli", "fleetctl"),
    ],
)
def test_lean_extras_are_lean_and_complete(
    install: Install, tmp_path: Path, extras: str, package: str, command: str
) -> None:
    bin_dir = install(extras)
    assert installed_names(tmp_path, bin_dir).isdisjoint(HEAVY)
    imported = run(tmp_path, str(bin_dir / "python"), "-c", IMPORT_ALL, package).split()
    assert int(imported[0]) > 3
    assert set(imported[1:]).isdisjoint(HEAVY)
    assert "usage" in run(tmp_path, str(bin_dir / command), "--help").lower()
    # The other side's commands are there too, and name what they miss.
    other = "lighterman-controller"
    refused = subprocess.run(
        [str(bin_dir / other), "serve", "--data-dir", str(tmp_path / "d")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(tmp_path),
        timeout=60,
    )
    assert refused.returncode == 1
    assert "[controller]" in refused.stderr


def test_the_wheel_carries_what_it_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "lighterman/v1/fleet_pb2.py" in names
    assert "lighterman/extras.py" in names
    assert "controller/migrations/env.py" in names
    for name in ("profiles.yaml", "prometheus/lighterman.rules.yml", "grafana/lighterman.json"):
        assert f"controller/shipped/{name}" in names
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"controller", "agent", "lighterman"}


def test_the_wheel_serves_elsewhere(install: Install, tmp_path: Path) -> None:
    bin_dir = install("controller,cli")
    data = tmp_path / "data"
    log = tmp_path / "serve.log"
    environment = clean_environment(tmp_path)
    for name in ("GRPC", "ENROLL", "MQTT", "WEB"):
        environment[f"LIGHTERMAN_LISTEN_{name}"] = "0"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(bin_dir / "lighterman-controller"), "serve", "--data-dir", str(data)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:

        def ready() -> bool:
            text = log.read_text()
            assert process.poll() is None, f"serve ended:\n{text}"
            return "ready" in text.splitlines()

        wait_for(ready, 60, "the line `ready`")
        status = run(tmp_path, str(bin_dir / "fleetctl"), "status")
        assert status
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
