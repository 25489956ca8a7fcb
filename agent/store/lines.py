"""A file of JSON lines, each with its checksum: appended durably, read tolerantly.

Refuses to hide damage: a torn last line is dropped (its append never returned), a wrong one before
that is reported and left out.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import WriteFailedError
from agent.store.disk import Disk

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that is not what was written; `torn` for the last one."""

    path: str
    line: int
    reason: str
    torn: bool = False


def encode_line(record: Mapping[str, Any]) -> bytes:
    """Checksum, space, canonical JSON, newline."""
    body = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%08x " % zlib.crc32(body) + body + b"\n"


def decode_line(line: bytes) -> Record:
    """The record of a line without its newline; ValueError says what is wrong with it."""
    if len(line) < 10 or line[8:9] != b" ":
        raise ValueError("not a record")
    body = line[9:]
    if line[:8] != b"%08x" % zlib.crc32(body):
        raise ValueError("checksum differs")
    record = json.loads(body)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record


class LineLog:
    """One append-only file. One writer."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self.records: list[tuple[int, Record]] = []
        self.damage: list[Damage] = []
        self.size = 0
        self._read()

    def _read(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise WriteFailedError(f"{self.path} cannot be read: {error}") from error
        end = data.rfind(b"\n") + 1
        lines = data[:end].split(b"\n")[:-1]
        wrong: list[tuple[int, int, str]] = []
        offset = 0
        for number, line in enumerate(lines, 1):
            try:
                self.records.append((number, decode_line(line)))
            except (ValueError, RecursionError) as error:
                wrong.append((number, offset, str(error)))
            offset += len(line) + 1
        self.size = end
        for number, at, reason in wrong:
            torn = number == len(lines) and end == len(data)
            self.damage.append(Damage(str(self.path), number, reason, torn))
            if torn:
                self.size = at
        if end != len(data):
            self.damage.append(Damage(str(self.path), len(lines) + 1, "cut off", torn=True))

    def append(self, record: Mapping[str, Any]) -> int:
        """Make one record durable; gives its bytes. On a StoreError nothing was added."""
        line = encode_line(record)
        self.size = self._disk.append(self.path, self.size, line)
        return len(line)

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole file in one atomic step."""
        data = b"".join(encode_line(record) for record in records)
        self._disk.write_atomic(self.path, data)
        self.size = len(data)
