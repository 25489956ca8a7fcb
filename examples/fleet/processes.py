"""A child process with a log file: started, watched, stopped or killed, by pid alone."""

import os
import signal
import subprocess
from pathlib import Path

from examples.fleet.clock import wait_until


class ChildError(Exception):
    """A child ended when it should not, or never got ready; carries its last lines."""


class Child:
    """One process in a session of its own, its output in a file."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.command = command
        self.env = env
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the newest start."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def last_lines(self, count: int = 12) -> str:
        """The end of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-count:])

    def check(self) -> None:
        """ChildError where it does not run."""
        if not self.running:
            code = self.process.returncode if self.process else None
            raise ChildError(f"{self.name} ended with code {code}\n{self.last_lines()}")

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM, then SIGKILL after the timeout; returns the exit code."""
        if self.process is None:
            return 0
        if self.running:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None and self.running:
            self.process.kill()
            self.process.wait(20)


def process_gone(pid: int) -> bool:
    """Whether no live process has this pid; a zombie counts as gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state == "Z"


def wait_log_line(child: Child, needle: str, timeout_s: float, skip_bytes: int = 0) -> None:
    """Wait until the log holds a line that is exactly ``needle`` behind ``skip_bytes``."""

    def seen() -> bool:
        child.check()
        with child.log.open("rb") as file:
            file.seek(skip_bytes)
            lines = file.read().decode(errors="replace").splitlines()
        return any(line.strip() == needle for line in lines)

    wait_until(seen, timeout_s, f"{child.name} to say {needle!r}")
