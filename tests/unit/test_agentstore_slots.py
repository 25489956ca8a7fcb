"""Model files and pointers: resumed downloads, hashes from disk, garbage that is none."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.domain.assignment import Slot
from agent.domain.desired import Target
from agent.errors import (
    DigestMismatchError,
    DiskFullError,
    FetchError,
    FsyncFailedError,
    NotStoredError,
    StoreError,
)
from agent.store.slots import FileSlots
from tests.support.disks import FailingDisk
from tests.support.releases import content_of, digest_of, release

DATA = content_of("photo:1.0.0/heavy")
TARGET = Target(digest_of(DATA), len(DATA), "application/onnx")
V1, V2 = release("1.0.0"), release("1.1.0")


def store(slots: FileSlots, data: bytes) -> Target:
    target = Target(digest_of(data), len(data), "application/onnx")
    slots.receive(target, [data[slots.partial_bytes(target.digest) :]])
    slots.finish(target)
    return target


def store_release(slots: FileSlots, version: str) -> None:
    for rung in ("heavy", "light"):
        store(slots, content_of(f"photo:{version}/{rung}"))


def cut_after(offset: int, start: int = 0) -> Iterator[bytes]:
    """A source that breaks off at byte `offset`."""
    for at in range(start, offset, 100):
        yield DATA[at : min(at + 100, offset)]
    raise FetchError("connection lost")


def test_a_download_goes_on_at_the_byte_wherever_it_was_cut(tmp_path: Path) -> None:
    for offset in range(0, len(DATA), 37):
        slots = FileSlots(tmp_path / str(offset))
        with pytest.raises(FetchError):
            slots.receive(TARGET, cut_after(offset))
        again = FileSlots(tmp_path / str(offset))
        assert again.partial_bytes(TARGET.digest) == offset
        assert again.receive(TARGET, [DATA[offset:]]) == len(DATA)
        again.finish(TARGET)
        assert Path(again.path(TARGET.digest)).read_bytes() == DATA
        assert again.partial_bytes(TARGET.digest) == 0


def test_other_bytes_never_get_the_name(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    for wrong in (DATA[:-1], b"x" + DATA[1:], b""):
        slots.receive(TARGET, [wrong])
        with pytest.raises(StoreError):
            slots.finish(TARGET)
        assert not slots.has(TARGET.digest)
        assert slots.partial_bytes(TARGET.digest) == 0
    with pytest.raises(NotStoredError):
        slots.path(TARGET.digest)


def test_more_than_was_signed_is_cut_off_at_once(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 1000

    with pytest.raises(DigestMismatchError, match="more than its"):
        slots.receive(TARGET, endless())
    assert slots.partial_bytes(TARGET.digest) == 0


def test_names_that_are_no_digests_touch_no_file(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    for wrong in ("sha256:../../etc/passwd", "sha256:", "x", "sha256:" + "A" * 64):
        with pytest.raises(NotStoredError):
            slots.has(wrong)


def test_a_flipped_bit_is_found_and_the_file_removed(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    store(slots, DATA)
    assert slots.verify(TARGET)
    path = Path(slots.path(TARGET.digest))
    for bit in (0, 4000, len(DATA) * 8 - 1):
        store(slots, DATA)
        flipped = bytearray(DATA)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        assert not slots.verify(TARGET)
        assert not slots.has(TARGET.digest)
    assert not slots.verify(TARGET)


@pytest.mark.parametrize(
    ("error", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StoreError)]
)
def test_faults_at_every_call_of_an_install_keep_the_old_version(
    tmp_path: Path, error: int, kind: type[StoreError]
) -> None:
    """R4, R5: named errors, the current version untouched, no part under a digest's name."""
    fail_at = 0
    while True:
        fail_at += 1
        root = tmp_path / str(fail_at)
        store_release(FileSlots(root), "1.0.0")
        FileSlots(root).set_slots("photo", Slot(V1, committed=True), None, None)
        disk = FailingDisk(error=error)
        slots = FileSlots(root, disk)
        disk.fail_at = disk.calls + fail_at
        failed: StoreError | None = None
        try:
            store_release(slots, "1.1.0")
            slots.set_slots("photo", Slot(V2), Slot(V1, committed=True), None)
        except StoreError as caught:
            failed = caught
        after = FileSlots(root)
        current, _, _ = after.slots("photo")
        assert current is not None
        assert all(after.verify(t) for t in current.release.targets)
        for path in (root / "blobs").glob("sha256-*"):
            assert digest_of(path.read_bytes()) == path.name.replace("-", ":")
        if failed is None:
            assert not disk.failed
            break
        synced = disk.failed == "fsync" and error == errno.EIO
        assert isinstance(failed, FsyncFailedError if synced else kind)
        # Only a failed sync of the folder, after the rename, may already show the new pointer.
        assert current.release == V1 or disk.failed in ("open", "fsync")
        store_release(after, "1.1.0")
        after.set_slots("photo", Slot(V2), Slot(V1, committed=True), None)
        assert after.slots("photo")[0] == Slot(V2)
    assert fail_at > 15


def test_pointers_come_back_and_models_are_listed(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    assert slots.slots("photo") == (None, None, None)
    slots.set_slots("photo", Slot(V2), Slot(V1, committed=True), None)
    slots.set_slots("audio.v2", None, None, None)
    again = FileSlots(tmp_path)
    assert again.slots("photo") == (Slot(V2), Slot(V1, committed=True), None)
    assert again.models() == ("audio.v2", "photo")


def test_damaged_pointers_are_told(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    slots.set_slots("photo", Slot(V2), Slot(V1, committed=True), None)
    path = tmp_path / "slots" / "photo.slots"
    data = path.read_bytes()
    for wrong in (b"", data[:-9], data.replace(b"1.1.0", b"1.1.1", 1), b"\0" * 50):
        path.write_bytes(wrong)
        with pytest.raises(StoreError, match="is damaged"):
            slots.slots("photo")


def test_garbage_is_what_nobody_names(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        store_release(slots, version)
    lonely = store(slots, b"named by nobody")
    journaled = release("1.2.0").targets
    slots.set_slots("photo", Slot(V2), Slot(V1, committed=True), None)
    partial = Target(digest_of(b"later"), 5, "application/onnx")
    slots.receive(partial, [b"la"])
    wanted = Target(digest_of(b"soon"), 4, "application/onnx")
    slots.receive(wanted, [b"so"])
    keep = frozenset({t.digest for t in journaled} | {wanted.digest})
    assert slots.collect(keep) == len(b"named by nobody") + 2
    assert not slots.has(lonely.digest)
    assert slots.partial_bytes(partial.digest) == 0
    assert slots.partial_bytes(wanted.digest) == 2
    for kept in (*V1.targets, *V2.targets, *journaled):
        assert slots.verify(kept)


def test_with_damaged_pointers_nothing_is_garbage(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    store_release(slots, "1.0.0")
    slots.set_slots("photo", Slot(V1), None, None)
    (tmp_path / "slots" / "photo.slots").write_bytes(b"?")
    assert slots.collect(frozenset()) == 0
    assert all(slots.verify(t) for t in V1.targets)


def test_free_bytes_are_those_of_the_disk(tmp_path: Path) -> None:
    assert FileSlots(tmp_path).free_bytes() > 0
