"""What a runtime compiled on this device, kept so that the next start need not compile again.

An entry is named and headed by everything it depends on, and its bytes are hashed. Refuses what is
not exactly that: a damaged entry, one of another build, library, processor or setting, one that
somebody else could have written. It is then thrown away, never loaded. In the syntax of Python 3.8.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agent.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.runtime.backend import Options

T = TypeVar("T")

MAGIC = b"LMBLOB1\n"
MAX_HEAD_BYTES = 64 * 1024
# Room that is never taken from what devices are for: models, and the system.
MAX_ENTRIES, MAX_BYTES = 8, 512 * 1024**2
SPARE_BYTES = 512 * 1024**2


class CompiledCache:
    """A folder of compiled builds; without a folder or a digest it holds nothing."""

    def __init__(self, options: Options) -> None:
        """`cache_dir` and `digest` (of the build's file) of a runtime's options."""
        folder = options.get("cache_dir")
        self._folder = Path(folder) if isinstance(folder, str) and folder else None
        self._digest = str(options.get("digest", ""))

    def find(self, key: Mapping[str, str]) -> bytes | None:
        """The bytes that were kept under exactly this key, or None."""
        path, head = self._entry(key)
        if path is None:
            return None
        try:
            data = _read(path, head)
        except FileNotFoundError:
            return None
        except (OSError, LoadError):
            self.drop(key)
            return None
        with suppress(OSError):
            os.utime(path)
        return data

    def bring(self, key: Mapping[str, str], take: Callable[[bytes], T]) -> T | None:
        """What ``take`` makes of the kept bytes; None without any, or where it refuses them."""
        kept = self.find(key)
        if kept is None:
            return None
        try:
            return take(kept)
        # Whatever its library says of it: the build can be compiled anew.
        except Exception:  # noqa: BLE001
            self.drop(key)
            return None

    def keep(self, key: Mapping[str, str], data: bytes) -> None:
        """Store it where there is room; a full or read-only disk only costs the next start."""
        path, head = self._entry(key)
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if len(data) > MAX_BYTES:
                return
            if shutil.disk_usage(path.parent).free < len(data) + SPARE_BYTES:
                return
            partial = path.with_suffix(f".{os.getpid()}")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(partial, flags, 0o600), "wb") as out:
                out.write(MAGIC + head + b"\n" + sha256(data).hexdigest().encode() + b"\n")
                out.write(data)
            partial.replace(path)
            _trim(path)
        except OSError:
            return

    def drop(self, key: Mapping[str, str]) -> None:
        """Forget an entry, as one that its library does not take."""
        path, _ = self._entry(key)
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _entry(self, key: Mapping[str, str]) -> tuple[Path | None, bytes]:
        if self._folder is None or not self._digest:
            return None, b""
        facts = {**key, "build": self._digest}
        head = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
        return self._folder / f"{sha256(head).hexdigest()}.blob", head


def instructions(root: Path = Path("/")) -> str:
    """What this processor can do: compiled code may hold any of it."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return os.uname().machine
    # The first core speaks for all: the library compiles for where it runs.
    named = ("model name", "flags", "Features", "CPU implementer", "CPU part", "microcode")
    lines = text.partition("\n\n")[0].splitlines()
    return "; ".join(line for line in lines if line.partition(":")[0].strip() in named)


def _read(path: Path, head: bytes) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags), "rb") as stream:
        about = os.fstat(stream.fileno())
        ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
        if not ours or about.st_mode & 0o022 or about.st_size > MAX_BYTES + MAX_HEAD_BYTES:
            raise LoadError(f"{path} is not this agent's own")
        begin = MAGIC + head + b"\n"
        if stream.read(len(begin)) != begin:
            raise LoadError(f"{path} was compiled of or for something else")
        told, data = stream.read(65), stream.read()
    if told != sha256(data).hexdigest().encode() + b"\n":
        raise LoadError(f"{path} is damaged")
    return data


def _trim(newest: Path) -> None:
    """The longest unused go first; what was just kept stays."""
    files = [(file.stat(), file) for file in newest.parent.glob("*.blob")]
    held, count = 0, 0
    for about, file in sorted(files, key=lambda one: one[0].st_mtime, reverse=True):
        held, count = held + about.st_size, count + 1
        if file != newest and (held > MAX_BYTES or count > MAX_ENTRIES):
            file.unlink(missing_ok=True)
