"""Inputs by digest on the worker's disk, so that a model's second job fetches nothing.

Every byte that is handed to a job was hashed on the way; what does not match is dropped and
fetched again.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from controller.errors import InvalidError
from controller.worker.client import JobInput

CACHE_BYTES = 4 * 1024**3
READ_BYTES = 1024**2
ATTEMPTS = 2


class InputCache:
    """A folder of files named by their digest; the longest unused go first."""

    def __init__(self, folder: Path, cap_bytes: int = CACHE_BYTES) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def bring(self, item: JobInput, target: Path, fetch: Callable[[str, Path], None]) -> None:
        """Put a verified copy at ``target``. Raises InvalidError when two fetches do not match."""
        cached = self._folder / item.digest.removeprefix("sha256:")
        for _ in range(ATTEMPTS):
            if not cached.exists():
                partial = cached.with_suffix(".partial")
                fetch(item.digest, partial)
                partial.replace(cached)
            if _copy(cached, target) == item.digest and target.stat().st_size == item.length:
                os.utime(cached)
                self._trim(keep=cached)
                return
            cached.unlink()
        raise InvalidError(f"input {item.role} does not have the digest {item.digest}")

    def _trim(self, keep: Path) -> None:
        files = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        held = 0
        for file in files:
            held += file.stat().st_size
            if held > self._cap_bytes and file != keep:
                file.unlink()


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(READ_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return f"sha256:{digest.hexdigest()}"
