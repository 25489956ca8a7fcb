"""Starts the processes that run or compile builds, and ends those that are still getting ready.

In the syntax of Python 3.8: a child under another Python starts the one that compiles for it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from typing import Any

from agent.runtime import child_main

LEAVE_S = 3.0


class GoneError(Exception):
    """The process is no more, or cannot be believed; the text says how it ended."""


class Started:
    """A process of `child_main`, its pipes, and memory that both see. OSError: it cannot start."""

    def __init__(self, python: str, by_path: bool) -> None:
        self._dropped = False
        self.taken, self.given = _memory("inputs"), _memory("outputs")
        life, self._life = os.pipe2(os.O_CLOEXEC)
        asks, self.asks = os.pipe2(os.O_CLOEXEC)
        self.answers, answers = os.pipe2(os.O_CLOEXEC)
        theirs = (life, asks, answers)
        shared = (*theirs, self.taken, self.given)
        how = [child_main.__file__] if by_path else ["-m", child_main.__name__]
        try:
            self.process = subprocess.Popen(
                [python, "-I", *how, *map(str, shared)],
                stdin=subprocess.DEVNULL,
                pass_fds=shared,
            )
        except OSError:
            self._drop()
            raise
        finally:
            for fd in theirs:
                os.close(fd)

    def ending(self) -> str:
        """How it ended, for people."""
        try:
            code = self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "closed its pipe"
        if code == -signal.SIGKILL:
            return "was killed: called off, or out of memory"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def kill(self) -> None:
        """Now, whatever it does."""
        self.process.kill()

    def end(self) -> None:
        """Let it go, and see it gone."""
        self._drop()
        try:
            self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def _drop(self) -> None:
        if self._dropped:  # the numbers may be somebody else's by now
            return
        self._dropped = True
        for fd in (self._life, self.asks, self.answers, self.taken, self.given):
            os.close(fd)


class Starting:
    """Processes that are getting ready, which takes minutes where they compile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._those: set[Started] = set()
        self._over = False

    def add(self, one: Started) -> None:
        """It is getting ready; ended at once where the agent ends."""
        with self._lock:
            self._those.add(one)
            over = self._over
        if over:
            one.kill()

    def done(self, one: Started) -> None:
        """It is ready, or gone."""
        with self._lock:
            self._those.discard(one)

    def begin(self) -> None:
        """An agent starts in this process."""
        with self._lock:
            self._over = False

    def end(self) -> None:
        """The agent ends: nobody waits for these any more, nor for later ones."""
        with self._lock:
            self._over = True
            those = list(self._those)
        for one in those:
            one.kill()


# Of this process: who waits for one of these cannot be reached otherwise.
STARTING = Starting()


def _memory(name: str) -> int:
    """Anonymous memory that grows and never shrinks: nobody can cut off what another one reads."""
    fd = os.memfd_create(f"lighterman-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # Python 3.8 has no names for these: linux/fcntl.h.
    add_seals, seal_shrink = 1033, 2
    fcntl.fcntl(fd, add_seals, seal_shrink)
    return fd


def write_memory(fd: int, data: Any, at: int) -> None:
    """All of a buffer, at its place."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
