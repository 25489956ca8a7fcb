"""The parts of the fleet bench that compute: reading while it is written, quantiles, CPU."""

import os
from pathlib import Path

import pytest

from bench.fleet.figures import Cpu, cpu_s, quantile, rss_mb
from bench.fleet.happenings import Happenings, by_device

LINE = '{"at":%s,"device_id":"%s","kind":"fetched","rollout":"r-1"}\n'


def test_lines_are_read_once_and_only_when_they_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "happenings"
    read = Happenings(file)
    assert read.read().all == []
    file.write_text(LINE % (1.5, "a") + (LINE % (2.5, "b"))[:20])
    assert [one.device_id for one in read.read().all] == ["a"]
    file.write_text(LINE % (1.5, "a") + LINE % (2.5, "b") + LINE % (3.5, "a"))
    assert [one.at for one in read.read().of("fetched", "r-1")] == [1.5, 2.5, 3.5]
    assert by_device(read.of("fetched")) == {"a": 1.5, "b": 2.5}
    assert read.of("fetched", "r-2") == []


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.5, 5.0), (0.9, 9.0), (0.99, 10.0), (1.0, 10.0), (0.01, 1.0)]
)
def test_a_quantile_is_a_value_that_was_seen(share: float, wanted: float) -> None:
    assert quantile([float(n) for n in range(10, 0, -1)], share) == wanted


def test_cores_are_cpu_seconds_by_wall_seconds() -> None:
    before, after = Cpu(10.0, {"x": 3.0}), Cpu(20.0, {"x": 8.0})
    assert after.cores_since(before, "x") == 0.5
    assert after.spent_since(before, "x") == 5.0


def test_this_process_has_used_some_of_both() -> None:
    assert cpu_s(os.getpid()) > 0
    assert 5 < rss_mb(os.getpid()) < 10_000
