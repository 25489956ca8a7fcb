"""``--watch``: the same screen again and again; on a pipe only the lines that are new. And tails.

Ends by Ctrl-C, with exit code 0: whoever watches has seen enough.
"""

import re
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from controller.cli.session import Session

EVERY_S = 2.0
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
# What only says that time passes makes no line new.
_PASSING = re.compile(r"\d[\d.]* (?:s|min|h|d)\b(?: \d+ min)?(?: ago)?")


def watch_option(function: F) -> F:
    """--watch/-w, the same everywhere."""
    return click.option(
        "-w", "--watch", is_flag=True, help="Go on: redraw, or on a pipe print new lines; Ctrl-C."
    )(function)


def follow(session: Session, show: Callable[[], object]) -> int:
    """Show until interrupted; returns the exit code."""
    if session.machine:
        raise click.UsageError(
            "--watch is for people; programs ask again, or use event tail -o json"
        )
    try:
        if session.out.is_terminal:
            _redraw(session, show)
        else:
            _print_news(session, show)
    except KeyboardInterrupt:
        session.out.file.flush()
    return 0


def tail(session: Session, stream: Callable[[], Iterable[T]], say: Callable[[T], None]) -> int:
    """Say each item as it comes, until interrupted; returns the exit code."""
    if session.output == "yaml":
        raise click.UsageError("a tail has no end; -o json gives one document a line")
    try:
        for item in stream():
            say(item)
    except KeyboardInterrupt:
        session.out.file.flush()
    return 0


def _frame(session: Session, show: Callable[[], object]) -> str:
    with session.out.capture() as taken:
        show()
    return taken.get()


def _redraw(session: Session, show: Callable[[], object]) -> None:
    while True:
        frame = _frame(session, show)  # asked for first, so that the screen is never empty
        session.out.clear()
        session.out.file.write(frame)
        session.out.file.flush()
        time.sleep(EVERY_S)


def _print_news(session: Session, show: Callable[[], object]) -> None:
    before: set[str] = set()
    while True:
        lines = _frame(session, show).splitlines()
        for line in lines:
            if news_key(line) not in before:
                session.out.file.write(line + "\n")
        session.out.file.flush()
        before = {news_key(line) for line in lines}
        time.sleep(EVERY_S)


def news_key(line: str) -> str:
    """The line without what changes by itself: ages, and the widths of its columns."""
    return " ".join(_PASSING.sub("", line).split())
