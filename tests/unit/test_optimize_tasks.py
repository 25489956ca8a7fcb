"""Answers of tasks and what they are worth: boxes, text maps, F1, mAP, and intervals that hold."""

import math
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from controller.domain.build import parse_recipe
from controller.domain.interval import metric_change_pts, paired_difference_pts
from controller.domain.task import parse_task
from controller.errors import InvalidError
from controller.intake.dataset_truth import Boxes
from controller.optimize.builder import LackingError
from controller.optimize.rows import Rows
from controller.optimize.tasks import coco
from controller.optimize.tasks.boxes import Found, kept_of, overlaps
from controller.optimize.tasks.classes import NOT_A_CLASS, ClassJudge, compare
from controller.optimize.tasks.detection import DetectionJudge, f1_change, match
from controller.optimize.tasks.figures import figure
from controller.optimize.tasks.judge import judge_of, require_figures
from controller.optimize.tasks.text_map import read_db, regions

DETECTOR = {"kind": "detection", "post": "boxes"}
RNG = np.random.default_rng


def found(*corners: tuple[float, ...], score: float = 0.9, label: int = 0) -> Found:
    count = len(corners)
    places = np.array(corners, float).reshape(count, 4)
    return Found(places, np.full(count, score), np.full(count, label, np.int64))


@given(st.integers(2, 400), st.data())
def test_the_change_of_a_metric_is_bonett_and_prices_where_the_metric_is_a_share(
    n: int, data: st.DataObject
) -> None:
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    moved = np.zeros(n)
    moved[:gained], moved[gained : gained + lost] = 1, -1
    variance = float(((moved - moved.mean()) ** 2).sum() / (n * (n - 1)))
    mine, theirs = metric_change_pts(float(moved.mean()), variance, n), None
    theirs = paired_difference_pts(gained, lost, n)
    assert (mine.low, mine.value, mine.high, mine.n) == pytest.approx(
        (theirs.low, theirs.value, theirs.high, theirs.n), abs=1e-9
    )


def test_twenty_rows_that_are_all_alike_prove_nothing() -> None:
    change = metric_change_pts(0.0, 0.0, 20)
    assert change.value == 0
    assert change.low < -10 < 10 < change.high


@pytest.mark.parametrize("n", [40, 150])
def test_the_interval_of_f1_covers_what_is_true(n: int) -> None:
    """Pictures of very unlike numbers of boxes, errors that come together: 95 of 100 hold."""
    random = RNG(5)
    seen_pct, held, tries = (0.95, 0.90), 0, 400
    expected = 100 * (2 * seen_pct[1] / (1 + seen_pct[1]) - 2 * seen_pct[0] / (1 + seen_pct[0]))
    for _ in range(tries):
        true = random.integers(1, 12, n)
        hard = random.beta(20, 1, n)  # what is hard for one is hard for the other
        sides = []
        for share in seen_pct:
            hits = random.binomial(true, np.clip(hard * share / (20 / 21), 0, 1))
            sides.append(np.stack([hits, true, hits], axis=1))
        change = f1_change(sides[1], sides[0])
        held += change.low <= expected <= change.high
    assert held / tries >= 0.93


def test_a_jackknife_in_groups_gives_about_the_same_interval() -> None:
    random = RNG(1)
    true = random.integers(1, 9, 700)
    counts = [
        np.stack([hits, true, hits], axis=1)
        for hits in (random.binomial(true, 0.9), random.binomial(true, 0.93))
    ]

    def metric(counts: NDArray[np.int64], keep: NDArray[np.bool_]) -> float:
        total = counts[keep].sum(axis=0)
        return float(2 * total[2] / (total[0] + total[1]))

    grouped = figure(
        "f1", lambda keep: metric(counts[0], keep), lambda keep: metric(counts[1], keep), 700
    )
    single = f1_change(counts[0], counts[1])
    assert grouped.delta_pts.value == pytest.approx(single.value)
    width = single.high - single.low
    assert grouped.delta_pts.high - grouped.delta_pts.low == pytest.approx(width, rel=0.25)
    assert grouped.value.low < grouped.value.value < grouped.value.high < 100


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_regions_are_scipys(seed: int) -> None:
    random = RNG(seed)
    mask = random.random((random.integers(1, 25), random.integers(1, 25))) < random.random()
    mine = regions(mask)
    theirs, count = ndimage.label(mask, np.ones((3, 3)))
    assert mine.max() == count
    assert len(set(zip(mine.ravel(), theirs.ravel(), strict=True))) == count + (not mask.all())


