"""What people type and read: durations, sizes, counts, references."""

import click
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from controller.cli import units
from controller.cli.session import parse_ref


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1d", 86400.0),
    ],
)
def test_durations_are_read(typed: str, seconds: float) -> None:
    assert units.DURATION.convert(typed, None, None) == seconds


@pytest.mark.parametrize("typed", ["", "30", "5 m", "m5", "1x", "-3s", "1h,2m"])
def test_what_is_no_duration_is_refused(typed: str) -> None:
    with pytest.raises(click.BadParameter, match="write 30s"):
        units.DURATION.convert(typed, None, None)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (24_500_000, "24.5 MB"), (1_100_000_000, "1.1 GB")],
)
def test_sizes_carry_their_unit(count: int, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0.2 s"), (35, "35 s"), (720, "12 min"), (11_400, "3 h 10 min")]
)
def test_durations_are_told(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_an_unset_time_is_a_dash_and_never_1970() -> None:
    assert units.local(Timestamp()) == units.UNKNOWN
    assert units.instant(Timestamp()) is None


def test_counts_leave_zeros_out() -> None:
    assert units.counts({"COMMITTED": 7, "PROBATION": 0, "FAILED": 2}) == "committed 7  failed 2"


def test_a_reference_needs_its_version() -> None:
    assert parse_ref("detector:1.3.0") == ("detector", "1.3.0")
    assert parse_ref("detector", need_version=False) == ("detector", "")
    with pytest.raises(click.UsageError, match="NAME:VERSION"):
        parse_ref("detector")
