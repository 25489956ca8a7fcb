"""Journal, boot record and the disk under them: faults at every call, torn tails, flipped bits."""

import errno
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from agent.domain.events import Ending
from agent.errors import DiskFullError, FsyncFailedError, StoreError, WriteFailedError
from agent.store.boot import start
from agent.store.disk import Disk
from agent.store.journal import FileJournal
from agent.store.lines import LineLog, decode_line, encode_line
from tests.support.disks import FailingDisk

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


def filled(path: Path, records: int = 5) -> FileJournal:
    journal = FileJournal(path)
    for number in range(records):
        journal.append("model", f"m{number % 3}", {"value": number})
    return journal


def test_the_last_value_per_key_counts_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal"
    first = filled(path)
    expected = {"m0": {"value": 3}, "m1": {"value": 4}, "m2": {"value": 2}}
    assert first.latest("model") == expected
    again = FileJournal(path)
    assert again.latest("model") == expected
    assert again.latest("other") == {}
    assert again.damage == ()


def test_what_was_handed_over_may_change_later_without_harm(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    value = {"a": 1}
    journal.append("k", "x", value)
    value["a"] = 2
    assert journal.latest("k") == {"x": {"a": 1}}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_tail_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    filled(path)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    torn = FileJournal(path)
    assert torn.latest("model")["m1"] == {"value": 1}
    assert torn.is_sound
    assert [d.torn for d in torn.damage] == [True]
    torn.append("model", "m1", {"value": 9})
    whole = FileJournal(path)
    assert whole.latest("model")["m1"] == {"value": 9}
    assert whole.damage == ()


def test_a_damaged_middle_is_reported_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:-4] + b"8}}\n"
    path.write_bytes(b"".join(lines))
    journal = FileJournal(path)
    assert not journal.is_sound
    assert [(d.line, d.reason, d.torn) for d in journal.damage] == [(4, "checksum differs", False)]
    assert journal.latest("model") == {"m0": {"value": 0}, "m1": {"value": 4}, "m2": {"value": 2}}
    journal.append("model", "m0", {"value": 7})
    assert FileJournal(path).latest("model")["m0"] == {"value": 7}


def test_a_record_that_vanished_without_a_trace_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    (found,) = FileJournal(path).damage
    assert found.reason == "record 3 is missing"
    assert not found.torn


def test_flipped_bits_never_pass_unseen(tmp_path: Path) -> None:
    """R6: a flip shows as damage, and what is read was written once."""
    path = tmp_path / "journal"
    filled(path)
    data = path.read_bytes()
    written = [{"value": n} for n in range(5)]
    random = Random(7)
    for _ in range(400):
        flipped = bytearray(data)
        position = random.randrange(len(data))
        flipped[position] ^= 1 << random.randrange(8)
        path.write_bytes(bytes(flipped))
        journal = FileJournal(path)
        assert journal.damage
        assert all(value in written for value in journal.latest("model").values())


def test_compaction_keeps_the_newest_and_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = FileJournal(path)
    for number in range(900):
        journal.append("model", "photo", {"value": number, "filler": "x" * 600})
    assert path.stat().st_size < 300 * 1024
    again = FileJournal(path)
    assert again.latest("model")["photo"]["value"] == 899
    assert again.damage == ()
    again.compact()
    again.append("model", "photo", {"value": 900})
    assert FileJournal(path).damage == ()


@pytest.mark.parametrize(
    ("error", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, WriteFailedError)]
)
def test_a_failed_append_keeps_what_was_and_takes_the_next(
    tmp_path: Path, error: int, kind: type[StoreError]
) -> None:
    for fail_at in range(1, 4):
        path = tmp_path / f"{error}-{fail_at}"
        filled(path)
        disk = FailingDisk(error=error)
        journal = FileJournal(path, disk)
        disk.fail_at = disk.calls + fail_at
        with pytest.raises(StoreError) as caught:
            journal.append("model", "m0", {"value": 99})
        expected = FsyncFailedError if disk.failed == "fsync" and error == errno.EIO else kind
        assert type(caught.value) is expected
        assert str(path) in caught.value.message
        assert journal.latest("model")["m0"] == {"value": 3}
        assert FileJournal(path).latest("model")["m0"] == {"value": 3}
        journal.append("model", "m0", {"value": 100})
        again = FileJournal(path)
        assert again.latest("model")["m0"] == {"value": 100}
        assert again.damage == ()


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    for error in (errno.ENOSPC, errno.EIO, errno.EROFS):
        for fail_at in range(1, 5):
            path = tmp_path / "file"
            Disk().write_atomic(path, b"old")
            disk = FailingDisk(fail_at, error)
            with pytest.raises(StoreError):
                disk.write_atomic(path, b"new")
            assert path.read_bytes() == b"old"
            assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_are_private(tmp_path: Path) -> None:
    Disk().make_folder(tmp_path / "a" / "b")
    Disk().write_atomic(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o600


def test_lines_keep_any_json_and_refuse_others(tmp_path: Path) -> None:
    record = {"text": "äöü\n\u2028", "list": [1, None, True], "n": 1.5}
    line = encode_line(record)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == record
    for wrong in (b"", b"00000000 {}", line[1:-1], b"x" * 100):
        with pytest.raises(ValueError):  # noqa: PT011
            decode_line(wrong)
    log = LineLog(tmp_path / "log", Disk())
    log.rewrite([record, record])
    assert [r for _, r in LineLog(tmp_path / "log", Disk()).records] == [record, record]


# -- the boot record -------------------------------------------------------------------------------


def test_boots_are_numbered_and_tell_how_the_last_run_ended(tmp_path: Path) -> None:
    first = start(tmp_path, NOW, "kernel-1")
    assert (first.counter, first.ending, first.trouble) == (1, Ending.CLEAN, "")
    second = start(tmp_path, NOW, "kernel-1")
    assert (second.counter, second.ending) == (2, Ending.CRASHED)
    second.end_clean()
    third = start(tmp_path, NOW, "kernel-1")
    assert (third.counter, third.ending) == (3, Ending.CLEAN)
    fourth = start(tmp_path, NOW, "kernel-2")
    assert (fourth.counter, fourth.ending) == (4, Ending.POWER_LOST)
    # Without knowledge of the kernel's boot an unclean end is a crash.
    assert start(tmp_path, NOW).ending is Ending.CRASHED
    ids = [b.boot_id for b in (first, second, third, fourth)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 4


@pytest.mark.parametrize("data", [b"", b"garbage", encode_line({"counter": "x"}), b"\0" * 40])
def test_a_damaged_record_counts_on_from_the_clock_and_starts(tmp_path: Path, data: bytes) -> None:
    start(tmp_path, NOW)
    (tmp_path / "boot").write_bytes(data)
    boot = start(tmp_path, NOW)
    assert boot.counter == int(NOW.timestamp()) + 1
    assert "is damaged" in boot.trouble
    assert start(tmp_path, NOW).counter == boot.counter + 1


def test_a_full_disk_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    start(tmp_path, NOW)
    boot = start(tmp_path, NOW, disk=FailingDisk(1, errno.ENOSPC))
    assert boot.counter == 2
    assert "No space left" in boot.trouble
