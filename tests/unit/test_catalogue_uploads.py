"""What was uploaded for a push that was refused does not stay; what anything names does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.domain.task import check_outputs
from controller.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from controller.services.artifacts import read_artifact
from tests.support.catalogue import World, digest_of, open_world, tiny_onnx


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def stored(world: World, *files: bytes) -> list[bool]:
    return [world.deps.blobs.exists(digest_of(one)) for one in files]


def test_a_refused_push_leaves_nothing_and_the_same_files_can_come_again(world: World) -> None:
    heavy, light = tiny_onnx(1), tiny_onnx(2)
    files = [("heavy", heavy), ("light", light)]
    with pytest.raises(InvalidError):
        world.push(variants=files, labels=("one", "two"))
    assert stored(world, heavy, light) == [False, False]
    with pytest.raises(NotFoundError):
        read_artifact(world.deps, world.ctx, digest_of(heavy))
    world.push(variants=files)
    assert stored(world, heavy, light) == [True, True]
    with pytest.raises(InvalidError):
        world.push_data(data=b"no npz at all")
    assert stored(world, b"no npz at all") == [False]


def test_what_another_version_names_stays(world: World) -> None:
    heavy, light, other = tiny_onnx(1), tiny_onnx(2), tiny_onnx(3)
    world.push(variants=[("heavy", heavy), ("light", light)])
    with pytest.raises(ConflictError):
        world.push(variants=[("heavy", heavy), ("light", other)])
    assert stored(world, heavy, light, other) == [True, True, False]


def test_an_accident_on_the_way_keeps_the_uploads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("the database is away", "try again")

    heavy = tiny_onnx(1)
    monkeypatch.setattr("controller.services.models.add_version", away)
    with pytest.raises(UnavailableError):
        world.push(variants=[("heavy", heavy)])
    assert stored(world, heavy) == [True]


def test_a_file_that_went_meanwhile_makes_no_version(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pushes of one file, of which one is refused while the other is being read."""
    heavy = tiny_onnx(1)

    def refused_elsewhere(*words: Any) -> None:
        world.deps.blobs.remove(digest_of(heavy))
        check_outputs(*words)

    monkeypatch.setattr("controller.services.models.check_outputs", refused_elsewhere)
    with pytest.raises(NotFoundError, match="is not stored any more"):
        world.push(variants=[("heavy", heavy)])
    monkeypatch.undo()
    assert not world.push(variants=[("heavy", heavy)]).existed
