"""Pushing models and datasets: immutable, one signature, errors that say what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.errors import ConflictError, ExhaustedError, InvalidError, NotFoundError
from controller.services.artifacts import read_artifact, store_artifact
from controller.services.context import Limits
from controller.services.datasets import get_dataset, list_all_datasets, push_dataset
from controller.services.models import (
    NewVariant,
    NewVersion,
    get_model,
    list_models,
    next_version,
    push_model,
)
from controller.store import events
from tests.support.catalogue import World, digest_of, open_world, tiny_npz, tiny_onnx
from tests.support.stores import digest


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from open_world(tmp_path)


def _kinds(world: World) -> list[str]:
    with world.deps.store.read() as conn:
        return [row.kind for row in events.list_events(conn, "default")]


def test_a_pushed_version_is_shown_as_it_was(world: World) -> None:
    ten = tuple(str(number) for number in range(10))
    pushed = world.push(labels=ten, params={"threshold": 0.5}, licence="MIT")
    assert not pushed.existed
    view = get_model(world.deps, world.ctx, "digits")
    assert view == pushed.version
    assert [one.variant for one in view.variants] == ["heavy", "light"]
    assert view.signature.text() == "image[batch,1,8,8] FP32 → scores[batch,10] FP32"
    assert (view.labels, view.params, view.licence) == (
        ten,
        {"threshold": 0.5},
        "MIT",
    )
    assert view.created_by == "ana"
    assert _kinds(world) == ["model_pushed"]


def test_the_same_content_again_changes_nothing(world: World) -> None:
    world.push()
    again = world.at(60).by("bo").push()
    assert again.existed
    assert again.version.created_by == "ana"
    assert _kinds(world) == ["model_pushed"]


def test_other_content_is_a_conflict_that_shows_both(world: World) -> None:
    world.push(variants=[("heavy", tiny_onnx(1))])
    world.push("digits:1.0.1", variants=[("heavy", tiny_onnx(1))])
    new, old = tiny_onnx(7), tiny_onnx(1)
    with pytest.raises(ConflictError) as caught:
        world.push(variants=[("heavy", new)])
    assert caught.value.text().splitlines() == [
        "digits:1.0.0 exists with other content",
        f"pushed now   {digest_of(new)[:13]}…  {len(new) / 1000:.1f} kB",
        f"stored       {digest_of(old)[:13]}…  {len(old) / 1000:.1f} kB,"
        " 2026-11-24 09:14 UTC by ana",
        "versions never change; push this as a new one, for example digits:1.0.2",
    ]
    assert get_model(world.deps, world.ctx, "digits", "1.0.0").variants[0].digest == digest_of(old)


def test_labels_alone_can_differ(world: World) -> None:
    world.push(labels=list("abcdefghij"))
    with pytest.raises(ConflictError, match="other content") as caught:
        world.push(labels=list("abcdefghik"))
    assert "the files are the same, labels differ" in caught.value.lines


@pytest.mark.parametrize("count", [1, 9, 11])
def test_labels_that_do_not_fit_the_scores_are_refused_with_both_numbers(
    count: int, world: World
) -> None:
    with pytest.raises(InvalidError) as caught:
        world.push(labels=[f"label {number}" for number in range(count)])
    assert caught.value.message == (
        f"{count} labels for 10 classes: the model's output is scores[batch,10] FP32"
    )
    assert _kinds(world) == [], "nothing was pushed"


def test_another_set_of_variants_differs(world: World) -> None:
    world.push()
    with pytest.raises(ConflictError) as caught:
        world.push(variants=[("heavy", tiny_onnx(1))])
    assert "pushed now   light  no such variant" in caught.value.lines


@pytest.mark.parametrize(
    ("version", "taken", "next_one"),
    [
        ("1.3.0", set(), "1.3.1"),
        ("1.3.0", {"1.3.1", "1.3.2"}, "1.3.3"),
        ("v9", set(), "v10"),
        ("2-rc1", set(), "2-rc2"),
        ("first", set(), "first.1"),
    ],
)
def test_the_next_version_counts_up(version: str, taken: set[str], next_one: str) -> None:
    assert next_version(version, taken) == next_one


def test_variants_have_one_signature(world: World) -> None:
    with pytest.raises(InvalidError, match="heavy and light differ"):
        world.push(variants=[("heavy", tiny_onnx(1)), ("light", tiny_onnx(2, side=6))])
    assert list_models(world.deps, world.ctx) == []


@pytest.mark.parametrize(
    ("ref", "variants", "said"),
    [
        ("Digits:1", None, "not a model name"),
        ("digits:", None, "not a version"),
        ("digits:1", [("heavy", b"\x80\x04pickle")], "is a pickle"),
        ("digits:1", [("heavy", b"no model at all")], "heavy.onnx"),
        ("digits:1", [("he/avy", tiny_onnx(1))], "not a variant name"),
        ("digits:1", [("a", tiny_onnx(1)), ("a", tiny_onnx(2))], "named twice"),
    ],
)
def test_bad_pushes_are_refused(
    world: World, ref: str, variants: list[tuple[str, bytes]] | None, said: str
) -> None:
    with pytest.raises(InvalidError, match=said):
        world.push(ref, variants)
    assert list_models(world.deps, world.ctx) == []


BROKEN: dict[str, tuple[bytes, str]] = {
    "truncated": (tiny_onnx(1)[:-30], "my/m.onnx"),
    "empty": (b"", "my/m.onnx is empty"),
    "pickle": (b"\x80\x04\x95abc", "my/m.onnx is a pickle"),
    "packed": (b"\x1f\x8b\x08abc", "my/m.onnx is a gzip file"),
    "half a zip": (b"PK\x03\x04" + bytes(60), "my/m.onnx is cut short"),
    "text": (b"#!/bin/sh\nreboot\n", "my/m.onnx"),
    "too large": (tiny_onnx(1, side=64), "my/m.onnx is 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_the_name_that_was_typed(name: str, tmp_path: Path) -> None:
    data, said = BROKEN[name]
    for world in open_world(tmp_path, Limits(artifact_bytes=100_000)):
        found = world.deps.blobs.put_bytes(data)
        new = NewVersion("digits", "1.0.0", [NewVariant("heavy", found, "my/m.onnx")])
        with pytest.raises(InvalidError) as caught:
            push_model(world.deps, world.ctx, new)
        assert caught.value.message.startswith(said)
        assert found.removeprefix("sha256:")[:12] not in caught.value.text()
        assert (list_models(world.deps, world.ctx), _kinds(world)) == ([], [])


def test_labels_are_lines_of_text(world: World) -> None:
    with pytest.raises(InvalidError, match=r"label 2 is not printable: 'not\\x1bfine'"):
        world.push(labels=["fine", "not\x1bfine"])
    with pytest.raises(InvalidError, match="label 1 has 201 characters"):
        world.push(labels=["a" * 201])


def test_words_that_every_screen_shows_are_printable(world: World) -> None:
    with pytest.raises(InvalidError, match=r"the licence 'MIT\\x1b\[2J'"):
        world.push(licence="MIT\x1b[2J")
    stored = world.deps.blobs.put_bytes(tiny_onnx(1))
    new = NewVersion("digits", "1.0.0", [NewVariant("heavy", stored, "m\x1b[31m.onnx")])
    with pytest.raises(InvalidError, match=r"the file name 'm\\x1b\[31m.onnx'"):
        push_model(world.deps, world.ctx, new)


def test_no_variant_is_named_like_the_rung_that_turns_a_model_off(world: World) -> None:
    stored = world.deps.blobs.put_bytes(tiny_onnx(1))
    with pytest.raises(InvalidError, match="cannot be named off"):
        push_model(
            world.deps, world.ctx, NewVersion("digits", "1.0.0", [NewVariant("off", stored, "")])
        )


def test_a_version_needs_uploaded_variants(world: World) -> None:
    with pytest.raises(InvalidError, match="needs a variant"):
        push_model(world.deps, world.ctx, NewVersion("digits", "1", []))
    with pytest.raises(NotFoundError, match="was not uploaded"):
        push_model(
            world.deps,
            world.ctx,
            NewVersion("digits", "1", [NewVariant("heavy", digest("none"), "")]),
        )


def test_unknown_names_come_with_a_suggestion(world: World) -> None:
    with pytest.raises(NotFoundError) as caught:
        get_model(world.deps, world.ctx, "digits")
    assert caught.value.lines == ("no model was pushed yet",)
    world.push()
    for model, version, said in (
        ("digit", "", "did you mean digits ?"),
        ("photo", "", "known are digits"),
        ("digits", "1.0.1", "did you mean 1.0.0 ?"),
    ):
        with pytest.raises(NotFoundError) as caught:
            get_model(world.deps, world.ctx, model, version)
        assert caught.value.lines == (said,)
    with pytest.raises(NotFoundError):
        list_models(world.deps, world.ctx, "digit")


def test_without_a_version_the_newest_is_meant(world: World) -> None:
    world.push("digits:2.0")
    world.at(5).push("digits:1.9")
    assert get_model(world.deps, world.ctx, "digits").version == "1.9"


def test_uploads_are_bounded_and_verified(tmp_path: Path) -> None:
    for world in open_world(tmp_path, Limits(artifact_bytes=100)):
        with pytest.raises(ExhaustedError, match="too large"):
            world.upload(bytes(101))
        for length, said in ((9, "sends more"), (11, "ended after 10 of 11")):
            with pytest.raises(InvalidError, match=said):
                store_artifact(
                    world.deps,
                    world.ctx,
                    digest=digest_of(b"0123456789"),
                    length=length,
                    name="file",
                    chunks=[b"01234", b"56789"],
                )
        found = world.upload(b"0123456789")
        again = store_artifact(
            world.deps, world.ctx, digest=found, length=10, name="", chunks=iter(())
        )
        assert again.existed
        length, chunks = read_artifact(world.deps, world.ctx, found, 4)
        assert (length, b"".join(chunks)) == (10, b"456789")
        with pytest.raises(NotFoundError):
            read_artifact(world.deps, world.ctx, digest("none"))


def test_a_dataset_is_split_by_source(world: World) -> None:
    view = world.push_data()
    assert (view.rows, view.sources, view.classes) == (40, 10, 10)
    assert (view.shape, view.dtype) == ((1, 8, 8), "FP32")
    assert view.calibration_rows + view.evaluation_rows == 40
    assert min(view.calibration_rows, view.evaluation_rows) > 0
    assert get_dataset(world.deps, world.ctx, "digits") == view
    assert _kinds(world) == ["dataset_pushed"]


def test_a_dataset_name_means_its_newest_content(world: World) -> None:
    first, second = tiny_npz(seed=1), tiny_npz(seed=2)
    world.push_data(data=first)
    assert world.push_data(data=first).existed
    assert world.at(5).push_data(data=second).digest == digest_of(second)
    assert world.at(9).push_data(data=first).digest == digest_of(first)
    assert [row.digest for row in list_all_datasets(world.deps, world.ctx)] == [digest_of(first)]


def test_a_push_says_what_it_replaces(world: World) -> None:
    first, second = tiny_npz(seed=1), tiny_npz(rows=48, seed=2)
    assert world.push_data(data=first).replaced is None
    assert world.by("bo").push_data(data=first).replaced is None, "the same content replaces none"
    view = world.at(5).by("bo").push_data(data=second)
    assert view.replaced is not None
    told = (view.replaced.digest, view.replaced.rows, view.replaced.created_by)
    assert told == (digest_of(first), 40, "ana")
    with world.deps.store.read() as conn:
        last = events.list_events(conn, "default")[-1]
    assert (last.kind, last.details["replaced"]) == ("dataset_pushed", digest_of(first))


def test_errors_of_a_dataset_name_the_file_as_it_was_typed(world: World) -> None:
    for data in (tiny_npz(sources=1), tiny_npz()[:-40]):
        found = world.upload(data)
        with pytest.raises(InvalidError) as caught:
            push_dataset(
                world.deps, world.ctx, name="digits", digest=found, file_name="in/mine.npz"
            )
        assert caught.value.message.startswith("in/mine.npz ")
        assert found.removeprefix("sha256:")[:12] not in caught.value.text()


def test_bad_datasets_are_refused(world: World) -> None:
    with pytest.raises(InvalidError):
        world.push_data(data=b"no archive")
    with pytest.raises(InvalidError, match="not a dataset name"):
        world.push_data(name="Digits")
    with pytest.raises(NotFoundError, match="was not uploaded"):
        push_dataset(world.deps, world.ctx, name="digits", digest=digest("none"), file_name="d.npz")
    with pytest.raises(NotFoundError, match="dataset digits does not exist"):
        get_dataset(world.deps, world.ctx, "digits")
