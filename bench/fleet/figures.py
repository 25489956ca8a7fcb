"""CPU and memory of processes, and quantiles. Reads /proc; starts and stops nothing."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds that processes have used up to a moment (monotonic seconds)."""

    at_s: float
    used_s: dict[str, float]

    def cores_since(self, before: "Cpu", name: str) -> float:
        """Mean number of cores in use between two readings."""
        return (self.used_s[name] - before.used_s[name]) / (self.at_s - before.at_s)

    def spent_since(self, before: "Cpu", name: str) -> float:
        """CPU seconds between two readings."""
        return self.used_s[name] - before.used_s[name]


def cpu_s(pid: int) -> float:
    """User and system seconds of one process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mb(pid: int) -> float:
    """Resident memory, MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def find_child(pid: int, word: str) -> int:
    """The one process below `pid` whose command line has this word. LookupError."""
    for child in psutil.Process(pid).children(recursive=True):
        command = child.cmdline()
        if command and word in Path(command[0]).name:
            return child.pid
    for child in psutil.Process(pid).children(recursive=True):
        if word in child.cmdline():
            return child.pid
    raise LookupError(f"process {pid} has no child {word}")


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank, of what was really seen: never between two values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
