"""Turns a fresh process into a job's: limits, no network, low priority; then becomes the job.

Run as `python -I -m controller.worker.sandbox MEMORY_BYTES CPU_S DIR`. Imports only the standard
library. What the system does not permit is said on stderr and left out; limits are never left out.
"""

import ctypes
import os
import resource
import sys

NICE = 10
ADDRESS_SPACE_EXTRA = 4 * 1024**3  # mapped is not used: thread stacks, arenas, libraries
MAX_FILE_BYTES = 8 * 1024**3
MAX_FILES = 512
_CLONE_NEWNET, _CLONE_NEWUSER, _CLONE_NEWIPC = 0x40000000, 0x10000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_IOPRIO_IDLE = 3 << 13
_IOPRIO_SYSCALL = {"x86_64": 251, "aarch64": 30}


def main(arguments: list[str]) -> None:
    """Restrict this process and replace it by the job."""
    memory_bytes, cpu_s, directory = int(arguments[0]), int(arguments[1]), arguments[2]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)  # the worker's end is the job's end
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not leave_network(libc):
        sys.stderr.write("warning: the system permits no network namespace for the job\n")
    be_modest(libc)
    set_limits(memory_bytes, cpu_s)
    os.execv(sys.executable, [sys.executable, "-I", "-m", "controller.optimize.job", directory])


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
        resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
