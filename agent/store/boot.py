"""Counts the starts of the agent and tells how the last run ended.

Refuses to keep the agent from starting: a full disk or a damaged record is told, not raised.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.domain.events import Ending
from agent.errors import StoreError
from agent.ids import new_boot_id
from agent.store.disk import Disk
from agent.store.lines import decode_line, encode_line


@dataclass(slots=True)
class Boot:
    """This start. `trouble` is why its record may not survive, `ending` of the run before it."""

    boot_id: str
    counter: int
    ending: Ending
    trouble: str
    _path: Path = field(repr=False)
    _disk: Disk = field(repr=False)
    _kernel: str = field(default="", repr=False)

    def end_clean(self) -> None:
        """The agent ends because it was asked to; the next start need not suspect a version."""
        self._disk.write_atomic(self._path, _record(self.counter, self._kernel, ended=True))


def start(root: Path, now: datetime, kernel_boot_id: str = "", disk: Disk | None = None) -> Boot:
    """Number this start, durable, before anything else is done.

    `kernel_boot_id` (from /proc/sys/kernel/random/boot_id) tells a crash of the agent from a power
    cut. If the record is lost, the counter goes on from the wall clock in seconds: far above any
    count of starts, so that boots stay in order.
    """
    disk = disk or Disk()
    path = root / "boot"
    trouble = ""
    counter, ending = 0, Ending.CLEAN
    try:
        last = _read(path)
        if last is not None:
            counter = last["counter"]
            rebooted = kernel_boot_id and last["kernel"] and kernel_boot_id != last["kernel"]
            if not last["ended"]:
                ending = Ending.POWER_LOST if rebooted else Ending.CRASHED
    except (OSError, ValueError, KeyError, TypeError) as error:
        trouble = f"{path} is damaged ({error}); counting on from the clock"
        counter, ending = int(now.timestamp()), Ending.POWER_LOST
    counter += 1
    try:
        disk.make_folder(root)
        disk.write_atomic(path, _record(counter, kernel_boot_id, ended=False))
    except StoreError as error:
        trouble = error.message
    return Boot(new_boot_id(counter), counter, ending, trouble, path, disk, kernel_boot_id)


def _record(counter: int, kernel: str, *, ended: bool) -> bytes:
    return encode_line({"counter": counter, "kernel": kernel, "ended": ended})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    record = decode_line(data.rstrip(b"\n"))
    if not isinstance(record["counter"], int) or not isinstance(record["ended"], bool):
        raise TypeError(f"not a boot record: {json.dumps(record)[:80]}")
    return record
