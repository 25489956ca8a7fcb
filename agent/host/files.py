"""Small reads of /proc and /sys under a root. Refuses to raise: what cannot be read is None."""

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The file's text without surrounding blanks and NULs; None when it cannot be read.

    Kernel files answer with EAGAIN, ENODEV or EINVAL when a sensor sleeps: that is None too.
    """
    try:
        text = path.read_bytes().decode("utf-8", "replace").strip(" \t\r\n\0")
    except OSError:
        return None
    return text or None


def read_int(path: Path) -> int | None:
    """The file's whole number, in any of Python's bases by prefix (0x…); None without one."""
    text = read_text(path)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def children(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder that match, in stable order; empty when there is no such folder."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []
