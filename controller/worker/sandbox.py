"""Turns a fresh process into a job's: limits, no network, few files, no privileges; then runs it.

Run as `python -I -m controller.worker.sandbox MEMORY_BYTES CPU_S DIR`. Imports only the standard
library. What the system does not permit is said on stderr and left out; limits are never left out.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

from controller.worker.fence import fence_files

NICE = 10
ADDRESS_SPACE_EXTRA = 4 * 1024**3  # mapped is not used: thread stacks, arenas, libraries
MAX_FILE_BYTES = 8 * 1024**3
MAX_FILES = 512
CPU_GRACE_S = 5
_CLONE_NEWIPC, _CLONE_NEWUSER = 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_CAPBSET_DROP, _CAPABILITY_VERSION_3 = 24, 0x20080522
_DIED = 128  # exit codes above it are signals, as shells have it
_FIXED = (signal.SIGKILL, signal.SIGSTOP)
_IOPRIO_IDLE = 3 << 13
_IOPRIO_SYSCALL = {"x86_64": 251, "aarch64": 30}


def main(arguments: list[str]) -> None:
    """Restrict this process and run the job in it, or in a process space of its own."""
    memory_bytes, cpu_s, directory = int(arguments[0]), int(arguments[1]), arguments[2]
    libc = ctypes.CDLL(None, use_errno=True)
    end_with_parent(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    be_modest(libc)
    if not leave_network(libc):
        sys.stderr.write("warning: the system permits no network namespace for the job\n")
    if libc.unshare(_CLONE_NEWPID) == 0:
        # The first process of a space is its end: whatever a job starts, and however it hides,
        # is gone with it. It ignores signals that a job sends itself, so the job is its child.
        run_below(libc)
        run_below(libc)
    set_limits(memory_bytes, cpu_s)
    drop_capabilities(libc)
    if not fence_files(Path(directory)):
        sys.stderr.write("warning: the system fences no files off from the job (no Landlock)\n")
    os.execv(sys.executable, [sys.executable, "-I", "-m", "controller.optimize.job", directory])


def end_with_parent(libc: ctypes.CDLL) -> None:
    """The worker's end is the job's end."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_below(libc: ctypes.CDLL) -> None:
    """Go on in a child; this process waits for it and ends the same way."""
    child = os.fork()
    if child == 0:
        end_with_parent(libc)
        return
    while True:
        pid, status = os.wait()  # also of orphans, which come to the first process of a space
        if pid == child:
            break
    code = os.waitstatus_to_exitcode(status)
    number = -code if code < 0 else code - _DIED
    if number > 0 and os.getpid() != 1:
        signal.signal(number, signal.SIG_DFL) if number not in _FIXED else None
        os.kill(os.getpid(), number)
    os._exit(code if code >= 0 else _DIED - code)


def leave_network(libc: ctypes.CDLL) -> bool:
    """Into a network namespace without interfaces: root may, others through a user namespace."""
    for flags in (0, _CLONE_NEWUSER):
        if libc.unshare(flags | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
            return True
    return False


def be_modest(libc: ctypes.CDLL) -> None:
    """Last in line for the processor and the disk, first in line when memory runs out."""
    os.nice(NICE)
    number = _IOPRIO_SYSCALL.get(os.uname().machine)
    if number is not None:
        libc.syscall(number, 1, 0, _IOPRIO_IDLE)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """A worker that runs as root gives its job none of root's powers: they pass by the fence."""
    for number in range(64):
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header, none = struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "the job's capabilities cannot be dropped")


def set_limits(memory_bytes: int, cpu_s: int) -> None:
    """Limits that the job cannot raise again."""
    for what, value in (
        (resource.RLIMIT_AS, memory_bytes + ADDRESS_SPACE_EXTRA),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # At the soft limit of time the signal says so; at the hard one it is a bare SIGKILL.
        last = limit + CPU_GRACE_S if what == resource.RLIMIT_CPU else limit
        last = last if hard == resource.RLIM_INFINITY else min(last, hard)
        resource.setrlimit(what, (limit, last))


if __name__ == "__main__":
    main(sys.argv[1:])
