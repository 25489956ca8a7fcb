"""One run of fleetctl: its context, its connection, its way to print; shared options."""

import functools
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
import yaml
from google.protobuf.message import Message
from rich.console import Console
from rich.text import Text

from controller.cli import contexts, records, tables, units
from controller.cli.connection import Connection
from controller.cli.printable import one_line, printable, printable_json
from controller.cli.problem import EXIT_USAGE, CliError
from controller.clock import SystemClock

WIDTH = 100
CLOCK = SystemClock()
FORMATS = ("table", "wide", "json", "yaml", "name")
F = TypeVar("F", bound=Callable[..., Any])


class Session:
    """State of one invocation, reached by ``click.pass_obj``."""

    def __init__(self, context: str | None = None) -> None:
        self.chosen = context
        self.output = "table"
        self.quiet = False
        self._connection: Connection | None = None
        self.out = Console(
            width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=True
        )
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def connection(self) -> Connection:
        """The connection of the chosen context."""
        if self._connection is None:
            self._connection = Connection(contexts.load(self.chosen))
        return self._connection

    @property
    def stub(self) -> Any:
        """FleetService."""
        return self.connection.stub

    @property
    def controller(self) -> str:
        """Who is asked, for messages."""
        return self._connection.context.controller if self._connection else "the controller"

    def close(self) -> None:
        """Close what is open."""
        if self._connection is not None:
            self._connection.close()

    @property
    def machine(self) -> bool:
        """Whether a program reads the output."""
        return self.output in ("json", "yaml", "name")

    def now(self) -> datetime:
        """The reader's clock, for "3 s ago" alone."""
        return CLOCK.now()

    def say(self, text: str = "") -> None:
        """A line for people; silent with --quiet and where a program reads."""
        if not self.quiet and not self.machine:
            self.out.print(self.readable(text), markup=False)

    def note(self, text: str) -> None:
        """A line beside the output, on standard error."""
        if not self.quiet:
            self.err.print(self.readable(text), markup=False)

    def readable(self, text: str) -> str:
        """As people may see it: local times, nothing that steers their terminal."""
        return units.localise(printable(text), self.now())

    def show(self, kind: str, message: Message, name: str, render: Callable[[], None]) -> None:
        """One object in the chosen form."""
        if self.output == "name":
            self.out.print(one_line(name), markup=False)
        elif self.machine:
            self.dump(records.document(kind, message))
        else:
            render()

    def show_list(
        self,
        kind: str,
        messages: list[Any],
        names: Callable[[Any], str],
        render: Callable[[], None],
        empty: str,
    ) -> None:
        """Several objects in the chosen form; ``empty`` is said to people where there are none."""
        if self.output == "name":
            for message in messages:
                self.out.print(one_line(names(message)), markup=False)
        elif self.machine:
            self.dump(records.listing(kind, messages))
        elif messages:
            render()
        else:
            self.say(empty)

    def dump(self, document: records.Record) -> None:
        """A document as JSON or YAML."""
        import json

        if self.output == "yaml":
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        else:
            text = printable_json(json.dumps(document, indent=2, ensure_ascii=False)) + "\n"
        self.out.file.write(text)
        self.out.file.flush()

    @property
    def width(self) -> int | None:
        """Characters a table may take; None: as many as it needs, for ``wide`` on a pipe."""
        if self.out.is_terminal:
            return self.out.width
        return None if self.output == "wide" else WIDTH

    def table(self, columns: Sequence[str], rows: Sequence[tables.Row]) -> None:
        """A table; a column whose name starts with ``>`` is right-aligned."""
        for line in self.table_lines(columns, rows):
            self.out.print(line)

    def table_lines(self, columns: Sequence[str], rows: Sequence[tables.Row]) -> list[Text]:
        """The lines of a table, its head bold, its times local."""
        now = self.now()
        local = [
            units.localise(one_line(row), now)
            if isinstance(row, str)
            else [units.localise(one_line(cell), now) for cell in row]
            for row in rows
        ]
        head, *lines = tables.layout(columns, local, self.width)
        return [Text(head, style="bold"), *(Text(line) for line in lines)]

    def confirm_count(self, count: int, yes: int | None, sentence: str) -> None:
        """Typed confirmation with the count; ``--yes=N`` must name the same number."""
        if yes is not None:
            if yes != count:
                raise CliError(
                    f"--yes={yes} does not match: {sentence}\nto go on, give --yes={count}",
                    EXIT_USAGE,
                )
            return
        if not sys.stdin.isatty():
            raise CliError(
                f"{sentence}, and nobody is here to confirm it\nto go on, give --yes={count}",
                EXIT_USAGE,
            )
        asked = f"{printable(sentence)}. Type {count} to go on"
        typed = click.prompt(asked, default="", show_default=False)
        if typed.strip() != str(count):
            raise CliError("not confirmed; nothing was done")


def common(function: F) -> F:
    """Adds --output, --quiet and --context to a command and hands it the session."""

    @click.option("--context", "context_name", metavar="NAME|FILE", help="Controller to ask.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and machine output.")
    @click.option(
        "-o", "--output", type=click.Choice(FORMATS), default=None, help="Form of the output."
    )
    @click.pass_obj
    @functools.wraps(function)
    def wrapper(
        session: Session,
        /,
        *args: Any,
        output: str | None,
        quiet: bool,
        context_name: str | None,
        **kwargs: Any,
    ) -> Any:
        session.output = output or session.output
        session.quiet = session.quiet or quiet
        session.chosen = context_name or session.chosen
        return function(session, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


def selector_option(function: F) -> F:
    """--selector/-l, the same everywhere."""
    return click.option(
        "-l",
        "--selector",
        default="",
        metavar="SELECTOR",
        help="For example site=berlin,profile in (a,b),!lab,@group. Empty: all.",
    )(function)


def yes_option(function: F) -> F:
    """--yes=N, the same everywhere."""
    return click.option(
        "--yes", type=int, default=None, metavar="N", help="Confirm for N, unasked."
    )(function)


def parse_ref(text: str, need_version: bool = True) -> tuple[str, str]:
    """NAME:VERSION as a pair; usage error where a part is missing."""
    name, _, version = text.partition(":")
    if not name or (need_version and not version):
        raise click.UsageError(
            f"{text!r} is not of the form NAME:VERSION, for example detector:1.3.0"
        )
    return name, version
