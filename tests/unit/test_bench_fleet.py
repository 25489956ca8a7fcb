"""The parts of the fleet bench that compute: reading while it is written, quantiles, CPU."""

import os
import sqlite3
import time
from pathlib import Path

import pytest

from bench.fleet.commits import Commits
from bench.fleet.figures import Cpu, cpu_s, quantile, rss_mb
from bench.fleet.happenings import Happenings, by_device
from tests.support.wait import wait_for

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


def test_what_is_stored_is_seen_when_it_is_committed_and_not_before(tmp_path: Path) -> None:
    database = tmp_path / "some.db"
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE event (number, kind, device_id, rollout_id, details)")
    writer.execute("""INSERT INTO event VALUES (1, 'told', 'a', 'r-1', '{"applied": "true"}')""")
    with Commits(database) as commits:
        wait_for(lambda: commits.looks > 0, 20, "the first look")
        writer.execute("BEGIN")
        writer.execute(
            """INSERT INTO event VALUES (2, 'told', 'a', 'r-2', '{"applied": "true"}')"""
        )
        writer.execute("""INSERT INTO event VALUES (3, 'rollout_phase', NULL, 'r-2',
                          '{"from": "PROGRESSING", "to": "ROLLING_BACK"}')""")
        looks = commits.looks
        wait_for(lambda: commits.looks > looks + 2, 20, "looks at what is not committed")
        assert commits.all == []
        before = time.time()
        writer.execute("COMMIT")
        wait_for(lambda: len(commits.all) == 2, 20, "what is committed")
    assert commits.applied("r-1", "a") is None  # it was there before
    at = commits.applied("r-2", "a")
    assert at is not None
    assert at >= before
    assert commits.applied("r-2", "b") is None
    assert [one.number for one in commits.of("rollout_phase", "r-2", "ROLLING_BACK")] == [3]
    assert commits.of("rollout_phase", "r-2", "FAILED") == []
    writer.close()