def test_a_text_map_becomes_widened_boxes() -> None:
    task = parse_task({"kind": "detection", "post": "db"}, {"unclip": 2.0})
    text = np.zeros((1, 1, 40, 100))
    text[0, 0, 10:14, 20:60] = 0.9  # 40 x 4: 160 x 2 / 88 = 3.64 on every side
    text[0, 0, 30:34, 20:60] = 0.5  # likely enough to be cut out, not to be text
    text[0, 0, 20:22, 0:9] = 0.9  # too low
    text[0, 0, 25, 70] = math.nan
    (one,) = read_db([text], (80, 200), task)
    wide = 2 * 320 / 176
    assert one.corners == pytest.approx(
        2 * np.array([[20 - wide, 10 - wide, 60 + wide, 14 + wide]]), abs=0.02
    )
    assert one.scores == pytest.approx([0.9])
    (none,) = read_db([np.zeros((1, 1, 8, 8))], (8, 8), task)
    assert none.corners.shape == (0, 4)


def test_of_boxes_that_overlap_the_likeliest_stays_class_by_class() -> None:
    task = parse_task(DETECTOR, {"threshold": 0.3, "overlap": 0.5})
    corners = np.array([[[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [5, 5, 4, 9]]], float)
    scores = np.array([[[0.9, 0.1], [0.8, 0.7], [0.2, 0.4], [0.9, 0.9]]])
    image = np.zeros((1, 3, 64, 64), np.float32)
    (one,) = DetectionJudge(task).read([corners, scores], [image]) or []
    assert one.scores.tolist() == [0.9, 0.7, 0.4]
    assert one.classes.tolist() == [0, 1, 1]
    assert kept_of(corners[0, :3], np.array([0.9, 0.8, 0.2]), 0.5).tolist() == [0, 2]
    yolo = parse_task({"kind": "detection", "post": "yolo"}, {"relative": 1, "most": 1})
    places = np.array([[[0.5], [0.5], [0.25], [0.5], [0.1], [0.8]]])
    (one,) = DetectionJudge(yolo).read([places], [image]) or []
    assert one.corners.tolist() == [[24, 16, 40, 48]]
    assert one.classes.tolist() == [1]
    assert DetectionJudge(yolo).read([np.zeros((1, 4))], [image]) is None, "no such outputs"


def test_every_true_box_is_found_once_and_by_its_class() -> None:
    truth = found((0, 0, 10, 10), (20, 0, 30, 10))
    assert match(truth, truth) == 2
    assert match(found((0, 0, 10, 10), (1, 0, 11, 10)), truth) == 1, "the second is one too many"
    assert match(found((0, 0, 10, 10), label=1), truth) == 0
    assert match(found((0, 0, 10, 4)), truth) == 0, "IoU 0.4"
    assert overlaps(truth.corners, truth.corners).tolist() == [[1, 0], [0, 1]]


def shifted(truth: list[Found], every: int, by: float) -> list[Found]:
    """A detector that misses every so many boxes by so much."""
    made = []
    for row, one in enumerate(truth):
        corners = one.corners.copy()
        if row % every == 0:
            corners += by
        made.append(Found(corners, one.scores, one.classes))
    return made


def pages(count: int, classes: int = 1) -> list[Found]:
    random = RNG(2)
    made = []
    for row in range(count):
        low = random.random((4, 2)) * 40 + np.array([[0, 0], [60, 0], [0, 60], [60, 60]])
        corners = np.concatenate([low, low + 12], axis=1)
        made.append(Found(corners, random.random(4), np.arange(row, row + 4) % classes))
    return made


def rows_of(truth: list[Found]) -> Rows:
    boxes = Boxes(
        np.concatenate([one.corners for one in truth]),
        np.concatenate([one.classes for one in truth]),
        np.array([len(one.corners) for one in truth]),
    )
    return Rows(np.zeros((len(truth), 3, 128, 128)), None, "float32", 4, boxes=boxes)


def test_a_detector_is_judged_beside_its_source() -> None:
    truth = pages(120, classes=3)
    judge = judge_of(parse_task(DETECTOR, {}))
    source, built = shifted(truth, 20, 50), shifted(truth, 10, 50)
    figures = judge.figures(built, source, rows_of(truth))
    by_name = {one.name: one for one in figures.metrics}
    f1 = by_name["f1"]
    assert f1.value.value == pytest.approx(90)
    assert f1.source.value == pytest.approx(95)
    assert f1.delta_pts.low < -5 < f1.delta_pts.high
    assert figures.agreement is not None
    assert figures.agreement.value == pytest.approx(95)
    assert figures.classes_judged == 3
    assert all(one.delta_pts.n == 120 and one.source > one.value for one in figures.classes)
    unlabelled = judge.figures(built, source, Rows(np.zeros((120, 1)), None, "float32", 4))
    assert (unlabelled.metrics, unlabelled.agreement) == ((), figures.agreement)


def test_map_is_cocos_and_its_left_out_rows_are_left_out() -> None:
    pytest.importorskip("pycocotools")
    truth = pages(60)
    worse = shifted(truth, 4, 2)  # IoU 0.53: found at 0.50 alone
    every = np.ones(60, bool)
    asked = coco.mean_precision(worse, truth, 100)
    whole = asked(every)
    good = np.arange(60) % 4 != 0
    assert asked(good) == pytest.approx(1.0)
    assert asked(~good) == pytest.approx(0.1, abs=0.02)
    assert whole == pytest.approx((1 + 9 * 0.75 * 0.8) / 10, abs=0.06)
    assert asked(every) == whole, "leaving out changes nothing that stays"
    assert coco.mean_precision(truth, truth, 100)(every) == pytest.approx(1.0)


def test_a_recipe_that_bounds_map_needs_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"runtime": "x", "precision": "fp32", "gate": {"max_map_drop_pts": 1.0}}
    task, recipe = parse_task(DETECTOR, {}), parse_recipe("exact", spec)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert not coco.is_here()
    with pytest.raises(LackingError, match="recipe exact bounds mAP, and this worker has not pyco"):
        require_figures(task, recipe)
    truth = pages(10)
    figures = judge_of(task).figures(truth, truth, rows_of(truth))
    assert [one.name for one in figures.metrics] == ["f1"]


