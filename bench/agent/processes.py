"""What the kernel says of a process: memory, CPU time, cores, bytes of its TCP connections."""

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_SOCK_DIAG = 4
_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x0001 | 0x0300
_DONE = 3
_ESTABLISHED = 1
_INFO = 2
# struct tcp_info: where bytes_acked, bytes_received, segs_out and segs_in stand.
_BYTES_AT, _SEGMENTS_AT = 120, 136
_HEADER_BYTES = 52  # IPv4 and TCP with timestamps


def rss_mb(pid: int) -> float:
    """Resident memory, MB."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE") / 1e6


def threads(pid: int) -> list[int]:
    """Its threads."""
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads that live, to the nanosecond."""
    total = 0
    for task in threads(pid):
        text = Path(f"/proc/{pid}/task/{task}/schedstat").read_text(encoding="ascii")
        total += int(text.split()[0])
    return total / 1e9


def wakeups(pid: int) -> int:
    """How often its threads gave the CPU away by themselves."""
    found = 0
    for task in threads(pid):
        text = Path(f"/proc/{pid}/task/{task}/status").read_text(encoding="ascii")
        found += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found


def pin(pid: int, core: int) -> None:
    """Keep every thread of it, and those they start, on one core."""
    for task in threads(pid):
        os.sched_setaffinity(task, {core})


@dataclass(frozen=True, slots=True)
class Carried:
    """What one connection carried both ways since it began: bytes with TLS, and TCP segments."""

    payload_bytes: int
    segments: int

    @property
    def wire_bytes(self) -> int:
        """With IPv4 and TCP headers of 52 bytes a segment."""
        return self.payload_bytes + self.segments * _HEADER_BYTES


def carried(pid: int, port: int) -> Carried:
    """The sum over the established connections of a process to a loopback port.

    Asked of the kernel by netlink, so that nothing stands between the two ends.
    """
    mine = _inodes(pid)
    total, segments = 0, 0
    for inode, peer, info in _dump():
        if peer == port and inode in mine:
            total += sum(struct.unpack_from("=QQ", info, _BYTES_AT))
            segments += sum(struct.unpack_from("=II", info, _SEGMENTS_AT))
    return Carried(total, segments)


def _inodes(pid: int) -> set[int]:
    found = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = os.readlink(handle)
        except OSError:
            continue
        if link.startswith("socket:["):
            found.add(int(link[8:-1]))
    return found


def _dump() -> list[tuple[int, int, bytes]]:
    """Inode, peer's port and tcp_info of every established connection, IPv4 and IPv6."""
    found: list[tuple[int, int, bytes]] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as diag:
            body = struct.pack(
                "=BBBBI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, 1 << _ESTABLISHED
            ) + bytes(48)
            head = struct.pack("=IHHII", 16 + len(body), _DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
            diag.send(head + body)
            while _take(diag.recv(1 << 17), found):
                pass
    return found


def _take(data: bytes, found: list[tuple[int, int, bytes]]) -> bool:
    """Read one datagram of answers; False at the end of the dump."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind != _DIAG_BY_FAMILY:
            return False
        message = data[at + 16 : at + length]
        (peer,) = struct.unpack_from("!H", message, 6)
        (inode,) = struct.unpack_from("=I", message, 68)
        info = _attribute(message[72:])
        if len(info) >= _SEGMENTS_AT + 8:
            found.append((inode, peer, info))
        at += (length + 3) & ~3
    return True


def _attribute(data: bytes) -> bytes:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if kind == _INFO:
            return data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return b""
