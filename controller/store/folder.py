"""The data directory of a controller: made at the first start, and locked while one runs on it."""

import fcntl
import os
from pathlib import Path
from typing import IO

from controller.errors import RefusedError, UnavailableError


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Take the lock of ``data_dir``; closing the file gives it back, as does the process's end.

    Raises RefusedError with the pid of the holder, UnavailableError where the directory cannot be
    made or written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data_dir / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise _unusable(data_dir, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise RefusedError(
            f"data directory {data_dir} is in use by another controller (pid {holder})",
            "stop that one, or give this one another --data-dir",
        ) from error
    except OSError as error:
        _drop(lock)
        raise _unusable(data_dir, error) from error
    return lock


def _unusable(data_dir: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"data directory {data_dir} cannot be used: {error.strerror}",
        "it needs free space and must be writable by the user of this process; or give another "
        "--data-dir",
    )


def _drop(lock: IO[str]) -> None:
    """Close without what is still to be written: on a full disk, closing would fail as well."""
    try:
        lock.close()
    except OSError:
        return
