"""Boxes as truth: plain arrays, inside their picture, as many as the rows say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.errors import InvalidError
from controller.intake.dataset import load_dataset, parse_dataset, split_dataset
from controller.intake.dataset_truth import picture_size

X = np.arange(6 * 3 * 20 * 30, dtype=np.uint8).reshape(6, 3, 20, 30)
COUNTS = np.array([2, 0, 1, 1, 0, 1])
BOXES = np.array(
    [[0, 0, 30, 20], [1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7], [5, 5, 9.5, 9]], np.float32
)
CLASSES = np.array([0, 1, 2, 3, 5])


def save(path: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {
        "x": X,
        "boxes": BOXES,
        "box_class": CLASSES,
        "box_count": COUNTS,
    } | changes
    np.savez(path, **{key: one for key, one in arrays.items() if one is not None})
    return path


def test_what_boxes_a_dataset_holds_is_told(tmp_path: Path) -> None:
    parsed = parse_dataset(save(tmp_path / "d.npz"))
    assert (parsed.boxes, parsed.box_classes, parsed.boxed) == (5, 6, True)
    assert (parsed.labelled, parsed.classes) == (False, 0)
    none = save(tmp_path / "none.npz", boxes=np.zeros((0, 4)), box_class=None,
                box_count=np.zeros(6, int))  # fmt: skip
    assert (parse_dataset(none).boxes, parse_dataset(none).boxed) == (0, True)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "three numbers": ({"boxes": BOXES[:, :3]}, "boxes has the shape (5, 3)"),
    "words": ({"boxes": BOXES.astype("U4")}, "four numbers per box are needed"),
    "nan": ({"boxes": BOXES * np.nan}, "boxes holds values that are no numbers"),
    "one too many": (
        {"box_count": COUNTS + np.array([1, 0, 0, 0, 0, 0])},
        "does not add up to the 5 boxes",
    ),
    "overflow": ({"box_count": np.array([2**63 - 1, 2**63 - 1, 7, 0, 0, 0])}, "does not add up"),
    "a row too few": ({"box_count": COUNTS[:5]}, "one whole number per row is needed, 6 in all"),
    "negative": ({"box_count": COUNTS - 1}, "box_count holds -1"),
    "ragged classes": ({"box_class": CLASSES[:4]}, "one whole number per box is needed, 5 in all"),
    "absurd class": ({"box_class": CLASSES + 10**9}, "box_class holds 1000000005"),
    "no counts": ({"box_count": None}, "boxes and box_class alone"),
    "outside": (
        {"boxes": BOXES + np.array([0, 0, 0, 1])},
        "box 0 of row 0 (0, 0, 30, 21) is outside of its",
    ),
    "left of it": ({"boxes": BOXES - np.array([1, 0, 0, 0])}, "which is 30 wide and 20 high"),
    "no area": ({"boxes": np.ascontiguousarray(BOXES[:, [2, 1, 0, 3]])}, "has no area"),
    "third row": (
        {"boxes": np.where(np.arange(5)[:, None] == 2, 99, BOXES)},
        "box 2 of row 2 (99, 99, 99, 99) has no area",
    ),
    "no pictures": ({"x": np.zeros((6, 4), np.float32)}, "which are no pictures"),
    "both": ({"y": np.zeros(6, int)}, "has labels y and boxes"),
    "target": ({"target": np.zeros(5)}, "numbers are needed, 6 entries in all"),
    "target words": ({"target": np.full(6, "a")}, "numbers are needed"),
    "target nan": ({"target": np.full(6, np.inf)}, "target holds values that are no numbers"),
    "unknown": ({"boxen": BOXES}, "a dataset has the arrays x, y, source, target, boxes"),
}


@pytest.mark.parametrize("name", BAD)
def test_boxes_that_cannot_be_true_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    changes, said = BAD[name]
    with pytest.raises(InvalidError) as caught:
        parse_dataset(save(tmp_path / "d.npz", **changes))
    assert said in caught.value.text()


def test_boxes_go_with_their_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", target=np.arange(6.0))
    parts = (tmp_path / "calibration.npz", tmp_path / "evaluation.npz")
    split_dataset(path, *parts)
    whole = load_dataset(path)
    assert whole.boxes is not None
    of_row = whole.boxes.per_row()
    rows = 0
    for part in parts:
        found = load_dataset(part)
        assert found.boxes is not None
        assert found.target is not None
        for row, (corners, classes) in zip(found.target, found.boxes.per_row(), strict=True):
            assert corners.tolist() == of_row[int(row)][0].tolist()
            assert classes.tolist() == of_row[int(row)][1].tolist()
            rows += 1
    assert rows == 6


def test_channels_stand_first_or_last() -> None:
    sizes = [picture_size(one) for one in ((3, 20, 30), (20, 30, 1), (20, 30), (7, 20, 30), (9,))]
    assert sizes == [(20, 30), (20, 30), (20, 30), None, None]
