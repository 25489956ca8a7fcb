"""Holds generated docs against the code: settings, commands, JSON, pictures. `--write` regenerates.

Reads the commands from their parsers and the settings from their tables; runs no command.
"""

import argparse
import difflib
import sys
from pathlib import Path

from lighterman.metrics import Metric
from lighterman.settings import Setting
from tools.cli_json import cli_json_page
from tools.commands import Command, click_commands, parser_commands
from tools.pictures import picture_pages

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PICTURES = ROOT / "docs" / "pictures"
NOTE = "<!-- Written by `make docs` from the code; `make check` compares. -->\n"


def settings_page() -> str:
    """docs/reference/settings.md as it should be."""
    import agent.settings
    import controller.settings

    parts = [
        "# Settings\n",
        NOTE,
        "A setting comes from the command line where it has a flag, else from the environment,\n"
        "else from the TOML file, else it has the default below. A dotted name is a TOML table\n"
        "and a key.\n",
        "## Controller\n",
        _settings_table(controller.settings.SETTINGS),
        "## Agent\n",
        _settings_table(agent.settings.SETTINGS),
    ]
    return "\n".join(parts)


def _settings_table(settings: tuple[Setting, ...]) -> str:
    rows = ["| setting | environment | default | unit | meaning |", "|---|---|---|---|---|"]
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else "–"
        rows.append(
            f"| `{setting.name}` | `{setting.env}` | {default} | {setting.unit or '–'} "
            f"| {_cell(setting.help)} |"
        )
    return "\n".join(rows) + "\n"


def metrics_page() -> str:
    """docs/reference/metrics.md as it should be."""
    import agent.serve.metric_table
    import controller.web.metric_table

    return "\n".join(
        [
            "# Metrics\n",
            NOTE,
            (ROOT / "tools" / "metrics.head.md").read_text(encoding="utf-8"),
            "## Controller\n",
            _metrics_table(controller.web.metric_table.METRICS),
            "## Agent\n",
            _metrics_table(agent.serve.metric_table.METRICS),
        ]
    )


def _metrics_table(metrics: tuple[Metric, ...]) -> str:
    rows = ["| metric | type | labels | series | meaning |", "|---|---|---|---|---|"]
    for one in metrics:
        labels = ", ".join(f"`{label}`" for label in one.labels) or "–"
        rows.append(
            f"| `{one.name}` | {one.kind} | {labels} | {_cell(one.series)} | {_cell(one.help)} |"
        )
    return "\n".join(rows) + "\n"


def commands_page() -> str:
    """docs/reference/commands.md as it should be."""
    import agent.__main__
    import agent.sim.__main__
    import controller.__main__
    from controller.cli.root import fleetctl

    parts = ["# Commands\n", NOTE]
    for title, commands in (
        ("fleetctl (also lightermanctl)", click_commands("fleetctl", fleetctl)),
        (
            "lighterman-controller",
            parser_commands(controller.__main__.build_parser()),
        ),
        ("lighterman-agent", parser_commands(agent.__main__.build_parser())),
        ("fleet-sim", parser_commands(agent.sim.__main__.build_parser())),
    ):
        parts.append(f"## {title}\n")
        parts += [_command_section(command) for command in commands]
    return "\n".join(parts)


def _command_section(command: Command) -> str:
    lines = [f"### {command.path}\n", command.help + "\n"]
    lines.append(f"```\n{command.usage}\n```\n")
    if command.options:
        lines.append("| option | meaning |")
        lines.append("|---|---|")
        lines += [f"| `{_cell(flags)}` | {_cell(meaning)} |" for flags, meaning in command.options]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "–"


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {
        REFERENCE / "settings.md": settings_page(),
        REFERENCE / "commands.md": commands_page(),
        REFERENCE / "cli-json.md": cli_json_page(NOTE),
        REFERENCE / "metrics.md": metrics_page(),
        **picture_pages(PICTURES),
    }


def check() -> tuple[bool, str]:
    """Whether the pages say what the code does, and the first difference."""
    wanted = pages()
    for path, text in wanted.items():
        name = path.relative_to(ROOT)
        if not path.exists():
            return False, f"{name} does not exist; run make docs"
        have = path.read_text()
        if have != text:
            changes = [
                line
                for line in difflib.unified_diff(
                    have.splitlines(), text.splitlines(), lineterm="", n=0
                )
                if line[:1] in "+-" and line[:3] not in ("+++", "---")
            ]
            shown = "\n".join(changes[:10])
            return False, f"{name} differs from the code; run make docs\n{shown}"
    return True, ", ".join(path.name for path in wanted)


def main() -> int:
    """Compare, or write with `--write`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.check_docs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="regenerate the pages")
    options = parser.parse_args()
    if options.write:
        for path, text in pages().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                print(f"docs: {path.relative_to(ROOT)}")
        return 0
    good, message = check()
    print(message)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
