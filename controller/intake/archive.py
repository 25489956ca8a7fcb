"""Zip files as bytes, for `.pt2` and `.npz`: checks the directory, hands out capped entries.

Refuses what a reader could be fooled by: links, duplicates, overlaps, names that leave the
archive, encryption, bytes before the first entry, more bytes than were allowed. Extracts nothing
to disk by name.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from controller.errors import InvalidError

ZIP_MAGIC = b"PK\x03\x04"
MAX_ENTRIES = 65_000
MAX_DIRECTORY_BYTES = 32 * 1024**2
MAX_NAME = 512
_END = struct.Struct("<4s4H2LH")
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1
READ_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Archive:
    """A checked zip file that is open for reading."""

    zip: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]
    what: str

    def read(self, name: str, cap_bytes: int) -> bytes:
        """The whole entry; InvalidError above the cap or when its bytes are damaged."""
        info = self.entries[name]
        if info.file_size > cap_bytes:
            raise InvalidError(
                f"{self.what}: {name} is {info.file_size} bytes long",
                f"at most {cap_bytes} are read of such an entry",
            )
        with self.open(name) as stream:
            return stream.read(cap_bytes + 1)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Stream an entry; damage found while reading becomes InvalidError."""
        try:
            with self.zip.open(self.entries[name]) as stream:
                yield stream
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise InvalidError(f"{self.what}: {name} is damaged: {error}") from error


@contextmanager
def open_archive(
    path: Path, what: str, cap_bytes: int, compressions: frozenset[int]
) -> Iterator[Archive]:
    """Open and check a zip file. ``cap_bytes`` bounds the file and the sum of what is inside.

    Raises InvalidError that begins with ``what`` and names the entry.
    """
    length = path.stat().st_size
    if length > cap_bytes:
        raise InvalidError(f"{what} is {length} bytes long", f"at most {cap_bytes} are allowed")
    _check_end(path, length, what)
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, ValueError) as error:
        raise InvalidError(f"{what} is no complete zip file: {error}") from error
    with opened:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in opened.infolist():
            _check_entry(info, what, compressions)
            if info.filename in entries:
                raise InvalidError(f"{what} holds {info.filename} twice")
            entries[info.filename] = info
        _check_layout(list(entries.values()), opened.start_dir, what)
        total = sum(info.file_size for info in entries.values())
        if total > cap_bytes:
            raise InvalidError(
                f"{what} unpacks to {total} bytes", f"at most {cap_bytes} are allowed"
            )
        yield Archive(opened, entries, what)


def _check_end(path: Path, length: int, what: str) -> None:
    """Look at both ends before a library reads a directory of hostile size."""
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic != ZIP_MAGIC:
            raise InvalidError(f"{what} is no zip file: it begins with {magic!r}")
        if length < _END.size:
            raise InvalidError(f"{what} is cut short")
        stream.seek(-_END.size, 2)
        end = _END.unpack(stream.read(_END.size))
    signature, disk, directory_disk, here, count, size, _offset, comment = end
    if signature != b"PK\x05\x06" or comment:
        raise InvalidError(f"{what} is cut short, or something follows the zip file's end")
    if disk or directory_disk or here != count:
        raise InvalidError(f"{what} is a part of a split zip file")
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise InvalidError(f"{what} lists {count} entries", f"at most {MAX_ENTRIES} are read")


def _check_entry(info: zipfile.ZipInfo, what: str, compressions: frozenset[int]) -> None:
    name = info.orig_filename
    parts = name.split("/")
    if (
        not name
        or len(name) > MAX_NAME
        or not name.isprintable()
        or "\\" in name
        or name != info.filename
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise InvalidError(f"{what} holds an entry named {name[:80]!r}", "that name is not allowed")
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise InvalidError(f"{what}: {name} is a link or a device, not a file")
    if info.flag_bits & _ENCRYPTED:
        raise InvalidError(f"{what}: {name} is encrypted")
    if info.compress_type not in compressions:
        raise InvalidError(f"{what}: {name} is packed in a way that its format does not use")
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise InvalidError(f"{what}: {name} states two different lengths")


def _check_layout(entries: list[zipfile.ZipInfo], directory_at: int, what: str) -> None:
    """Each byte belongs to one entry: overlapping entries are how small bombs are made."""
    end = 0
    for info in sorted(entries, key=lambda entry: entry.header_offset):
        if info.header_offset < end:
            raise InvalidError(f"{what}: {info.filename} overlaps another entry")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    if end > directory_at:
        raise InvalidError(f"{what} is cut short")
