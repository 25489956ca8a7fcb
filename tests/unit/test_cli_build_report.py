"""`fleetctl build report`: which builds no other beats, and a page safe from foreign words."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from controller.cli.build_report import _document, _show, front
from controller.cli.report_page import report_page
from controller.cli.session import Session
from lighterman.v1 import fleet_pb2


def build(recipe: str, accuracy: float, p95_ms: float, size: int, **more: Any) -> fleet_pb2.Build:
    share = fleet_pb2.Interval(value=accuracy, low=accuracy - 1, high=accuracy + 0.5, n=375)
    delta = fleet_pb2.Interval(value=accuracy - 99, low=accuracy - 100, high=0.5, n=375)
    figures = fleet_pb2.BuildFigures(
        accuracy_pct=share, accuracy_delta_pts=delta, p50_ms=p95_ms / 2, p95_ms=p95_ms,
        latency_n=200, fp32_p50_ms=20.0, eager_p50_ms=50.0, measured_on="x86_64 AMD EPYC",
    )  # fmt: skip
    named: dict[str, Any] = {
        "build_id": f"b-{recipe}", "model": "digits", "version": "1.0.0", "profile": "pi",
        "variant": "heavy", "recipe": recipe, "state": "passed", "size_bytes": size,
        "digest": "sha256:1", "source_digest": "sha256:2", "tool_versions": {"onnx": "1.23.2"},
    }  # fmt: skip
    return fleet_pb2.Build(figures=figures, **(named | more))


FLOAT = build("fp32", 99.0, 40.0, 20_000_000)
INT8 = build("int8", 98.5, 15.0, 5_000_000)
WORSE = build("int8-worse", 98.0, 16.0, 5_000_000)
QUICK = build("int4", 60.0, 2.0, 2_000_000, state="refused", reason="accuracy −39 points")
ALL = [FLOAT, INT8, WORSE, QUICK]


def test_on_the_front_is_what_no_other_usable_build_beats() -> None:
    assert front(ALL) == {0, 1}, "neither the worse one, nor one that was refused"
    elsewhere = build("int8-worse", 98.0, 16.0, 5_000_000, profile="n100")
    assert front([INT8, elsewhere]) == {0, 1}, "of another profile"
    assert front([INT8, INT8]) == {0, 1}, "equal ones beat nobody"
    unmeasured = fleet_pb2.Build(profile="pi", state="passed")
    assert front([unmeasured, fleet_pb2.Build(profile="pi", state="queued")]) == frozenset()


def test_the_table_and_the_json_mark_them(capsys: pytest.CaptureFixture[str]) -> None:
    _show(Session(), ALL, front(ALL))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    marked = {line.split()[0] for line in lines if re.match(r"  \S+ +\*", line)}
    assert marked == {"fp32", "int8"}
    document = _document(ALL, front(ALL))
    assert document["kind"] == "build_report_list"
    assert [one["on_front"] for one in document["items"]] == [True, True, False, False]


def test_the_page_is_whole_and_draws_every_measured_build() -> None:
    page = report_page("digits:1.0.0", ALL, front(ALL))
    drawn = re.search(r"<svg.*?</svg>", page, re.DOTALL)
    assert drawn is not None
    picture = ElementTree.fromstring(drawn[0])
    circles = picture.findall("circle")
    assert len(circles) == len(ALL)
    area = {
        one.findtext("title", "").split(":")[0]: float(one.get("r", "0")) ** 2 for one in circles
    }
    assert area["heavy fp32"] / area["heavy int8"] == pytest.approx(4, rel=0.02), "size is area"
    assert sum(one.get("stroke-width") == "3" for one in circles) == 2
    for text in ("sha256:2", "onnx 1.23.2", "accuracy −39 points", "x86_64 AMD EPYC"):
        assert text in page
    assert not re.search(r"<script|src=|href=|url\(|@import", page), "nothing is fetched"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.found |= {name for name, _ in attrs if name.startswith("on")}


def test_foreign_words_stay_words() -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    item = build("int8", 98.0, 15.0, 5, profile=evil, variant=evil, state="refused", reason=evil)
    item.findings.add(ok=False, text=evil)
    item.tool_versions[evil] = evil
    tags = _Tags()
    tags.feed(report_page(evil, [item], frozenset()))
    assert not tags.found & {"script", "img", "onerror"}


def test_builds_without_figures_still_make_a_page(tmp_path: Path) -> None:
    queued = fleet_pb2.Build(profile="pi", variant="heavy", recipe="int8", state="queued")
    page = report_page("digits:1.0.0", [queued], frozenset())
    assert "Nothing to draw" in page
    one = report_page("digits:1.0.0", [build("int8", 100.0, 15.0, 5)], frozenset({0}))
    assert "<circle" in one


def detector(recipe: str, f1: float, change: float, *classes: tuple[int, float, bool]) -> Any:
    item = build(recipe, 0.0, 15.0, 5_000_000, model="text")
    figures = item.figures
    figures.ClearField("accuracy_pct")
    figures.ClearField("accuracy_delta_pts")
    figures.task, figures.classes_judged = "detection", 40
    share = fleet_pb2.Interval(value=f1, low=f1 - 1, high=f1 + 1, n=330)
    delta = fleet_pb2.Interval(value=change, low=change - 1, high=change + 1, n=330)
    figures.metrics.add(name="f1", value_pct=share, source_pct=share, delta_pts=delta)
    for label, lost, loses in classes:
        moved = fleet_pb2.Interval(value=-lost, low=-lost - 2, high=2 - lost, n=21)
        figures.classes.add(
            label=label, value_pct=90 - lost, source_pct=90, delta_pts=moved, loses=loses
        )
    return item


def test_a_detector_is_compared_by_f1_and_names_the_classes_that_lose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    items = [
        detector("fp32", 97.6, 0.0, (0, 0.0, False)),
        detector("int8", 96.6, -1.0, (3, 9.0, True), (1, 1.5, False), (0, 0.0, False)),
    ]
    _show(Session(), items, front(items), ["<b>word</b>", "1", "c", "figure"])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert "F1 %" in lines[0]
    assert any("96.6" in line and "−1.0 (−2.0…±0.0)" in line for line in lines)
    assert [line.split()[:3] for line in lines if "chance" in line and "int8" in line] == [
        ["int8", "1", "90.0"]
    ], "a name that is the number says nothing"
    (loses,) = [line for line in lines if line.startswith("int8") and "loses" in line]
    assert loses.split()[1:5] == ["3", "figure", "90.0", "81.0"]
    assert lines[-1].startswith("loses: beyond chance, with all 40 classes of the rows considered")
    page = report_page("text:1.0.0", items, front(items), ["<b>word</b>", "1", "c", "figure"])
    assert "Classes that lose most" in page
    assert "F1 %" in page
    assert "<b>" not in page
    plain = report_page("digits:1.0.0", ALL, front(ALL))
    assert "Classes that lose most" not in plain
