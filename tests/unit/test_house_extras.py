"""Commands exist without their extra and name it; the lean sides import nothing heavy."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from lighterman.extras import missing_modules, require_extra
from tests.support.sources import ROOT

HEAVY_FOR_AGENT = ("torch", "sqlalchemy", "alembic", "onnx", "click", "rich", "starlette")


def test_present_modules_are_not_missing() -> None:
    assert missing_modules("json", "os.path") == []
    assert missing_modules("json", "surely_absent", "surely_absent.child") == [
        "surely_absent",
        "surely_absent.child",
    ]


def test_a_missing_extra_ends_the_command_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        require_extra("cli", "json", "surely_absent", command="fleetctl")
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: fleetctl needs the extra [cli]")
    assert "surely_absent" in said
    assert "pip install 'lighterman[cli]'" in said


def test_an_installed_extra_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    require_extra("cli", "json")
    assert capsys.readouterr().err == ""


def import_in_a_bare_interpreter(tmp_path: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Run the module's `main` where none of our dependencies can be found."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'proto')!r}]; "
        f"sys.argv = ['the-command', '--help']; "
        f"import importlib; importlib.import_module({module!r}).main()"
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("controller.cli.__main__", "cli"),
        ("controller.__main__", "controller"),
        ("agent.__main__", "agent"),
    ],
)
def test_commands_name_the_extra_they_miss(tmp_path: Path, module: str, extra: str) -> None:
    done = import_in_a_bare_interpreter(tmp_path, module)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 1:
        assert f"[{extra}" in done.stderr


def test_the_agent_imports_nothing_heavy() -> None:
    code = (
        "import importlib, pkgutil, sys, agent\n"
        "names = [m.name for m in pkgutil.walk_packages(agent.__path__, 'agent.')]\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        f"print(len(names), sorted(m for m in {HEAVY_FOR_AGENT!r} if m in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    count, _, heavy = done.stdout.strip().partition(" ")
    assert heavy == "[]"
    assert int(count) > 5


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_runtimes_register_by_entry_point(name: str) -> None:
    (found,) = entry_points(group="lighterman.runtimes", name=name)
    assert callable(found.load())
    (built,) = entry_points(group="lighterman.builders", name=name)
    assert callable(built.load().compile_build)


def test_devices_and_the_demo_get_no_tools_of_build_workers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for lean in ("agent", "onnxruntime", "openvino", "cli"):
        names = {re.split(r"[^a-z-]", one)[0] for one in extras[lean]}
        assert not names & {"nncf", "torch", "onnx", "sqlalchemy", "lighterman"}, lean
    setup = (ROOT / "tools" / "setup.sh").read_text()
    (demo,) = re.findall(r"demo\) pip_install --editable '\.\[(.+)\]'", setup)
    needed = " ".join(one for extra in demo.split(",") for one in extras[extra])
    assert "nncf" not in needed
    assert "openvino" not in needed
