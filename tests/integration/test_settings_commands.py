"""Bad settings as people meet them: the command ends with 1, names file or variable, and the way.

The unit tests know every case; here the real commands are asked, on both sides.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BAD: tuple[tuple[str, str, dict[str, str], tuple[str, ...]], ...] = (
    ("controller", "[listen]\ngprc = 1\n", {}, ("'listen.gprc'", "c.toml", "mean listen.grpc ?")),
    ("controller", "[listen]\ngrpc = 1.5\n", {}, ("listen.grpc", "c.toml", "1.5")),
    ("controller", '[listen]\ngrpc = "many"\n', {}, ("listen.grpc", "c.toml", "'many'")),
    ("controller", "[listen]\ngrpc = 70000\n", {}, ("listen.grpc", "c.toml", "65535 is allowed")),
    ("controller", "data_dir = 5\n", {}, ("data_dir", "c.toml", "text is needed", "in quotes")),
    ("controller", 'database = ["x"]\n', {}, ("database", "c.toml", "text is needed")),
    ("controller", "advertise = [1]\n", {}, ("advertise", "c.toml", "text is needed")),
    ("controller", "poll_s = inf\n", {}, ("poll_s", "c.toml", "is allowed")),
    ("controller", "[listen\n", {}, ("c.toml is not TOML", "line 1")),
    (
        "controller",
        "",
        {"LIGHTERMAN_LISTEN_GRPC": "x"},
        ("LIGHTERMAN_LISTEN_GRPC in the env", "'x'"),
    ),
    ("controller", "", {"LIGHTERMAN_LOG_LEVEL": "loud"}, ("LIGHTERMAN_LOG_LEVEL", "info, warning")),
    ("agent", 'statedir = "x"\n', {}, ("c.toml", "'statedir' is unknown", "mean state_dir ?")),
    ("agent", "state_dir = 5\n", {}, ("c.toml", "state_dir is 5", "text is needed")),
    ("agent", 'telemetry_s = "soon"\n', {}, ("telemetry_s in", "c.toml", "is not a number")),
    ("agent", "telemetry_s = -1\n", {}, ("telemetry_s in", "c.toml", "not between 0.05 and")),
    ("agent", "spool_bytes = nan\n", {}, ("spool_bytes in", "c.toml", "not between")),
    ("agent", '[serve]\ngrpc = "127.0.0.1:²"\n', {}, ("serve.grpc in", "c.toml", "not HOST:PORT")),
    ("agent", "x = \xff", {}, ("c.toml is not TOML",)),
    ("agent", "", {"LIGHTERMAN_POLL_S": "never"}, ("LIGHTERMAN_POLL_S", "is not a number")),
)


def run(side: str, folder: Path, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    words = {
        "controller": ["serve", "--data-dir", str(folder / "data")],
        "agent": ["run", "--state-dir", str(folder / "state")],
    }[side]
    if side == "controller" and "data_dir" in (folder / "c.toml").read_text(errors="replace"):
        words = ["serve"]
    if side == "agent" and "state_dir" in (folder / "c.toml").read_text(errors="replace"):
        words = ["run"]
    return subprocess.run(
        [sys.executable, "-m", side, *words, "--config", str(folder / "c.toml")],
        env={**{n: v for n, v in os.environ.items() if "LIGHTERMAN" not in n}, **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("side", "text", "environ", "said"), BAD)
def test_a_bad_setting_is_named_with_its_place(
    tmp_path: Path, side: str, text: str, environ: dict[str, str], said: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "c.toml").write_bytes(text.encode("latin-1" if "\xff" in text else "utf-8"))
    done = run(side, tmp_path, environ)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c.toml"], "nothing was made"


@pytest.mark.parametrize("side", ["controller", "agent"])
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "c.toml").mkdir()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "")
    done = run(side, tmp_path, {})
    assert done.returncode == 1
    assert f"{tmp_path / 'c.toml'} cannot be read: Is a directory" in done.stderr


def test_a_folder_of_keys_that_cannot_be_looked_into_is_named(tmp_path: Path) -> None:
    """Somebody who is not the controller's user; a loop of links stops root as well."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trust").symlink_to("trust")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "controller", "operator", "list"),
            *("--data-dir", str(tmp_path / "data")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"error: {tmp_path}/data/trust cannot be read" in done.stderr
    assert "run this as the user that the controller runs as" in done.stderr
    assert "Traceback" not in done.stderr
