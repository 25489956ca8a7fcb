"""Disks that fail, die in the middle, or forget what was never synced. For tests of the store.

Holds a model of what would survive: names per folder and bytes per file, each only once synced.
"""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from agent.store.disk import Disk


class PowerCutError(BaseException):
    """The agent is gone; nothing may catch it as if it were an error of the system."""


class FailingDisk(Disk):
    """The `fail_at`-th call of the system fails with `errno` (never, when it is 0)."""

    def __init__(self, fail_at: int = 0, error: int = 0, only: str = "") -> None:
        self.calls = 0
        self.fail_at = fail_at
        self.error = error
        self.only = only
        self.failed = ""

    def _count(self, name: str) -> None:
        if self.only and name != self.only:
            return
        self.calls += 1
        if self.calls == self.fail_at:
            self.failed = name
            raise OSError(self.error, os.strerror(self.error))

    def _open(self, path: Path, flags: int, mode: int) -> int:
        self._count("open")
        return super()._open(path, flags, mode)

    def _write(self, fd: int, data: memoryview) -> int:
        if self.calls + 1 == self.fail_at and self.only in ("", "write"):
            super()._write(fd, data[: len(data) // 2])
        self._count("write")
        return super()._write(fd, data)

    def _fsync_fd(self, fd: int) -> None:
        self._count("fsync")

    def _replace(self, source: Path, target: Path) -> None:
        self._count("replace")
        super()._replace(source, target)

    def _unlink(self, path: Path) -> None:
        self._count("unlink")
        super()._unlink(path)


class LossyDisk(Disk):
    """Dies at the `die_at`-th change (never, when it is 0); `survive` then makes what is left."""

    def __init__(self, root: Path, die_at: int = 0) -> None:
        self.root = root
        self.die_at = die_at
        self.changes = 0
        self._names: dict[Path, int] = {}
        self._kept_names: dict[Path, int] = {}
        self._kept_bytes: dict[int, bytes] = {}
        self._paths: dict[int, Path] = {}
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            inode = self._new(path)
            self._kept_names[path] = inode
            self._kept_bytes[inode] = path.read_bytes()

    def _new(self, path: Path) -> int:
        inode = len(self._paths) + 1
        self._paths[inode] = path
        self._names[path] = inode
        self._kept_bytes[inode] = b""
        return inode

    def _change(self) -> None:
        self.changes += 1
        if self.die_at and self.changes >= self.die_at:
            raise PowerCutError

    def _open(self, path: Path, flags: int, mode: int) -> int:
        fresh = bool(flags & os.O_CREAT) and not path.exists()
        if fresh or flags & os.O_TRUNC:
            self._change()
        fd = super()._open(path, flags, mode)
        if fresh:
            self._new(path)
        return fd

    def _write(self, fd: int, data: memoryview) -> int:
        try:
            self._change()
        except PowerCutError:
            super()._write(fd, data[: len(data) // 2])
            raise
        return super()._write(fd, data)

    def _truncate(self, fd: int, size: int, path: Path) -> None:
        self._change()
        super()._truncate(fd, size, path)

    def _fsync(self, fd: int, path: Path) -> None:
        self._change()
        if path.is_dir():
            self._keep_names(path)
        else:
            self._keep_bytes(path)

    def _keep_names(self, folder: Path) -> None:
        for names in (self._kept_names,):
            for path in [p for p in names if p.parent == folder]:
                del names[path]
            names.update({p: i for p, i in self._names.items() if p.parent == folder})

    def _keep_bytes(self, path: Path) -> None:
        self._kept_bytes[self._names[path]] = path.read_bytes()

    def _replace(self, source: Path, target: Path) -> None:
        self._change()
        super()._replace(source, target)
        self._names[target] = self._names.pop(source)
        self._paths[self._names[target]] = target

    def _unlink(self, path: Path) -> None:
        self._change()
        super()._unlink(path)
        self._names.pop(path, None)

    def survive(self, keep: Callable[[], float]) -> None:
        """Rebuild the folder as a crash may leave it; `keep` gives the share of what is kept.

        0.0: nothing that was not synced; 1.0: everything (only the process died); between: some of
        the names, and a leading part of the bytes.
        """
        now = {inode: path.read_bytes() for path, inode in self._names.items() if path.exists()}
        folders = {p.parent for p in (*self._names, *self._kept_names)}
        left: dict[Path, bytes] = {}
        for folder in sorted(folders):
            names = self._names if keep() >= 0.5 else self._kept_names
            for path, inode in names.items():
                if path.parent == folder:
                    left[path] = self._left(inode, now, keep())
        for path in [p for p in self.root.rglob("*") if p.is_file()]:
            path.unlink()
        for path, data in left.items():
            path.write_bytes(data)

    def _left(self, inode: int, now: dict[int, bytes], share: float) -> bytes:
        kept, written = self._kept_bytes[inode], now.get(inode)
        if written is None or share <= 0.0:
            return kept
        if share >= 1.0 or kept == written:
            return written
        if written.startswith(kept):
            return written[: len(kept) + round((len(written) - len(kept)) * share)]
        return written[: round(len(written) * share)]


class ForgetfulDisk(LossyDisk):
    """A broken build: says that files are synced, but they are not."""

    def _keep_bytes(self, path: Path) -> None:
        pass


class NamelessDisk(LossyDisk):
    """A broken build: syncs files, never the folders that name them."""

    def _keep_names(self, folder: Path) -> None:
        pass


def nothing() -> float:
    """Power loss at its worst."""
    return 0.0


def everything() -> float:
    """Only the process died."""
    return 1.0


def some(seed: int) -> Callable[[], float]:
    """A mixture, the same for the same seed."""
    return Random(seed).random
