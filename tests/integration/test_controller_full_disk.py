"""A controller whose disk gets full while something is pushed: said, and nothing half is kept."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.blobs import blobs as blob_room
from controller.errors import ExhaustedError
from controller.services.artifacts import store_artifact
from controller.services.datasets import list_all_datasets, push_dataset
from controller.services.models import NewVariant, NewVersion, list_models, push_model
from tests.support.catalogue import World, digest_of, open_world, tiny_npz, tiny_onnx
from tests.support.digits import digits

MIB = 1024**2
DISK_BYTES = 40 * MIB
RESERVE_BYTES = 8 * MIB  # as much smaller than the real one as the disk is


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 40 MiB."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    make = ["mkfs.ext4", "-q", "-m", "0", str(image)]
    try:
        subprocess.run(make, check=True, capture_output=True)
        subprocess.run(
            ["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system mounts no disk for us: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def world(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(blob_room, "RESERVE_BYTES", RESERVE_BYTES)
    yield from open_world(disk)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all room of the disk but so many bytes; returns the file that holds it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError:
            pass
        os.fsync(file.fileno())
        if leave:
            file.truncate(file.tell() - leave)
            os.fsync(file.fileno())
    return filler


def kept(disk: Path) -> list[str]:
    """Everything below the folder of artifacts."""
    return sorted(path.name for path in (disk / "blobs").rglob("*") if path.is_file())


def test_what_does_not_fit_is_refused_before_its_first_byte(disk: Path, world: World) -> None:
    def never() -> Iterator[bytes]:
        raise AssertionError("a chunk was read")
        yield b""

    with pytest.raises(ExhaustedError, match="no room for"):
        store_artifact(
            world.deps, world.ctx,
            digest=digest_of(b"large"), length=DISK_BYTES, name="r50.onnx", chunks=never(),
        )  # fmt: skip
    assert kept(disk) == []


def test_a_disk_that_fills_in_the_middle_of_an_upload(disk: Path, world: World) -> None:
    data = os.urandom(4 * MIB)

    def chunks() -> Iterator[bytes]:
        yield data[:MIB]
        fill(disk)
        yield data[MIB:]

    with pytest.raises(ExhaustedError, match="disk of the controller is full"):
        store_artifact(
            world.deps, world.ctx,
            digest=digest_of(data), length=len(data), name="r50.onnx", chunks=chunks(),
        )  # fmt: skip
    assert kept(disk) == []
    (disk / "filler").unlink()
    assert world.upload(data) == digest_of(data), "with room again the same push works"


def test_a_disk_without_room_for_the_two_halves_of_a_dataset(disk: Path, world: World) -> None:
    data = tiny_npz(rows=4000, sources=100)
    found = world.upload(data)
    filler = fill(disk, leave=len(data) // 2)
    with pytest.raises(ExhaustedError):
        push_dataset(world.deps, world.ctx, name="digits", digest=found, file_name="digits.npz")
    assert list_all_datasets(world.deps, world.ctx) == []
    assert kept(disk) == [found.removeprefix("sha256:")], "the upload alone"
    filler.unlink()
    assert world.push_data(data=data).rows == 4000


def test_a_disk_without_room_for_the_clean_copy_of_a_model(disk: Path, world: World) -> None:
    data = (digits() / "heavy.pt2").read_bytes()
    found = world.upload(data)
    new = NewVersion("digits", "1.0.0", [NewVariant("heavy", found, "heavy.pt2")])
    filler = fill(disk, leave=len(data) // 2)
    with pytest.raises(ExhaustedError):
        push_model(world.deps, world.ctx, new)
    assert list_models(world.deps, world.ctx) == []
    assert kept(disk) == [found.removeprefix("sha256:")]
    filler.unlink()
    assert not push_model(world.deps, world.ctx, new).existed


def test_a_disk_without_room_for_a_row_of_the_database(disk: Path, world: World) -> None:
    found = world.upload(tiny_onnx(1))
    labels = [f"class {number} {'x' * 150}" for number in range(10)]
    new = NewVersion(
        "digits", "1.0.0", [NewVariant("heavy", found, "m.onnx")], labels,
        params={"text": "y" * MIB},
    )  # fmt: skip
    filler = fill(disk)
    with pytest.raises(ExhaustedError, match="full"):
        push_model(world.deps, world.ctx, new)
    assert list_models(world.deps, world.ctx) == []
    filler.unlink()
    assert not push_model(world.deps, world.ctx, new).existed


def test_negative_control_a_half_file_would_be_seen(disk: Path, world: World) -> None:
    (disk / "blobs" / "incoming" / "half").write_bytes(b"half")
    assert kept(disk) == ["half"]
