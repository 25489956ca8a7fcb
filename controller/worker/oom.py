"""Whether a killed job was killed for want of memory: what the kernel counts and what was measured.

Guesses nothing: without evidence it says that the signal came from outside.
"""

import signal
from dataclasses import dataclass
from pathlib import Path

NEAR = 0.9  # of the limit, where five looks a second may have missed the rest
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class KillCounts:
    """How often the kernel killed for want of memory; None where it does not say."""

    group: int | None  # in this process's control group
    machine: int | None

    def since(self, before: "KillCounts") -> tuple[int, int]:
        """Kills since ``before``, in the control group and on the machine."""
        return _more(self.group, before.group), _more(self.machine, before.machine)


def read_kill_counts(root: Path = Path("/")) -> KillCounts:
    """What the kernel has counted so far; ``root`` prefixes /proc and /sys."""
    return KillCounts(_group_kills(root), _field(root / "proc/vmstat", "oom_kill"))


def killed_text(peak_bytes: int, limit_bytes: int, before: KillCounts, after: KillCounts) -> str:
    """Why a job that ended by signal 9 did, with the figures."""
    name = signal.Signals.SIGKILL.name
    held = f"its memory was {peak_bytes / _MIB:,.0f} of at most {limit_bytes / _MIB:,.0f} MiB"
    in_group, on_machine = after.since(before)
    if in_group:
        return f"the job was ended by {name} for want of memory in its control group; {held}"
    if on_machine:
        return (
            f"the job was ended by {name}, and the system killed for want of memory"
            f" meanwhile; {held}"
        )
    if peak_bytes >= NEAR * limit_bytes:
        return f"the job was ended by {name} near its limit of memory; {held}"
    return f"the job was killed by signal 9 from outside; {held}"


def _group_kills(root: Path) -> int | None:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    places = dict(line.split(":", 2)[1:] for line in lines if line.count(":") >= 2)
    groups = root / "sys/fs/cgroup"
    for kinds, path in places.items():
        if "memory" in kinds.split(","):  # version 1, or both versions side by side
            return _field(groups / "memory" / path.lstrip("/") / "memory.oom_control", "oom_kill")
    if "" in places:
        return _field(groups / places[""].lstrip("/") / "memory.events", "oom_kill")
    return None


def _field(file: Path, name: str) -> int | None:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def _more(after: int | None, before: int | None) -> int:
    return 0 if after is None or before is None else max(0, after - before)
