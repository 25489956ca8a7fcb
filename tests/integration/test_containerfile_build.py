"""The build stages of the Containerfiles, run without a container engine: their own commands, here.

Paths of the image lie in a folder; only what .dockerignore lets through is copied. Uses the package
index that pip is configured for; without one these tests are skipped, and say so. PyTorch is left
out (EXTRAS, as the guide says): it is the same pip command with some gigabytes more.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.containerfile import Instruction, read_containerfile
from tests.support.sources import ROOT

pytestmark = pytest.mark.slow

NO_INDEX = re.compile(
    r"No matching distribution|Could not find a version|ConnectionError|Connection broken|"
    r"NewConnectionError|Temporary failure in name resolution|Read timed out"
)
PATHS = ("/opt/lighterman", "/wheels", "/src")


def place(text: str, root: Path) -> str:
    """`text` with the paths of the image below `root`."""
    for path in PATHS:
        text = re.sub(rf"(?<![\w/.]){path}(?![\w-])", f"{root}{path}", text)
    return text


def copy(instruction: Instruction, root: Path) -> None:
    """COPY into the working folder, as the build context has it."""
    *sources, target = instruction.words()
    for source in sources:
        into = root / "src" / target
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = into / Path(source).name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / source, into)


def build(name: str, root: Path, **arguments: str) -> None:
    """Run the first stage."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
    environment["PATH"] = f"{root}/bin:{environment['PATH']}"
    (root / "bin").mkdir()
    (root / "bin" / "python").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    (root / "src").mkdir()
    for one in read_containerfile(name):
        if one.stage != 0:
            continue
        if one.word == "ARG":
            key, _, value = one.rest.partition("=")
            environment[key] = arguments.get(key, value)
        elif one.word == "COPY":
            copy(one, root)
        elif one.word == "RUN":
            done = subprocess.run(
                ["sh", "-ec", place(one.rest, root)],
                cwd=root / "src",
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0 and NO_INDEX.search(done.stderr):
                pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
            assert done.returncode == 0, f"{one.rest}\n{done.stderr}"


@pytest.mark.parametrize(
    ("name", "extras", "command"),
    [
        ("Containerfile.agent", "agent,onnxruntime", ["lighterman-agent", "run", "--help"]),
        ("Containerfile.controller", "cli,controller", ["lighterman-controller", "serve", "-h"]),
    ],
)
def test_the_build_stage_makes_an_environment_that_runs(
    tmp_path: Path, name: str, extras: str, command: list[str]
) -> None:
    build(name, tmp_path, EXTRAS=extras)
    made = tmp_path / "opt" / "lighterman"
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(made / "bin" / command[0]), *command[1:]],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packages = made / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    assert not (packages / "torch").exists()
    assert (packages / "sqlalchemy").exists() is ("controller" in extras)
    assert (packages / "controller" / "shipped" / "profiles.yaml").exists()
    assert (packages / "controller" / "migrations" / "env.py").exists()
