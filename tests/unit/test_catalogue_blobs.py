"""Artifacts: whole or not at all, under their digest, read from any byte."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.blobs import Blobs
from controller.errors import ExhaustedError, InvalidError, NotFoundError
from tests.support.catalogue import digest_of


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


def _files(blobs: Blobs) -> list[Path]:
    return [path for path in blobs._root.rglob("*") if path.is_file()]


def test_what_is_put_is_read(blobs: Blobs) -> None:
    data = os.urandom(2 * 1024 * 1024 + 17)
    digest = blobs.put_bytes(data)
    assert blobs.exists(digest)
    assert blobs.length(digest) == len(data)
    chunks = list(blobs.open_reader(digest))
    assert b"".join(chunks) == data
    assert max(len(chunk) for chunk in chunks) == 1024 * 1024
    path = blobs.local_path(digest)
    assert path is not None
    assert path.read_bytes() == data


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300), offset=st.integers(0, 300))
def test_reading_begins_at_any_byte(blobs: Blobs, data: bytes, offset: int) -> None:
    digest = blobs.put_bytes(data)
    if offset > len(data):
        with pytest.raises(InvalidError, match="outside"):
            blobs.open_reader(digest, offset)
    else:
        assert b"".join(blobs.open_reader(digest, offset)) == data[offset:]


def test_a_wrong_digest_keeps_nothing(blobs: Blobs, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"hello")
    with pytest.raises(InvalidError, match="what arrived is not"):
        blobs.put_file(file, digest_of(b"other"))
    assert _files(blobs) == []
    assert blobs.put_file(file, digest_of(b"hello")) == 5


def test_an_interrupted_write_keeps_nothing(blobs: Blobs) -> None:
    def broken() -> None:
        with blobs.writer() as writer:
            writer.write(b"half of it")
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        broken()
    assert _files(blobs) == []


def test_a_full_disk_is_said_and_keeps_nothing(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExhaustedError, match="disk of the controller is full"):
        blobs.put_bytes(b"data")
    assert _files(blobs) == []


def test_more_than_is_free_is_refused_before_the_first_byte(blobs: Blobs) -> None:
    with pytest.raises(ExhaustedError, match="no room"):
        blobs.writer(2**60)


def test_what_is_not_there_is_named(blobs: Blobs) -> None:
    digest = digest_of(b"nothing")
    assert not blobs.exists(digest)
    assert blobs.local_path(digest) is None
    for read in (blobs.length, blobs.open_reader):
        with pytest.raises(NotFoundError, match=digest):
            read(digest)


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 64])
def test_only_digests_become_paths(blobs: Blobs, digest: str) -> None:
    with pytest.raises(InvalidError, match="not a digest"):
        blobs.exists(digest)


def test_the_sweep_removes_what_a_crash_left(blobs: Blobs) -> None:
    kept = blobs.put_bytes(b"kept")
    (blobs._incoming / "half").write_bytes(b"half")
    (blobs._incoming / "folder").mkdir()
    (blobs._incoming / "folder" / "part").write_bytes(b"part")
    assert blobs.sweep() == 2
    assert [path.name for path in _files(blobs)] == [kept.removeprefix("sha256:")]


def test_the_same_bytes_are_stored_once(blobs: Blobs) -> None:
    first = blobs.put_bytes(b"same")
    path = blobs.local_path(first)
    assert path is not None
    inode = path.stat().st_ino
    blobs.put_bytes(b"same")
    assert path.stat().st_ino == inode
    assert len(_files(blobs)) == 1
