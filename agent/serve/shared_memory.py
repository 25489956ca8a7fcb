"""Regions of system shared memory (POSIX) that clients registered for inputs and outputs.

A region is read and written with the file calls of the kernel, never mapped: a client that shrinks
what it shares, or writes while a model reads, can then harm its own answer and nothing else.
Refuses paths, regions of other users, and regions that are gone.
"""

import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.domain.tensor import Buffer, DType, Tensor
from agent.errors import RequestError, UnknownModelError
from agent.serve.errors import RefusedError

FOLDER = Path("/dev/shm")
MOST_REGIONS = 64
# One tensor; a region may hold many.
MOST_BYTES = 256 * 1024 * 1024
_KEY = re.compile(r"/?([A-Za-z0-9._-]{1,250})")
_NAME = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of a registered region."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SharedInput:
    """An input that lies in a region; it is read when its turn has come."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    place: Place


class _File:
    """An open file, closed with the last one who uses it."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True, slots=True)
class Region:
    """What was registered: `size` bytes from `offset` on of the shared memory `key`."""

    name: str
    key: str
    offset: int
    size: int
    file: _File = field(repr=False, compare=False)

    def check(self) -> None:
        """RequestError when it was removed or has shrunk since."""
        found = os.fstat(self.file.number)
        if not found.st_nlink:
            raise RequestError(
                f"shared memory region {self.name!r} ({self.key}) was removed",
                "unregister it, and register the new one",
            )
        if found.st_size < self.offset + self.size:
            raise RequestError(
                f"shared memory region {self.name!r} ({self.key}) has shrunk to {found.st_size}"
                f" bytes, {self.offset + self.size} were registered"
            )


class Regions:
    """All regions of an agent; safe for threads."""

    def __init__(self, allowed: bool, folder: Path = FOLDER) -> None:
        self.allowed = allowed
        self._folder = folder
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Take a region. RequestError says why not, RefusedError: never here."""
        self._must_be_allowed()
        match = _KEY.fullmatch(key)
        if match is None or match[1] in (".", ".."):
            raise RequestError(
                f"{key[:100]!r} is no name of POSIX shared memory", "a name like /camera-1"
            )
        if not _NAME.fullmatch(name):
            raise RequestError("a region needs a name of 1 to 128 printable characters")
        if offset < 0 or size <= 0:
            raise RequestError(f"region {name!r} has no place: offset {offset}, {size} bytes")
        region = Region(name, key, offset, size, _open(self._folder / match[1], key))
        region.check()
        with self._lock:
            old = self._regions.get(name)
            if old is not None and os.fstat(old.file.number).st_nlink:
                raise RequestError(f"region {name!r} is registered already", "unregister it first")
            if old is None and len(self._regions) >= MOST_REGIONS:
                raise RequestError(f"{MOST_REGIONS} regions are registered, that is the most")
            self._regions[name] = region

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all; one that is not registered is fine."""
        self._must_be_allowed()
        with self._lock:
            for one in [name] if name else list(self._regions):
                self._regions.pop(one, None)

    def status(self, name: str = "") -> list[Region]:
        """One region, or all by name. UnknownModelError: there is no such region."""
        self._must_be_allowed()
        with self._lock:
            found = [r for _, r in sorted(self._regions.items()) if name in ("", r.name)]
        if name and not found:
            raise UnknownModelError(f"shared memory region {name!r} is not registered")
        return found

    def read(self, shared: SharedInput) -> Tensor:
        """An input as it is now, in memory of its own. RequestError."""
        region, at = self._find(shared.place, f"input {shared.name!r}")
        data = os.pread(region.file.number, shared.place.size, at)
        if len(data) < shared.place.size:
            region.check()  # it shrank just now, and this says so
            raise RequestError(f"input {shared.name!r} could not be read whole")
        return Tensor(shared.name, shared.dtype, shared.shape, data)

    def write(self, name: str, place: Place, data: Buffer) -> int:
        """Put an output where it is wanted; gives its bytes. RequestError when it does not fit."""
        region, at = self._find(place, f"output {name!r}")
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        if len(view) > place.size:
            raise RequestError(f"output {name!r} has {len(view)} bytes, its place {place.size}")
        done = 0
        while done < len(view):
            done += os.pwrite(region.file.number, view[done:], at + done)
        return len(view)

    def must_have(self, place: Place, what: str) -> None:
        """RequestError unless the place exists now: asked before a model runs for it."""
        self._find(place, what)

    def _find(self, place: Place, what: str) -> tuple[Region, int]:
        self._must_be_allowed()
        with self._lock:
            region = self._regions.get(place.region)
        if region is None:
            raise RequestError(
                f"{what}: shared memory region {place.region[:100]!r} is not registered"
            )
        if place.offset < 0 or place.size < 0 or place.offset + place.size > region.size:
            raise RequestError(
                f"{what}: {place.size} bytes at {place.offset} are not inside region"
                f" {region.name!r} of {region.size} bytes"
            )
        region.check()
        return region, region.offset + place.offset

    def _must_be_allowed(self) -> None:
        if not self.allowed:
            raise RefusedError(
                "shared memory is not offered here",
                "the agent's setting serve.shared_memory (LIGHTERMAN_SERVE_SHARED_MEMORY) is off",
            )


def place_of(parameters: Mapping[str, object], what: str) -> Place | None:
    """The place that the parameters of a tensor name; None: it is not in shared memory."""
    region = parameters.get("shared_memory_region")
    if region is None:
        return None
    offset = parameters.get("shared_memory_offset", 0)
    size = parameters.get("shared_memory_byte_size")
    if not isinstance(region, str) or type(offset) is not int or type(size) is not int:
        raise RequestError(
            f"{what}: shared memory needs a region's name, a byte size and, if any, an offset"
        )
    if size > MOST_BYTES:
        raise RequestError(f"{what}: {size} bytes are more than the {MOST_BYTES} of one tensor")
    return Place(region, offset, size)


def _open(path: Path, key: str) -> _File:
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        file = _File(os.open(path, flags))
    except FileNotFoundError:
        raise RequestError(f"there is no shared memory {key}") from None
    except OSError as error:
        raise RequestError(f"shared memory {key} cannot be opened: {error.strerror}") from None
    found = os.fstat(file.number)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise RequestError(f"shared memory {key} is no memory of its own")
    # An agent that may open everything must not lend that to its clients.
    ours = found.st_uid == os.geteuid() and found.st_mode & 0o600 == 0o600
    shared = found.st_gid in {os.getegid(), *os.getgroups()} and found.st_mode & 0o060 == 0o060
    if not ours and not shared and found.st_mode & 0o006 != 0o006:
        raise RequestError(
            f"shared memory {key} belongs to user {found.st_uid}, who does not share it with"
            f" this agent's user {os.geteuid()}",
            "run both as one user, or give a common group read and write",
        )
    return file
