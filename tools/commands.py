"""Lists the commands of a click group or an argparse parser, for the reference page. Runs none."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class Command:
    """One command: the words that name it, its usage line, help, and options with their meaning."""

    path: str
    usage: str
    help: str
    options: tuple[tuple[str, str], ...]


def click_commands(name: str, group: click.Command) -> list[Command]:
    """The group itself and everything under it that is not hidden, parents first, by name."""
    return list(_walk_click(click.Context(group, info_name=name)))


def _walk_click(context: click.Context) -> Iterator[Command]:
    command = context.command
    yield Command(
        path=context.command_path,
        usage=" ".join([context.command_path, *command.collect_usage_pieces(context)]),
        help=_paragraphs(command.help or command.short_help or ""),
        options=tuple(_click_options(context)),
    )
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None and not child.hidden:
                yield from _walk_click(click.Context(child, info_name=child_name, parent=context))


def _click_options(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if not isinstance(parameter, click.Option) or record is None or parameter.hidden:
            continue
        if "--help" not in parameter.opts:
            yield record


def parser_commands(parser: argparse.ArgumentParser) -> list[Command]:
    """The sub-commands of the parser, or the parser itself where it has none."""
    children = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    if not children:
        return [_parser_command(parser)]
    commands: list[Command] = []
    for action in children:
        for child in action.choices.values():
            commands += parser_commands(child)
    return commands


def _parser_command(parser: argparse.ArgumentParser) -> Command:
    options = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        if action.choices is not None:
            value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
        name = ", ".join(action.option_strings) or str(value)
        shown = f"{name} {value}" if action.option_strings and value else name
        options.append((shown, (action.help or "") % {**vars(action), "prog": parser.prog}))
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    return Command(parser.prog, usage, _paragraphs(parser.description or ""), tuple(options))


def _paragraphs(text: str) -> str:
    """Help text with its lines joined, so that the page does not depend on how it was wrapped."""
    blocks = text.replace("\b", "").strip().split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)
