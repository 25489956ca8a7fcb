"""The checks find what they are for: stub drift, a broken protocol, a lost index, a command."""

import argparse
from pathlib import Path

import click
import pytest
import sqlalchemy as sa

from tools import check, stubs
from tools.check_migrations import shape
from tools.commands import click_commands, parser_commands


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "protocol.golden"
    copy.write_text(stubs.GOLDEN.read_text())
    monkeypatch.setattr(stubs, "GOLDEN", copy)
    return copy


def test_the_recorded_protocol_is_the_one_in_the_files(golden: Path) -> None:
    good, text = stubs.check()
    assert good, text


def test_a_name_that_went_away_breaks_older_peers(golden: Path) -> None:
    with golden.open("a") as file:
        file.write("lighterman.v1.Doorbell.colour = 99 string\n")
    good, text = stubs.check()
    assert not good
    assert "breaks older peers: lighterman.v1.Doorbell.colour = 99 string" in text


def test_a_changed_number_breaks_older_peers(golden: Path) -> None:
    text = golden.read_text()
    changed = text.replace("Doorbell.generation = 1 ", "Doorbell.generation = 7 ")
    assert changed != text
    golden.write_text(changed)
    good, said = stubs.check()
    assert not good
    assert "Doorbell.generation = 7" in said


def test_an_unrecorded_name_is_told(golden: Path) -> None:
    lines = golden.read_text().splitlines(keepends=True)
    golden.write_text("".join(line for line in lines if "Doorbell.generation" not in line))
    good, text = stubs.check()
    assert not good
    assert "not in the golden file: lighterman.v1.Doorbell.generation" in text


def test_a_stub_that_differs_is_named(tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    stubs.generate(fresh, tmp_path / "descriptor")
    assert stubs.stale(fresh) == []
    changed = fresh / "lighterman" / "v1" / "common_pb2.py"
    changed.write_text(changed.read_text() + "# drift\n")
    assert stubs.stale(fresh) == ["lighterman/v1/common_pb2.py"]


def make_table(engine: sa.Engine, *, partial: bool, check_value: int = 0) -> None:
    metadata = sa.MetaData()
    table = sa.Table(
        "t",
        metadata,
        sa.Column("a", sa.Integer, primary_key=True),
        sa.Column("b", sa.Text, nullable=False),
        sa.CheckConstraint(f"a >= {check_value}", name="a_low"),
    )
    where = sa.text("b = 'open'") if partial else None
    sa.Index("one_open", table.c.b, unique=True, sqlite_where=where)
    metadata.create_all(engine)


def shape_of(*, partial: bool, check_value: int = 0) -> set[str]:
    engine = sa.create_engine("sqlite://")
    try:
        make_table(engine, partial=partial, check_value=check_value)
        return shape(engine)
    finally:
        engine.dispose()


def test_equal_tables_have_equal_shapes() -> None:
    assert shape_of(partial=True) == shape_of(partial=True)


def test_a_lost_predicate_of_an_index_is_seen() -> None:
    differing = shape_of(partial=True) ^ shape_of(partial=False)
    assert all(line.startswith("index one_open") for line in differing)
    assert len(differing) == 2


def test_a_changed_check_is_seen() -> None:
    assert len(shape_of(partial=True) ^ shape_of(partial=True, check_value=1)) == 2


def test_click_commands_are_listed_with_their_options() -> None:
    @click.group()
    def root() -> None:
        """Root of all."""

    @root.command()
    @click.argument("name")
    @click.option("--wait", is_flag=True, help="Wait for it.")
    def push(name: str, wait: bool) -> None:
        """Push a thing.

        And wait, if asked.
        """

    @root.command(hidden=True)
    def secret() -> None:
        """Not shown."""

    listed = click_commands("fleetctl", root)
    assert [command.path for command in listed] == ["fleetctl", "fleetctl push"]
    assert listed[1].usage == "fleetctl push [OPTIONS] NAME"
    assert listed[1].help == "Push a thing.\n\nAnd wait, if asked."
    assert listed[1].options == (("--wait", "Wait for it."),)


def test_parser_commands_are_listed_with_their_options() -> None:
    parser = argparse.ArgumentParser(prog="lighterman-agent")
    commands = parser.add_subparsers()
    enroll = commands.add_parser("enroll", description="Enrol this device.")
    enroll.add_argument("--token", help="from %(prog)s's operator")
    enroll.add_argument("--debug", help=argparse.SUPPRESS)
    enroll.add_argument("name", help="what to call it")
    (listed,) = parser_commands(parser)
    assert listed.path == "lighterman-agent enroll"
    assert listed.help == "Enrol this device."
    assert listed.options == (
        ("--token TOKEN", "from lighterman-agent enroll's operator"),
        ("NAME", "what to call it"),
    )


def test_a_missing_tool_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = check.Check("types", "surely_absent", lambda: (True, ""))
    failing = check.Check("lint", "json", lambda: (False, "one is wrong\ndetail"))
    monkeypatch.setattr(check, "CHECKS", (absent, failing))
    monkeypatch.setattr("sys.argv", ["tools.check", "types"])
    assert check.main() == 0
    assert capsys.readouterr().out == "types       SKIPPED: surely_absent\n"
    monkeypatch.setattr("sys.argv", ["tools.check", "--strict", "types"])
    assert check.main() == 1
    monkeypatch.setattr("sys.argv", ["tools.check", "lint"])
    capsys.readouterr()
    assert check.main() == 1
    assert capsys.readouterr().out == "lint        FAILED  one is wrong\n  detail\n"
