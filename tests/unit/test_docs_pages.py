"""Pages link to what exists and name commands and options that exist."""

import re
import tomllib
from pathlib import Path

import pytest

import agent.__main__
import agent.sim.__main__
import controller.__main__
from controller.cli.root import fleetctl
from tests.support.sources import ROOT
from tools.commands import Command, click_commands, parser_commands

CHART = ROOT / "helm" / "lighterman"
PAGES = [ROOT / "README.md", CHART / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBERED = re.compile(r"lighterman(?:-[a-z]+:|-)(\d+\.\d+\.\d+)")
OPTION = re.compile(r"--[a-z][a-z-]*")
PROGRAMS = ("fleetctl", "lighterman-controller", "lighterman-agent", "fleet-sim")
CALL = re.compile(
    rf"(?<![\w.=/-])(?:[\w./~]*bin/)?((?:{'|'.join(PROGRAMS)})(?![\w.:-]).*?)(?= -- |[;·`|)&]|$)"
)
COMMANDS: dict[str, Command] = {
    command.path: command
    for command in (
        *click_commands("fleetctl", fleetctl),
        *parser_commands(controller.__main__.build_parser()),
        *parser_commands(agent.__main__.build_parser()),
        *parser_commands(agent.sim.__main__.build_parser()),
    )
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual viewers make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path, text: str) -> list[str]:
    found = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def code(text: str) -> list[str]:
    """Lines of code: indented, in fences without a language of their own, or between backticks."""
    fenced = re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`([^`\n]+)`", rest)
    found += re.findall(r"^ {4}(\S.*)$", rest.replace("\\\n", " "), re.MULTILINE)
    for block in fenced:
        found += block.replace("\\\n", " ").splitlines()
    return found


def spoken(text: str) -> list[str]:
    """Every call of one of our programs in code, wherever in its line it begins."""
    return [
        re.split(r" #|\w: ", said)[0].strip() for line in code(text) for said in CALL.findall(line)
    ]


def unknown(line: str) -> list[str]:
    """Words of a command line that no command or option has."""
    words = re.sub(r"^\S*\$\((.*)\)$", r"\1", line).split()
    if words[1:2] == ["--context"]:  # stands before the command too
        del words[1:3]
    path = words[0].rpartition("/")[2]
    for word in words[1:]:
        if f"{path} {word}" not in {" ".join(c.split()[: len(path.split()) + 1]) for c in COMMANDS}:
            break
        path += f" {word}"
    command = COMMANDS.get(path)
    has_children = any(c.startswith(path + " ") for c in COMMANDS)
    rest = words[len(path.split()) :]
    if command is None and not has_children:
        return [path]
    wrong = []
    if command is not None:
        known = set(OPTION.findall(" ".join(flags for flags, _ in command.options))) | {"--help"}
        wrong = [option for option in OPTION.findall(line) if option not in known]
    if has_children and rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        wrong.append(f"{path} {rest[0]}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_every_page_is_in_both_tables_of_contents() -> None:
    for contents in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        text = contents.read_text(encoding="utf-8")
        linked = {
            (contents.parent / link.partition("#")[0]).resolve() for link in LINK.findall(text)
        }
        assert sorted({*(ROOT / "docs").glob("*.md")} - linked - {contents}) == [], contents


def test_a_broken_link_or_anchor_is_found() -> None:
    page = ROOT / "docs" / "README.md"
    assert broken(page, "[a](nowhere.md) [b](concepts.md#nothing) [c](concepts.md)") == [
        "nowhere.md",
        "concepts.md#nothing",
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if "reference" not in p.parts], ids=name_of)
def test_commands_exist_with_their_options(page: Path) -> None:
    lines = spoken(page.read_text(encoding="utf-8"))
    assert [(line, wrong) for line in lines if (wrong := unknown(line))] == []


def test_commands_in_the_notes_of_a_release_exist() -> None:
    text = (CHART / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    lines = [
        line.strip()
        for line in re.sub(r"\{\{-? ?\$run ?\}\}", "", text).replace("\\\n", " ").splitlines()
        if line.strip().startswith(PROGRAMS)
    ]
    assert len(lines) >= 4
    assert [(line, wrong) for line in lines if (wrong := unknown(line))] == []


def test_fences_and_calls_within_a_line_are_read() -> None:
    page = (
        "```\nerror: no agent\n  start it: lighterman-agent run; why: fleetctl device eat d\n```\n"
        "    runuser -u lighterman-agent -- /opt/x/bin/lighterman-agent enroll \\\n  --sweetly\n"
        "    kubectl exec deploy/fleet-lighterman -- lighterman-controller operator grant ana\n"
        "    T=$(fleetctl admin token mint)\n```python\nfleetctl no call\n```\n"
    )
    wrong = [one for line in spoken(page) for one in unknown(line)]
    assert sorted(wrong) == [
        "--sweetly",
        "fleetctl admin token mint",
        "fleetctl device eat",
        "lighterman-controller operator grant",
    ]


def test_pages_name_the_version_of_this_source() -> None:
    """Wheels and images by their number, where people copy it."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    named = [one for text in texts for one in NUMBERED.findall(text)]
    assert len(named) >= 4
    assert set(named) == {version}


def test_an_unknown_command_or_option_is_found() -> None:
    assert unknown("fleetctl build undo digits:1.0.0") == ["fleetctl build undo"]
    assert unknown("fleetctl rollout start d:1 --slowly") == ["--slowly"]
    assert unknown("fleetctl rollout start d:1 --to all --yes=2") == []
