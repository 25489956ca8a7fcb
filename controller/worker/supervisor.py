"""Runs one job as a process group of its own and watches it: time, memory, cancel, how it ended.

Gives it a directory, the limits and nothing else: no environment, certificate, database or open
file. Judges no result; a job that dies is told with its last lines.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from controller.clock import Clock
from controller.worker.oom import killed_text, read_kill_counts

WATCH_S = 0.2
END_S = 5.0
MAX_LINES = 40
MAX_LINE_CHARS = 500
MAX_PROGRESS_CHARS = 2000
_NO_LINES: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What a job may take."""

    memory_bytes: int
    time_s: float


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended. Empty error: by itself, with status 0."""

    error: str = ""
    last_lines: tuple[str, ...] = _NO_LINES
    cancelled: bool = False


@dataclass(slots=True)
class Progress:
    """What the job last said; written by one thread, read by others."""

    progress_pct: float = 0.0
    step: str = "starting"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    peak_bytes: int = 0  # most memory that was seen, of all its processes


def run_job(
    directory: Path,
    limits: JobLimits,
    progress: Progress,
    clock: Clock,
    stop_reason: Callable[[], str],
    command: tuple[str, ...] = (),
) -> JobEnd:
    """Run the job of a directory to its end. ``stop_reason`` is asked five times a second.

    ``command`` replaces the sandboxed job in tests of this supervisor.
    """
    temporary = directory / "tmp"
    temporary.mkdir(exist_ok=True)
    kills = read_kill_counts()
    process = subprocess.Popen(
        command or _command(directory, limits),
        cwd=directory,
        env=_environment(directory, temporary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    readers = [
        threading.Thread(target=_read_progress, args=(process.stdout, progress), daemon=True),
        threading.Thread(target=_read_lines, args=(process.stderr, progress), daemon=True),
    ]
    for reader in readers:
        reader.start()
    reason, cancelled = _watch(process, limits, clock, stop_reason, progress)
    _end_group(process)
    for reader in readers:
        reader.join(END_S)
    lines = tuple(progress.lines)
    if reason:
        return JobEnd(reason, lines, cancelled)
    if process.returncode == -signal.SIGKILL:
        peak, limit = progress.peak_bytes, limits.memory_bytes
        return JobEnd(killed_text(peak, limit, kills, read_kill_counts()), lines)
    return JobEnd(_status_text(process.returncode, limits, progress), lines)


def _watch(
    process: "subprocess.Popen[str]",
    limits: JobLimits,
    clock: Clock,
    stop_reason: Callable[[], str],
    progress: Progress,
) -> tuple[str, bool]:
    """Wait for the end; returns why we ended it, and whether that was asked for."""
    begun = clock.monotonic()
    while True:
        try:
            process.wait(WATCH_S)
            return "", False
        except subprocess.TimeoutExpired:
            pass
        asked = stop_reason()
        if asked:
            return asked, True
        if clock.monotonic() - begun > limits.time_s:
            return f"took longer than {limits.time_s:g} s", False
        used = group_memory_bytes(process.pid)
        progress.peak_bytes = max(progress.peak_bytes, used)
        if used > limits.memory_bytes:
            return (
                f"took {used / 1024**3:.1f} GiB of memory, {limits.memory_bytes / 1024**3:.1f} GiB"
                " are allowed",
                False,
            )


def group_memory_bytes(group: int) -> int:
    """Resident bytes of all processes of a group, without what is only in the page cache."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command's name may hold spaces and brackets; fields count from the last bracket.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) != group:
                continue
            resident, shared = (entry / "statm").read_text().split()[1:3]
        except (OSError, IndexError, ValueError):
            continue  # it ended between the two looks
        total += (int(resident) - int(shared)) * page
    return total


def _command(directory: Path, limits: JobLimits) -> tuple[str, ...]:
    cores = len(os.sched_getaffinity(0))
    cpu_s = max(1, int(limits.time_s * cores))
    sandbox = (sys.executable, "-I", "-m", "controller.worker.sandbox")
    return (*sandbox, str(limits.memory_bytes), str(cpu_s), str(directory))


def _environment(directory: Path, temporary: Path) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "HOME": str(directory),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "USER": "job",
        "PYTHONWARNINGS": "ignore",
    }


def _read_progress(stream: IO[str] | None, progress: Progress) -> None:
    if stream is None:
        return
    with stream:
        while line := stream.readline(MAX_PROGRESS_CHARS):
            try:
                said = json.loads(line)
                pct, step = float(said["progress_pct"]), str(said["step"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # not ours to judge; progress is a courtesy
            progress.progress_pct = min(100.0, max(0.0, pct))
            progress.step = step[:MAX_LINE_CHARS]


def _read_lines(stream: IO[str] | None, progress: Progress) -> None:
    if stream is None:
        return
    with stream:
        while line := stream.readline(MAX_LINE_CHARS):
            if line.strip():
                progress.lines.append(line.rstrip())


def _end_group(process: "subprocess.Popen[str]") -> None:
    """Leave nothing behind, also when the job ended by itself and its children did not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_S)


def _status_text(status: int, limits: JobLimits, progress: Progress) -> str:
    if status == 0:
        return ""
    if status > 0:
        if any("MemoryError" in line or "bad_alloc" in line for line in progress.lines):
            return f"the job ran out of memory, {limits.memory_bytes / 1024**3:.1f} GiB are allowed"
        return f"the job ended with status {status} while {progress.step}"
    name = signal.Signals(-status).name
    if -status == signal.SIGXCPU:
        return f"the job was ended by {name}: it used more than its processor time"
    return f"the job was ended by {name}"
