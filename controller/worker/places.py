"""The worker's folder: one worker at a time in it, and none left behind by those that were killed.

Removes only folders of this user whose lock nobody holds.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from controller.errors import RefusedError

PREFIX = "lighterman-worker-"
_LOCK = "lock"

log = logging.getLogger(__name__)


@contextmanager
def workplace(chosen: Path | None) -> Iterator[Path]:
    """A locked folder: ``chosen``, or a temporary one that goes at the end.

    Raises RefusedError when another worker works in ``chosen``.
    """
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        with (chosen / _LOCK).open("a") as held:
            if not _lock(held):
                raise RefusedError(
                    f"another worker works in {chosen}", "stop it, or give this one another folder"
                )
            yield chosen
        return
    remove_stale(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        # Locked before it has its name: whoever sees the name sees that it is held.
        with (folder / "locking").open("a") as held:
            _lock(held)
            (folder / "locking").rename(folder / _LOCK)
            yield folder


def remove_stale(parent: Path) -> int:
    """Remove what killed workers of this user left in ``parent``; returns how many folders."""
    removed = 0
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                if _lock(lock):
                    shutil.rmtree(folder)
                    removed += 1
                    log.info("removed %s, which a killed worker left", folder)
        except OSError:
            continue  # it has no lock yet, or went by itself
    return removed


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
