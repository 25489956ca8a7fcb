"""Processes that sleep for a time no other does, so that a test finds them by it."""

from pathlib import Path


def is_sleeping(mark: str) -> bool:
    """Whether a `sleep MARK` runs anywhere on this machine."""
    wanted = b"sleep\0" + mark.encode() + b"\0"
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == wanted:
                return True
        except OSError:
            continue  # it ended meanwhile
    return False
