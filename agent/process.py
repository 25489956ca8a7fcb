"""Facts about this very process and its machine, its memory, and the lock on its state folder."""

import contextlib
import ctypes
import fcntl
import os
import resource
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from agent.errors import AgentError, StoreError


class BusyError(AgentError):
    """Another agent runs on this state folder."""


def version() -> str:
    """The version of the installed distribution; empty from a bare checkout."""
    try:
        return metadata.version("lighterman")
    except metadata.PackageNotFoundError:
        return ""


@contextlib.contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state folder; BusyError when another process does, StoreError when it cannot be."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"{state_dir} cannot be used: {error.strerror}",
            "choose another folder with --state-dir, or run as its owner",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BusyError(
            f"an agent uses {state_dir} already", "`lighterman-agent status` shows it"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def rss_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def limit_memory(most_bytes: int) -> bool:
    """From now on taking more data than `most_bytes` beyond what there is fails. False: cannot be.

    An allocation that is refused is one failed inference; one that is granted and never should have
    been ends processes by the kernel's choice, or a device that swaps and answers nobody.
    """
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[5]
        most = int(pages) * os.sysconf("SC_PAGESIZE") + most_bytes
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(
            resource.RLIMIT_DATA,
            (most if hard == resource.RLIM_INFINITY else min(most, hard), hard),
        )
    except (OSError, ValueError, IndexError):
        return False
    return True


def start_anew() -> NoReturn:
    """Be the same program again, under the same process id: threads that hang end with the old one.

    Nothing is tidied up: the next start finds what a crash leaves, and blames who was on trial.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, sys.orig_argv)


# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# One heap: of others malloc_trim keeps what is free at their end, ten megabytes of an idle agent if
# it comes badly. Who waits for its lock waits for the interpreter's most of the time anyway.
_ARENAS = 1
# Pictures of megabytes are taken from the heap again and again: mapping each anew costs as much as
# a small inference. What idle memory that leaves is given back by `trim_memory`.
_MAPPED_FROM_BYTES = 32 * 1024 * 1024
_KEPT_BYTES = 64 * 1024 * 1024


def tune_memory() -> None:
    """One heap, and no mapping per request. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim_memory() -> None:
    """Give what is free in the heaps back to the system; a few milliseconds. Only with glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Tidy:
    """Trims memory once whenever something was done and it has been quiet since the look before."""

    def __init__(self, trim: Callable[[], None] = trim_memory) -> None:
        self._trim = trim
        self._seen: object = None
        self._trimmed: object = None

    def look(self, done: object) -> bool:
        """`done` is another value after anything was done. True when memory was given back."""
        quiet = done == self._seen
        self._seen = done
        if not quiet or done == self._trimmed:
            return False
        self._trimmed = done
        self._trim()
        return True


def kernel_boot_id() -> str:
    """Another text after every start of the machine; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