def test_classes_below_the_threshold_or_beyond_k_are_not_answered() -> None:
    scores = np.array([[4.0, 1, 0, 0, 0, 0, 0], [1, 1.1, 1, 1, 1, 1, 1]])
    plain = ClassJudge().read([scores], [scores]) or []
    assert [row[0] for row in plain] == [0, 1]
    task = parse_task({"post": "softmax"}, {"threshold": 0.5, "k": 2})
    told = ClassJudge(task).read([scores], [scores]) or []
    assert told[0].tolist() == [0, NOT_A_CLASS, NOT_A_CLASS, NOT_A_CLASS, NOT_A_CLASS]
    assert told[1][0] == NOT_A_CLASS


def test_a_class_that_loses_is_named_and_one_that_may_be_chance_is_not() -> None:
    labels = np.arange(600) % 6
    source = labels[:, None].copy()
    built = source.copy()
    built[(labels == 2) & (np.arange(600) % 12 == 2), 0] = 5  # half of class 2
    built[3, 0] = 5  # one row of class 3
    figures = compare(built, source, labels)
    assert [(one.label, one.loses, one.delta_pts.n) for one in figures.classes[:2]] == [
        (2, True, 100), (3, False, 100),
    ]  # fmt: skip
    assert figures.classes_judged == 6
    few = compare(built[:18], source[:18], labels[:18])
    assert not any(one.loses for one in few.classes), "three rows of a class prove nothing"


class Entry:
    """As `importlib.metadata` has it."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self._function = name, function

    def load(self) -> Any:
        return self._function


def test_a_metric_of_ones_own_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def within(rows: Any) -> float:
        close = [abs(float(row.outputs[0][0]) - float(row.target)) < 1 for row in rows]
        return 100 * sum(close) / len(close)

    entries = [Entry("within", within), Entry("odd", lambda rows: 312.0)]
    monkeypatch.setattr(metadata, "entry_points", lambda **_: entries)
    declared = {"kind": "other", "metric": "within"}
    judge = judge_of(parse_task(declared, {}))
    target = np.arange(80.0)
    rows = Rows(np.zeros((80, 1)), None, "float32", 4, target=target)
    sides = [
        judge.read([target[:, None] + off], [target[:, None]]) or []
        for off in (np.where(np.arange(80) < 8, 5, 0)[:, None], np.zeros((80, 1)))
    ]
    (only,) = judge.figures(sides[0], sides[1], rows).metrics
    same = paired_difference_pts(0, 8, 80)
    assert (only.name, only.source.value) == ("within", 100)
    assert (only.delta_pts.low, only.delta_pts.high) == pytest.approx((same.low, same.high))
    unheard = Rows(np.zeros((80, 1)), None, "float32", 4)
    assert judge.figures(sides[0], sides[1], unheard).metrics == ()
    odd = judge_of(parse_task(declared | {"metric": "odd"}, {}))
    with pytest.raises(InvalidError, match="metric odd gave 312"):
        odd.figures(sides[0], sides[1], rows)
    with pytest.raises(LackingError) as caught:
        judge_of(parse_task(declared | {"metric": "absent"}, {}))
    assert "no metric absent\nit has odd, within; install" in caught.value.text()
