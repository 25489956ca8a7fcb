"""Model files by digest, and per model the pointers current, previous and staged.

Refuses to name a file by its digest before the bytes were hashed from disk, to grow beyond the
signed length, and to collect anything a pointer or the journal names.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from agent.domain.assignment import Slot
from agent.domain.desired import Target
from agent.domain.state_json import slot_from_json, slot_to_json
from agent.errors import (
    DigestMismatchError,
    ManifestError,
    NotStoredError,
    StoreError,
    WriteFailedError,
)
from agent.store.disk import Disk
from agent.store.lines import decode_line, encode_line

_READ_BYTES = 1024 * 1024
_SYNC_BYTES = 16 * 1024 * 1024
_PREFIX = "sha256-"


class FileSlots:
    """Satisfies `agent.domain.ports.SlotStore`. One writer: the loop."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self._blobs = root / "blobs"
        self._partial = root / "blobs" / "partial"
        self._pointers = root / "slots"
        for folder in (self._partial, self._pointers):
            self._disk.make_folder(folder)

    # -- files -------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Bytes that an unprivileged writer can still use."""
        found = os.statvfs(self._blobs)
        return found.f_bavail * found.f_frsize

    def stored_bytes(self) -> int:
        """Bytes of all whole files; 0 where they cannot be looked at."""
        with contextlib.suppress(OSError):
            return sum(f.stat().st_size for f in self._blobs.glob(f"{_PREFIX}*"))
        return 0

    def has(self, digest: str) -> bool:
        """Whether the whole file is there (its bytes were verified when it came)."""
        return self._file(digest).is_file()

    def path(self, digest: str) -> str:
        """Where the file lies. NotStoredError."""
        path = self._file(digest)
        if not path.is_file():
            raise NotStoredError(f"{digest} is not on this device", "it has to be fetched first")
        return str(path)

    def partial_bytes(self, digest: str) -> int:
        """From which byte a download goes on."""
        try:
            return self._part(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def receive(self, target: Target, chunks: Iterable[bytes]) -> int:
        """Append to the partial file as chunks come; gives the bytes it has now.

        What came before an error of the source stays, and the next call goes on there.
        DiskFullError, WriteFailedError; DigestMismatchError when more comes than was signed.
        """
        part = self._part(target.digest)
        size = self.partial_bytes(target.digest)
        held: list[bytes] = []
        held_bytes = 0
        try:
            for chunk in chunks:
                held.append(chunk)
                held_bytes += len(chunk)
                if size + held_bytes > target.length:
                    held.clear()
                    self._disk.remove(part)
                    raise DigestMismatchError(
                        f"{target.digest} sends more than its {target.length} signed bytes"
                    )
                if held_bytes >= _SYNC_BYTES:
                    size = self._disk.append(part, size, b"".join(held))
                    held.clear()
                    held_bytes = 0
        finally:
            if held:
                size = self._disk.append(part, size, b"".join(held))
        return size

    def finish(self, target: Target) -> None:
        """Hash the partial file from disk and make it a file of the store. DigestMismatchError."""
        if self.has(target.digest):
            self._disk.remove(self._part(target.digest))
            return
        part = self._part(target.digest)
        if not part.is_file():
            raise NotStoredError(f"nothing of {target.digest} was downloaded")
        if not _matches(part, target):
            size = part.stat().st_size
            self._disk.remove(part)
            raise DigestMismatchError(
                f"{size} bytes came for {target.digest} ({target.length} bytes), but other ones",
                "they were removed and are fetched again from the start",
            )
        self._disk.sync(part)
        self._disk.rename(part, self._file(target.digest))

    def verify(self, target: Target) -> bool:
        """Hash a stored file again; a wrong one is removed, so that it is fetched anew."""
        path = self._file(target.digest)
        if not path.is_file():
            return False
        try:
            if _matches(path, target):
                return True
        except OSError as error:
            raise WriteFailedError(f"{path} cannot be read: {error}", "check the disk") from error
        self._disk.remove(path)
        return False

    # -- pointers ----------------------------------------------------------------------------------

    def set_slots(
        self, model: str, current: Slot | None, previous: Slot | None, staged: Slot | None
    ) -> None:
        """Write the pointers of one model in one atomic step."""
        body = {
            "current": slot_to_json(current),
            "previous": slot_to_json(previous),
            "staged": slot_to_json(staged),
        }
        self._disk.write_atomic(self._pointer(model), encode_line(body))

    def slots(self, model: str) -> tuple[Slot | None, Slot | None, Slot | None]:
        """Current, previous, staged. StoreError when the pointer file is damaged."""
        path = self._pointer(model)
        try:
            body = decode_line(path.read_bytes().rstrip(b"\n"))
            return (
                slot_from_json(body["current"]),
                slot_from_json(body["previous"]),
                slot_from_json(body["staged"]),
            )
        except FileNotFoundError:
            return (None, None, None)
        except (OSError, ValueError, KeyError, ManifestError) as error:
            raise StoreError(
                f"{path} is damaged: {error}", "the journal knows the slots"
            ) from error

    def models(self) -> tuple[str, ...]:
        """Models that have pointers."""
        names = (p.name for p in self._pointers.iterdir() if not p.name.startswith("."))
        return tuple(sorted(n.removesuffix(".slots") for n in names if n.endswith(".slots")))

    def collect(self, keep: frozenset[str]) -> int:
        """Remove files (and partial ones) that neither `keep` nor a pointer names; bytes freed.

        With a damaged pointer file nothing is removed: it may name what looks like garbage.
        """
        named = set(keep)
        try:
            for model in self.models():
                for slot in self.slots(model):
                    if slot is not None:
                        named.update(t.digest for t in slot.release.targets)
        except StoreError:
            return 0
        freed = 0
        for folder in (self._blobs, self._partial):
            for path in folder.iterdir():
                if path.name.startswith(_PREFIX) and _digest(path.name) not in named:
                    with contextlib.suppress(FileNotFoundError):
                        freed += path.stat().st_size
                    self._disk.remove(path)
        return freed

    def _file(self, digest: str) -> Path:
        return self._blobs / _file_name(digest)

    def _part(self, digest: str) -> Path:
        return self._partial / _file_name(digest)

    def _pointer(self, model: str) -> Path:
        return self._pointers / f"{model}.slots"


def _file_name(digest: str) -> str:
    hexes = digest.removeprefix("sha256:")
    if len(hexes) != 64 or not all(c in "0123456789abcdef" for c in hexes):
        raise NotStoredError(f"{digest!r} is not a digest")
    return _PREFIX + hexes


def _digest(name: str) -> str:
    return "sha256:" + name.removeprefix(_PREFIX)


def _matches(path: Path, target: Target) -> bool:
    if path.stat().st_size != target.length:
        return False
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            seen.update(block)
    return "sha256:" + seen.hexdigest() == target.digest
