"""Datasets: plain arrays only, and no source on both sides of a split."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.errors import InvalidError
from controller.intake.dataset import (
    CHUNK_BYTES,
    MAX_ROWS,
    load_dataset,
    parse_dataset,
    split_dataset,
)

X = np.arange(24, dtype=np.float32).reshape(6, 4)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_a_dataset_holds_is_told(tmp_path: Path) -> None:
    path = save(
        tmp_path / "d.npz", x=X.astype(np.uint8), y=[0, 1, 2, 9, 1, 0], source=list("aabbcc")
    )
    parsed = parse_dataset(path)
    assert (parsed.rows, parsed.dtype, parsed.shape) == (6, "UINT8", (4,))
    assert (parsed.labelled, parsed.classes, parsed.sources) == (True, 10, 3)


def test_labels_and_sources_are_optional(tmp_path: Path) -> None:
    parsed = parse_dataset(save(tmp_path / "d.npz", x=X))
    assert (parsed.labelled, parsed.classes, parsed.sources) == (False, 0, 6)


def test_compressed_datasets_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X)
    assert parse_dataset(tmp_path / "d.npz").rows == 6


class _Touch:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self._path,))


def test_object_arrays_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    array = np.array([_Touch(str(touched))], dtype=object)
    path = save(tmp_path / "d.npz", x=array)
    # Negative control: read with pickle, it does run.
    with np.load(path, allow_pickle=True) as loaded:
        assert loaded["x"].shape == (1,)
    assert touched.exists()
    touched.rmdir()
    with pytest.raises(InvalidError, match="objects"):
        parse_dataset(path)
    assert not touched.exists()


BAD: dict[str, dict[str, Any]] = {
    "no x": {"y": [1]},
    "text": {"x": np.array([["a"]])},
    "complex": {"x": X.astype(np.complex64)},
    "big endian": {"x": X.astype(">f4")},
    "records": {"x": np.zeros(3, dtype=[("a", "f4")])},
    "no rows": {"x": np.zeros((0, 3), np.float32)},
    "one axis": {"x": np.zeros(3, np.float32)},
    "not a number": {"x": np.full((2, 2), np.nan, np.float32)},
    "infinite": {"x": np.full((2, 2), np.inf, np.float32)},
    "too few labels": {"x": X, "y": [1, 2]},
    "labels that are shares": {"x": X, "y": np.zeros(6, np.float32)},
    "labels in two columns": {"x": X, "y": np.zeros((6, 2), np.int64)},
    "negative label": {"x": X, "y": [0, 1, 2, 3, 4, -1]},
    "endless label": {"x": X, "y": [0, 1, 2, 3, 4, 1 << 60]},
    "too few sources": {"x": X, "source": [1]},
    "sources that are shares": {"x": X, "source": np.zeros(6)},
    "column order": {"x": np.asfortranarray(X)},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_dataset_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_dataset(save(tmp_path / "bad.npz", **BAD[name]))
    assert caught.value.message.startswith("bad.npz")


def test_a_header_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=X)
    data = path.read_bytes()
    assert data.count(b"(6, 4)") == 1
    with zipfile.ZipFile(path) as archive:
        entry = archive.read("x.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", entry.replace(b"(6, 4), }     ", b"(1<<40, 4), }"[:14]))
    with pytest.raises(InvalidError):
        parse_dataset(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", entry.replace(b"(6, 4), }        ", b"(66666666, 4), } "))
    with pytest.raises(InvalidError, match="claims"):
        parse_dataset(path)


def test_rows_have_a_bound_of_their_own(tmp_path: Path) -> None:
    """A few megabytes of packed zeros are hundreds of millions of rows: each costs a sort."""
    path = tmp_path / "many.npz"
    np.savez_compressed(path, x=np.zeros((MAX_ROWS + 1, 1), np.uint8))
    assert path.stat().st_size < 10_000
    with pytest.raises(InvalidError, match=r"many.npz: x has 1,000,001 rows"):
        parse_dataset(path)


def test_a_file_that_is_no_archive_is_told_how_to_make_one(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    with pytest.raises(InvalidError, match=r"is no \.npz file") as caught:
        parse_dataset(tmp_path / "d.npy")
    assert "numpy.savez" in caught.value.text()


def test_labels_out_of_range_are_told_as_they_stand(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=X, y=np.full(6, 2**64 - 1, np.uint64))
    with pytest.raises(InvalidError, match="labels from 18446744073709551615 to"):
        parse_dataset(path)


def test_a_split_in_chunks_is_the_split_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "d.npz", x=X, y=np.arange(6), source=list("aabbcc"))
    made = []
    for number, size in enumerate((CHUNK_BYTES, 20)):  # 20: one row of x at a time
        monkeypatch.setattr("controller.intake.dataset.CHUNK_BYTES", size)
        parts = tmp_path / f"c{number}", tmp_path / f"e{number}"
        split_dataset(path, *parts)
        made.append([part.read_bytes() for part in parts])
    assert made[0] == made[1]


@settings(max_examples=60, deadline=None)
@given(sources=st.lists(st.integers(0, 6), min_size=2, max_size=40), seed=st.integers(0, 3))
def test_no_source_is_on_both_sides_and_no_row_is_lost(
    sources: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = np.arange(len(sources), dtype=np.float32)[:, None]
    path = save(folder / "d.npz", x=rows, y=np.arange(len(sources)), source=sources)
    parts = folder / "calibration", folder / "evaluation"
    if len(set(sources)) < 2:
        with pytest.raises(InvalidError, match="one source"):
            split_dataset(path, *parts, seed=seed)
        return
    told = split_dataset(path, *parts, seed=seed)
    (cx, cy, cs), (ex, ey, es) = ((d.x, d.y, d.source) for d in map(load_dataset, parts))
    assert cs is not None
    assert es is not None
    assert cy is not None
    assert ey is not None
    assert not set(cs.tolist()) & set(es.tolist())
    assert sorted([*cx[:, 0].tolist(), *ex[:, 0].tolist()]) == rows[:, 0].tolist()
    assert np.array_equal(cx[:, 0], cy)
    assert (told.calibration_rows, told.evaluation_rows) == (len(cx), len(ex))
    assert (told.calibration_sources, told.evaluation_sources) == (len(set(cs)), len(set(es)))


def test_the_same_file_is_always_split_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=X, source=list("abcdef"))
    made = []
    for number in range(2):
        parts = tmp_path / f"c{number}", tmp_path / f"e{number}"
        split_dataset(path, *parts)
        made.append([part.read_bytes() for part in parts])
    assert made[0] == made[1]


def test_without_sources_each_row_is_its_own(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=X)
    told = split_dataset(path, tmp_path / "c", tmp_path / "e")
    assert (told.calibration_rows, told.evaluation_rows) == (1, 5)
