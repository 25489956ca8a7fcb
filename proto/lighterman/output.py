"""What becomes of a program whose standard output cannot be written. Only the standard library.

Without it the interpreter notices at its end, in words of its own and with exit code 120, or a
parser of arguments swallows it. Refuses to judge errors of anything else than the output.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

EXIT_FAILED = 1


class OutputError(Exception):
    """Standard output took no more. No OSError: nobody is to take it for a failure of a file."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cannot_write(cause))
        self.is_pipe = isinstance(cause, BrokenPipeError)


class _Watched:
    """A stream whose failures are told from all other failures."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: Any) -> int:
        """OutputError."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        """OutputError."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(error) from None

    @property
    def buffer(self) -> "_Watched":
        """The same for bytes."""
        return _Watched(self._stream.buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def cannot_write(error: OSError) -> str:
    """The one line that people read."""
    return f"the output cannot be written: {error.strerror or error}"


def drop_output() -> None:
    """Give up what is still held back, and all that comes."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def with_output(act: Callable[[], int]) -> int:
    """The exit code of `act`; 1, and a line, where standard output could not take what it said.

    Who reads no more (a closed pipe) is told nothing.
    """
    before = sys.stdout
    if before is None:
        return act()
    sys.stdout = cast(Any, _Watched(before))
    try:
        try:
            return act()
        finally:
            sys.stdout.flush()  # what is still held back may not get out either
    except OutputError as error:
        drop_output()
        if not error.is_pipe:
            sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    finally:
        sys.stdout = before


def announce(text: str) -> None:
    """For what serves: say it in one write, and go on serving where it cannot be said."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OutputError as error:
        drop_output()
        sys.stderr.write(f"warning: {error}; serving goes on\n")
