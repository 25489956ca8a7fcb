"""The spool: numbered without a gap, dropped only on acknowledgement, old boots first, bounded."""

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.ports import SpoolEntry
from agent.errors import DiskFullError, SpoolFullError
from agent.ids import boot_counter, new_boot_id
from agent.store.spool import LOST, FileSpool
from tests.support.disks import FailingDisk

B1, B2, B3 = "0000000001-aaaaaaaa", "0000000002-00000000", "0000000010-00000000"


def numbers(entries: tuple[SpoolEntry, ...]) -> list[tuple[str, int]]:
    return [(e.boot_id, e.seq) for e in entries]


def test_entries_are_numbered_from_one_and_kept_until_acknowledged(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, B1)
    assert spool.append("report", b"\0first") == SpoolEntry(B1, 1, "report", b"\0first")
    assert spool.append("event", b"second").seq == 2
    assert [e.payload for e in spool.pending()] == [b"\0first", b"second"]
    assert spool.ack(B1, 1) == 1
    assert numbers(spool.pending()) == [(B1, 2)]
    # Repeated, old, foreign and too high acknowledgements do no harm.
    assert spool.ack(B1, 1) == 0
    assert spool.ack("0000000099-00000000", 5) == 0
    assert spool.ack(B1, 99) == 1
    assert spool.pending() == ()
    assert spool.append("report", b"third").seq == 3


def test_it_survives_restarts_and_sends_old_boots_first(tmp_path: Path) -> None:
    first = FileSpool(tmp_path, B1)
    for _ in range(3):
        first.append("report", b"x")
    first.ack(B1, 1)
    second = FileSpool(tmp_path, B2)
    second.append("report", b"y")
    third = FileSpool(tmp_path, B3)
    third.append("report", b"z")
    expected = [(B1, 2), (B1, 3), (B2, 1), (B3, 1)]
    assert numbers(third.pending()) == expected
    assert numbers(third.pending(limit=3)) == expected[:3]
    assert numbers(FileSpool(tmp_path, B3).pending()) == expected
    assert FileSpool(tmp_path, B3).append("event", b"").seq == 2
    # An old boot that is acknowledged whole leaves nothing behind.
    fourth = FileSpool(tmp_path, B3)
    assert fourth.ack(B1, 3) == 2
    assert not (tmp_path / B1).exists()
    assert fourth.ack(B2, 1) == 1
    assert numbers(fourth.pending()) == [(B3, 1), (B3, 2)]


def test_at_its_bound_it_takes_nothing_more_and_numbers_stay_gapless(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, B1, max_bytes=2500)
    taken = 7
    for _ in range(taken):
        spool.append("report", b"x" * 200)
    with pytest.raises(SpoolFullError, match="of 2500 bytes"):
        spool.append("report", b"x" * 200)
    assert spool.refused == 1
    assert numbers(spool.pending()) == [(B1, n + 1) for n in range(taken)]
    spool.ack(B1, taken - 1)
    # Room again, for what was acknowledged is left out of the file.
    assert spool.append("report", b"x" * 200).seq == taken + 1
    assert numbers(FileSpool(tmp_path, B1).pending()) == [(B1, taken), (B1, taken + 1)]


def test_it_stays_small_over_a_long_life(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, B1)
    for _ in range(600):
        entry = spool.append("report", b"x" * 300)
        spool.ack(B1, entry.seq)
    assert (tmp_path / B1).stat().st_size < 80 * 1024
    assert FileSpool(tmp_path, B1).append("report", b"").seq == 601


def test_a_full_disk_takes_no_number(tmp_path: Path) -> None:
    disk = FailingDisk(error=errno.ENOSPC)
    spool = FileSpool(tmp_path, B1, disk=disk)
    spool.append("report", b"1")
    for fail_at in (1, 2, 3):
        disk.fail_at = disk.calls + fail_at
        with pytest.raises(DiskFullError):
            spool.append("report", b"2")
    assert spool.append("report", b"2").seq == 2
    assert numbers(FileSpool(tmp_path, B1).pending()) == [(B1, 1), (B1, 2)]


def test_a_torn_last_entry_is_gone_and_its_number_is_used_again(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, B1)
    for _ in range(3):
        spool.append("report", b"payload")
    data = (tmp_path / B1).read_bytes()
    (tmp_path / B1).write_bytes(data[:-5])
    again = FileSpool(tmp_path, B1)
    assert numbers(again.pending()) == [(B1, 1), (B1, 2)]
    assert again.append("report", b"new").seq == 3


def test_a_damaged_entry_leaves_its_number_so_that_the_rest_is_not_stuck(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path, B1)
    for number in range(4):
        spool.append("report", b"payload %d" % number)
    lines = (tmp_path / B1).read_bytes().splitlines(keepends=True)
    lines[1] = b"x" * 20 + b"\n"
    (tmp_path / B1).write_bytes(b"".join(lines))
    again = FileSpool(tmp_path, B2)
    assert numbers(again.pending()) == [(B1, n) for n in (1, 2, 3, 4)]
    assert [e.kind for e in again.pending()] == ["report", LOST, "report", "report"]
    assert [d.torn for d in again.damage] == [False]
    assert again.ack(B1, 4) == 4


def test_boot_ids_carry_the_counter() -> None:
    assert boot_counter(new_boot_id(17)) == 17
    assert new_boot_id(9) < new_boot_id(10)
    for wrong in ("", "17", "17-zz", "0000000001-AAAAAAAA", "../0000000001-aaaaaaaa"):
        with pytest.raises(ValueError, match="not a boot id"):
            boot_counter(wrong)


ACTION = st.one_of(
    st.just("append"), st.just("restart"), st.tuples(st.integers(0, 3), st.integers(0, 12))
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ACTION, max_size=30))
def test_nothing_is_lost_and_nothing_comes_back(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str | tuple[int, int]]
) -> None:
    """Against a plain list: what is pending is what was appended and not acknowledged."""
    root = tmp_path_factory.mktemp("spool")
    counter = 1
    boots = [new_boot_id(counter)]
    spool = FileSpool(root, boots[-1])
    model: list[tuple[str, int]] = []
    last = 0
    for action in actions:
        if action == "append":
            last += 1
            spool.append("report", b"x")
            model.append((boots[-1], last))
        elif action == "restart":
            counter += 1
            boots.append(new_boot_id(counter))
            spool = FileSpool(root, boots[-1])
            last = 0
        elif isinstance(action, tuple):
            boot, seq = boots[action[0] % len(boots)], action[1]
            gone = [e for e in model if e[0] == boot and e[1] <= seq]
            assert spool.ack(boot, seq) == len(gone)
            model = [e for e in model if e not in gone]
        assert numbers(spool.pending()) == model
