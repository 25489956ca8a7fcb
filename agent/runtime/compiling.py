"""Compiles a build for this very device in a process of its own, while the old version serves on.

Refused where less memory is free than it takes, ended where it takes more than it may or the device
runs short; how far it is stands in a file, for `status`. In the syntax of Python 3.8: it also runs
in a child under another Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.runtime.child_main import read_frame, write_frame
from agent.runtime.child_start import STARTING, GoneError, Started

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FOLDER = "compiling"
# Kept free for what serves, whatever is compiled beside it.
RESERVE_BYTES = 128 * 1024 * 1024
LOOK_S = 0.25
MAX_RESULT_BYTES = 4 << 30


@dataclass(frozen=True)
class Limits:
    """`need_bytes` have to be free before it starts; `most_bytes` it may take; `time_s` in all."""

    need_bytes: int
    most_bytes: int = 0  # 0: what is free, less the reserve
    time_s: float = 3600.0


class CompileError(RuntimeError):
    """Nothing was compiled; the words are for people."""


def compile_apart(
    file: str,
    path: str,
    options: Mapping[str, Any],
    limits: Limits,
    available: Callable[[], int | None] | None = None,
) -> bytes:
    """What `compile_here(path, options, tell)` of a runtime's file gives. CompileError why not."""
    measure = available or available_bytes
    free = measure()
    if free is not None and free < limits.need_bytes:
        raise CompileError(
            f"compiling it here takes {_mib(limits.need_bytes)} of memory, {_mib(free)} are free"
            " beside what serves; it is tried again with the next order"
        )
    most = limits.most_bytes or (free or 0)
    note = _Note(options)
    try:
        one = Started(sys.executable, by_path=True)
    except OSError as error:
        raise CompileError(f"no process to compile in: {error.strerror}") from error
    STARTING.add(one)
    try:
        write_frame(one.asks, {"do": "compile", "file": file, "path": path,
            "options": dict(options)})  # fmt: skip
        return _wait(one, _Watch(one, limits.time_s, most, measure), note)
    except (GoneError, OSError, ValueError) as error:
        raise CompileError(f"the process that compiles it {error}") from error
    finally:
        STARTING.done(one)
        one.end()
        note.remove()


def _wait(one: Started, watch: _Watch, note: _Note) -> bytes:
    poll = select.poll()
    poll.register(one.answers, select.POLLIN)
    while True:
        if not poll.poll(LOOK_S * 1000):
            watch.look()
            continue
        found = read_frame(one.answers)
        if found is None:
            raise GoneError(watch.why or one.ending())
        if "error" in found:
            raise CompileError(str(found["error"]))
        if "size" in found:
            return _read(one.given, int(found["size"]))
        note.write(str(found.get("phase", ""))[:200], float(found.get("share", 0.0)))
        watch.look()


class _Watch:
    """Ends a process that takes too much; without a clock, by the looks it has had."""

    def __init__(
        self, one: Started, time_s: float, most: int, measure: Callable[[], int | None]
    ) -> None:
        self._one, self._most, self._measure = one, most, measure
        self._ends = os.times().elapsed + time_s
        self.why = ""

    def look(self) -> None:
        """Once in a while."""
        free, taken = self._measure(), _resident_bytes(self._one.process.pid)
        if os.times().elapsed > self._ends:
            self.why = "took too long and was ended"
        elif self._most and taken > self._most:
            self.why = f"took {_mib(taken)} of at most {_mib(self._most)} and was ended"
        elif free is not None and free < RESERVE_BYTES:
            self.why = f"was ended: it took {_mib(taken)} and only {_mib(free)} were left"
        if self.why:
            self._one.kill()


class _Note:
    """How far it is, in a file of the cache folder; nowhere without one."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        folder, digest = str(options.get("cache_dir", "")), str(options.get("digest", ""))
        self._digest, self._path = digest, None
        if folder and digest:
            self._path = Path(folder) / FOLDER / (digest.rpartition(":")[2][:32] + ".json")
        self.write("starting", 0.0)

    def write(self, phase: str, share: float) -> None:
        """A full disk is no reason to stop."""
        if self._path is None:
            return
        body = {"digest": self._digest, "phase": phase, "share_pct": round(100 * share, 1)}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps(body), encoding="utf-8")
            fresh.replace(self._path)

    def remove(self) -> None:
        """It is over."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def under_way(folder: Path) -> list[dict[str, Any]]:
    """What is compiled now under a cache folder: digest, phase, share_pct."""
    found = []
    for file in sorted((folder / FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")))
    return found


def clear(folder: Path) -> None:
    """Forget what an agent that was killed left behind."""
    for file in (folder / FOLDER).glob("*"):
        with contextlib.suppress(OSError):
            file.unlink()


def available_bytes() -> int | None:
    """What programs can have without swapping; None where the kernel does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _resident_bytes(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _read(fd: int, size: int) -> bytes:
    if not 0 < size <= min(MAX_RESULT_BYTES, os.fstat(fd).st_size):
        raise GoneError(f"gave {size} bytes")
    parts, at = [], 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            raise GoneError("gave less than it said")
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"
