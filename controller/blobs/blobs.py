"""Artifacts on disk, named by their SHA-256. Never keeps a part of one, never overwrites one.

Knows no database and no meaning of the bytes. The room's only user of obstore.
"""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

import obstore
from obstore.store import LocalStore

from controller.errors import ExhaustedError, InvalidError, NotFoundError

CHUNK_BYTES = 1024 * 1024
# Left free for the database and the logs, which must be able to say that the disk is full.
RESERVE_BYTES = 64 * 1024 * 1024

T = TypeVar("T")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Blobs:
    """All artifacts of one controller below ``root``. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._incoming = self._root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = LocalStore(self._root)

    @property
    def free_bytes(self) -> int:
        """What the disk below ``root`` has left."""
        return shutil.disk_usage(self._root).free

    @property
    def is_full(self) -> bool:
        """Whether nothing is taken in any more."""
        return self.free_bytes < RESERVE_BYTES

    def sweep(self) -> int:
        """Remove what interrupted uploads left; at start only, by the lock's holder."""
        left = list(self._incoming.iterdir())
        for path in left:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return len(left)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the artifacts for files in the making; gone when the context ends.

        Raises ExhaustedError when the disk gets full inside.
        """
        with tempfile.TemporaryDirectory(dir=self._incoming) as folder:
            try:
                yield Path(folder)
            except OSError as error:
                if error.errno in _FULL:
                    raise _full(error) from error
                raise

    def exists(self, digest: str) -> bool:
        """Whether the artifact is here, whole."""
        return self._path(digest).is_file()

    def length(self, digest: str) -> int:
        """Size in bytes. Raises NotFoundError."""
        try:
            return int(obstore.head(self._store, self._key(digest))["size"])
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def local_path(self, digest: str) -> Path | None:
        """Where to read the artifact as a file, or None when it is not here. Never write to it."""
        path = self._path(digest)
        return path if path.is_file() else None

    def open_reader(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes from ``offset`` on, at most 1 MiB at a time.

        Raises NotFoundError, and InvalidError for an offset behind the end, before the first chunk.
        """
        length = self.length(digest)
        if not 0 <= offset <= length:
            raise InvalidError(f"offset {offset} is outside of {digest} ({length} bytes)")
        return self._chunks(digest, offset, length)

    def _chunks(self, digest: str, offset: int, length: int) -> Iterator[bytes]:
        key = self._key(digest)
        while offset < length:
            end = min(offset + CHUNK_BYTES, length)
            yield bytes(obstore.get_range(self._store, key, start=offset, end=end))
            offset = end

    def writer(self, length: int | None = None) -> "BlobWriter":
        """A place to stream a new artifact into; ``length`` if known lets a full disk say so now.

        Raises ExhaustedError when there is no room.
        """
        if length is not None:
            free = self.free_bytes
            if length + RESERVE_BYTES > free:
                raise ExhaustedError(
                    f"no room for {length} bytes: {free} free in {self._root}",
                    f"{RESERVE_BYTES} bytes stay reserved; free disk space and try again",
                )
        return BlobWriter(self, self._incoming)

    def put_file(self, path: Path, digest: str) -> int:
        """Store a copy of ``path``, which must have ``digest``; returns its length in bytes.

        Raises InvalidError when the digest differs, ExhaustedError when the disk is full.
        """
        with self.writer(path.stat().st_size) as writer, path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                writer.write(chunk)
            return writer.commit(digest)

    def put_bytes(self, data: bytes) -> str:
        """Store ``data``, return its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with self.writer(len(data)) as writer:
            writer.write(data)
            writer.commit(digest)
        return digest

    def adopt(self, path: Path, digest: str) -> None:
        """Give a complete, synced file of the incoming folder its name (used by `BlobWriter`)."""
        target = self._path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        obstore.rename(self._store, f"incoming/{path.name}", self._key(digest))
        _sync_folder(target.parent)
        _sync_folder(target.parent.parent)

    def remove(self, digest: str) -> None:
        """Take an artifact away that nobody names; none is no error."""
        self._path(digest).unlink(missing_ok=True)

    def _key(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise InvalidError(f"{digest!r} is not a digest", "a digest is sha256:<64 hex digits>")
        hexed = digest.removeprefix("sha256:")
        return f"sha256/{hexed[:2]}/{hexed}"

    def _path(self, digest: str) -> Path:
        return self._root / self._key(digest)


class BlobWriter:
    """One artifact on its way in. What is not committed disappears when the context ends."""

    def __init__(self, blobs: Blobs, incoming: Path) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._length = 0
        handle, name = _named_full(lambda: tempfile.mkstemp(dir=incoming))
        self._path = Path(name)
        self._file: IO[bytes] = os.fdopen(handle, "wb", buffering=0)

    @property
    def length(self) -> int:
        """Bytes taken so far."""
        return self._length

    def write(self, data: bytes) -> None:
        """Append. Raises ExhaustedError when the disk is full."""
        view = memoryview(data)
        while view:
            view = view[_named_full(partial(self._file.write, view)) :]
        self._hash.update(data)
        self._length += len(data)

    def commit(self, digest: str) -> int:
        """Keep what was written as ``digest``, return its length in bytes.

        Raises InvalidError when the bytes have another digest, ExhaustedError on a full disk.
        """
        have = "sha256:" + self._hash.hexdigest()
        if have != digest:
            raise InvalidError(
                f"what arrived is not {digest}",
                f"{self._length} bytes with {have}",
                "the file changed while it was sent, or the transfer broke; send it again",
            )
        _named_full(lambda: os.fsync(self._file.fileno()))
        self._file.close()
        if self._blobs.exists(digest):  # same bytes: the first ones stay
            self._path.unlink()
        else:
            _named_full(lambda: self._blobs.adopt(self._path, digest))
        return self._length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _named_full(call: Callable[[], T]) -> T:
    try:
        return call()
    except OSError as error:
        if error.errno in _FULL:
            raise _full(error) from error
        raise


def _full(error: OSError) -> ExhaustedError:
    return ExhaustedError(
        f"the disk of the controller is full ({error.strerror})",
        "nothing of this artifact was kept; free disk space and send it again",
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"artifact {digest} is not stored here")
