"""Ends the broker when the controller is gone, even by kill -9. A script of the standard library.

The controller holds the write end of our standard input: a byte ``H`` means "reload", the end of
the pipe means "end the broker". A parent-death signal would not do: it is lost when the broker
changes its user. Decides nothing else and writes nothing.
"""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys

TERM_S = 3.0


def main(command: list[str]) -> int:
    """Run `command` until it ends or our standard input does; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the pipe ends us
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one file per connected device
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, restore_signals=True)
    while child.poll() is None:
        ready, _, _ = select.select([0, read_end], [], [], 5.0)
        if read_end in ready:
            os.read(read_end, 64)
        if 0 in ready:
            told = os.read(0, 64)
            if not told:
                _end(child)
                break
            if b"H" in told:
                _signal(child, signal.SIGHUP)
    return child.returncode if child.returncode is not None else 1


def _end(child: "subprocess.Popen[bytes]") -> None:
    _signal(child, signal.SIGTERM)
    try:
        child.wait(TERM_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
