"""fleetctl as a person types it: a process with arguments, its output and its exit code."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class CtlError(Exception):
    """fleetctl ended with another code than expected."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One finished run."""

    code: int
    out: str
    err: str


class Ctl:
    """Runs fleetctl against the contexts of one configuration folder."""

    def __init__(self, command: list[str], config_dir: Path) -> None:
        self._command = command
        self._env = {**os.environ, "LIGHTERMAN_CONFIG_DIR": str(config_dir), "NO_COLOR": "1"}
        self._env.pop("LIGHTERMAN_CONTEXT", None)

    def run(self, *arguments: str, expect: tuple[int, ...] = (0,), timeout_s: float = 600) -> Ran:
        """Run with these arguments; CtlError where the exit code is not an expected one."""
        done = subprocess.run(
            [*self._command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._env,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode not in expect:
            typed = " ".join(arguments)
            said = (done.stderr + done.stdout).strip()
            raise CtlError(f"fleetctl {typed}\nended with code {done.returncode}: {said}")
        return Ran(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str, expect: tuple[int, ...] = (0,), timeout_s: float = 600) -> Any:
        """Run with ``--output json`` and parse what it prints."""
        return json.loads(
            self.run(*arguments, "--output", "json", expect=expect, timeout_s=timeout_s).out
        )

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of a listing."""
        items: list[dict[str, Any]] = self.json(*arguments)["items"]
        return items
