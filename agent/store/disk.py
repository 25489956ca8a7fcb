"""The only writer of the state directory: what it says is written survives a power cut.

Refuses to call anything done before the file *and* its folder were synced. Every failure becomes a
StoreError that names the path; what was there before is unchanged. Tests put faults underneath by
overriding the small calls at the end.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import DiskFullError, FsyncFailedError, StoreError, WriteFailedError

_FULL = {errno.ENOSPC, errno.EDQUOT}


class Disk:
    """Durable file operations; stateless, safe from any thread on different paths."""

    def write_atomic(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Replace a file as a whole: readers see the old bytes or the new ones, never a mixture.

        After a StoreError the old bytes are there, unless only the folder could not be synced.
        """
        temporary = path.with_name(f".{path.name}.new")
        with _named(path), self._removing(temporary):
            fd = self._open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            try:
                self._write_all(fd, data)
                self._fsync(fd, temporary)
            finally:
                os.close(fd)
            self._replace(temporary, path)
            self._fsync_folder(path.parent)

    def append(self, path: Path, size: int, data: bytes) -> int:
        """Write `data` at byte `size` of a file and sync it; gives the new size.

        What lies beyond `size` (a torn write) is cut off first; a failed write is cut off again.
        """
        with _named(path):
            created = not path.exists()
            fd = self._open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                if os.fstat(fd).st_size != size:
                    self._truncate(fd, size, path)
                os.lseek(fd, size, os.SEEK_SET)
                try:
                    self._write_all(fd, data)
                    self._fsync(fd, path)
                except OSError:
                    with contextlib.suppress(OSError):
                        self._truncate(fd, size, path)
                    raise
            finally:
                os.close(fd)
            if created:
                self._fsync_folder(path.parent)
        return size + len(data)

    def rename(self, source: Path, target: Path) -> None:
        """Move a synced file within the state directory, durable."""
        with _named(target):
            self._replace(source, target)
            self._fsync_folder(target.parent)
            if source.parent != target.parent:
                self._fsync_folder(source.parent)

    def sync(self, path: Path) -> None:
        """Make the bytes of an existing file durable."""
        with _named(path):
            fd = self._open(path, os.O_RDONLY, 0)
            try:
                self._fsync(fd, path)
            finally:
                os.close(fd)

    def remove(self, path: Path) -> None:
        """Remove a file; a missing one is fine. Not synced: one that comes back is garbage."""
        with _named(path):
            self._unlink(path)

    def make_folder(self, path: Path) -> None:
        """Create a folder (and those above), private to the agent, durable."""
        missing = [p for p in (path, *path.parents) if not p.exists()]
        with _named(path):
            for folder in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    self._mkdir(folder)
                self._fsync_folder(folder.parent)

    @contextmanager
    def _removing(self, temporary: Path) -> Iterator[None]:
        try:
            yield
        except OSError:
            with contextlib.suppress(OSError):
                self._unlink(temporary)
            raise

    def _write_all(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._write(fd, view) :]

    # -- the calls that can fail, one by one -------------------------------------------------------

    def _open(self, path: Path, flags: int, mode: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def _write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def _truncate(self, fd: int, size: int, path: Path) -> None:
        os.ftruncate(fd, size)

    def _fsync(self, fd: int, path: Path) -> None:
        try:
            self._fsync_fd(fd)
        except OSError as error:
            raise _SyncError(error.errno, error.strerror, str(path)) from error

    def _fsync_fd(self, fd: int) -> None:
        os.fsync(fd)

    def _fsync_folder(self, folder: Path) -> None:
        fd = self._open(folder, os.O_RDONLY | os.O_DIRECTORY, 0)
        try:
            self._fsync(fd, folder)
        finally:
            os.close(fd)

    def _replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _mkdir(self, path: Path) -> None:
        path.mkdir(mode=0o700)


class _SyncError(OSError):
    """An fsync said no: kept apart, because after it nothing is known of the file."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the system says into the store's errors."""
    try:
        yield
    except OSError as error:
        raise _error(path, error) from error


def _error(path: Path, error: OSError) -> StoreError:
    text = error.strerror or str(error)
    if error.errno in _FULL:
        return DiskFullError(
            f"the disk of this device is full: {path}: {text}",
            "free space on the device; the old state is kept",
        )
    if isinstance(error, _SyncError):
        return FsyncFailedError(f"{path}: fsync: {text}", "check the disk; the old state is kept")
    return WriteFailedError(f"{path}: {text}", "check that the state directory is writable")
