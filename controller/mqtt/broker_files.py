"""Writes what a broker's configuration names: each file as a whole, keys for their owner alone."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

PRIVATE = frozenset({"server.key"})


def write_files(directory: Path, files: Mapping[str, bytes], owner: tuple[int, int] | None) -> None:
    """Replace `files` in `directory`; they and the folder go to `owner` (uid, gid) when given."""
    for name, content in files.items():
        path = directory / name
        partial = directory / f"{name}.partial"
        mode = 0o600 if name in PRIVATE else 0o644
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(content)
        if owner is not None:
            os.chown(partial, *owner)
        os.replace(partial, path)
    if owner is not None:
        os.chown(directory, *owner)
