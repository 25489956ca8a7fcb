"""Prometheus and promtool for tests: found on the PATH or where `make setup` puts them.

Starts a server of its own on loopback; touches no other.
"""

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from examples.fleet.ports import free_port
from tests.support.sources import ROOT
from tests.support.wait import wait_for

RULES = ROOT / "controller" / "shipped" / "prometheus" / "lighterman.rules.yml"
_FETCHED = ROOT / ".venv" / "prometheus" / "usr" / "bin"


def binary(name: str) -> str:
    """Path of the program; skips the test with the reason where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(_FETCHED))
    if found is None:
        pytest.skip(f"{name} is not here: the Debian package prometheus has it, see `make setup`")
    return found


def promtool(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    """Exit status and everything it said."""
    done = subprocess.run(
        [binary("promtool"), *arguments],
        input=stdin, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode()


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its API; AssertionError with its words when it refuses."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode()
            raise AssertionError(f"{query or path}: {said}") from error

    def query(self, text: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every series of an instant query."""
        found = self.ask("query", query=text)
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def firing(self) -> dict[str, dict[str, str]]:
        """Labels of the alerts that fire, by name."""
        alerts = self.ask("alerts")["alerts"]
        return {a["labels"]["alertname"]: a["labels"] for a in alerts if a["state"] == "firing"}

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=2):
                return True
        except OSError:
            return False


@contextmanager
def running_prometheus(folder: Path, config: str) -> Iterator[Prometheus]:
    """Start it with this configuration, and end it."""
    program = binary("prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prometheus.yml"
    file.write_text(config)
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Prometheus(port)
        wait_for(server.is_ready, 30, f"Prometheus; its log: {folder / 'log'}")
        yield server
    finally:
        process.terminate()
        process.wait(20)
