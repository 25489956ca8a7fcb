"""mAP by `pycocotools`: COCO's average precision over IoU 0.50 to 0.95, all sizes of boxes.

The library is loaded on use, in this file alone. Where it is not installed there is no such figure,
and a recipe that asks for one is refused.
"""

import contextlib
import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from controller.optimize.tasks.boxes import Found
from controller.optimize.tasks.figures import Keep, Metric

MODULE = "pycocotools"
_LEFT_OUT = -1  # in the place of a picture's number


def is_here() -> bool:
    """Whether the library is installed."""
    try:
        return find_spec(MODULE) is not None
    except (ImportError, ValueError):  # None in sys.modules: somebody switched it off
        return False


def mean_precision(found: Sequence[Found], truth: Sequence[Found], most: int) -> Metric:
    """mAP (0 to 1) over the rows that are kept; of ``most`` boxes per row.

    Boxes are held against the true ones once; which rows are counted is asked as often as it takes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        true, mine = COCO(), COCO()
        categories = [
            {"id": int(label)} for label in np.unique(np.concatenate([t.classes for t in truth]))
        ]
        for one, side, scored in ((true, truth, False), (mine, found, True)):
            one.dataset = {
                "images": [{"id": row} for row in range(len(truth))],
                "categories": categories,
                "annotations": _annotations(side, scored=scored),
            }
            one.createIndex()
        asked = COCOeval(true, mine, "bbox")
        asked.params.areaRng, asked.params.areaRngLbl = [[0, 1e10]], ["all"]
        asked.params.maxDets = [most]
        if categories:
            asked.evaluate()
    return partial(_precision, asked, bool(categories))


def _precision(asked: Any, known: bool, keep: Keep) -> float:
    """Of the kept rows. No class at all: nothing was there to be found."""
    if not known:
        return 1.0
    params = asked.params
    every = params.imgIds
    try:
        # Its tables go by the place of a picture: what is left out keeps its place, not its number.
        params.imgIds = [one if stay else _LEFT_OUT for one, stay in zip(every, keep, strict=True)]
        with contextlib.redirect_stdout(io.StringIO()):
            asked.accumulate(params)
    finally:
        params.imgIds = every
    precision = asked.eval["precision"]
    heard = precision[precision > -1]  # -1: a class that no kept row has
    return float(heard.mean()) if heard.size else 1.0


def _annotations(side: Sequence[Found], *, scored: bool) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for row, one in enumerate(side):
        for corners, score, label in zip(one.corners, one.scores, one.classes, strict=True):
            left, top, right, bottom = (float(side) for side in corners)
            made.append(
                {
                    "id": len(made) + 1,  # 0 counts as none
                    "image_id": row,
                    "category_id": int(label),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    **({"score": float(score)} if scored else {}),
                }
            )
    return made
