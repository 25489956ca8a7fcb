"""Builds as people read them: figures with interval and n, overrides, what a failed job said."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controller.cli.build_figures import (
    eager_cells,
    error_line,
    figures_text,
    override_text,
    p50_cell,
)
from controller.cli.build_show import _lines
from controller.cli.builds import _below, _say_changes
from controller.cli.records import record
from controller.cli.session import Session
from lighterman.v1 import fleet_pb2

FIGURES = fleet_pb2.BuildFigures(
    accuracy_pct=fleet_pb2.Interval(value=97.9, low=95.8, high=98.9, n=375),
    accuracy_delta_pts=fleet_pb2.Interval(value=-0.3, low=-1.2, high=0.6, n=375),
    agreement_pct=fleet_pb2.Interval(value=99.7, low=98.5, high=100.0, n=375),
    p50_ms=21.4,
    p95_ms=38.0,
    latency_n=200,
    p50_interval_ms=fleet_pb2.Interval(value=21.4, low=21.1, high=21.96, n=200),
    fp32_p50_ms=74.1,
    eager_p50_ms=118.5,
    eager_p50_interval_ms=fleet_pb2.Interval(value=118.5, low=110.0, high=125.2, n=13),
    measured_on="x86_64 AMD EPYC",
)


def build(state: str, **more: Any) -> fleet_pb2.Build:
    return fleet_pb2.Build(
        build_id="b-1", model="digits", version="1.0.0", profile="pi", variant="heavy",
        recipe="onnxruntime-int8", state=state, figures=FIGURES, **more,
    )  # fmt: skip


def overridden() -> fleet_pb2.Build:
    item = build(
        "overridden", reason="p95 363 ms, budget 100 ms, n=8", override_by="ana",
        override_reason="seen in the lab",
    )  # fmt: skip
    item.override_at.FromDatetime(datetime(2026, 11, 24, 9, 14, 5, tzinfo=UTC))
    return item


def test_medians_carry_their_interval_and_n() -> None:
    assert p50_cell(FIGURES) == "21 (21–22)"
    assert eager_cells(FIGURES) == ("118 (110–125)", "13")
    assert eager_cells(fleet_pb2.BuildFigures(eager_p50_ms=20.0)) == ("20", "–")
    assert p50_cell(fleet_pb2.BuildFigures(p50_ms=0.0158)) == "0.016"
    text = figures_text(FIGURES)
    assert "acc 97.9 % (−0.3 points, −1.2 to +0.6, n=375)" in text
    assert "p50 21 (21–22)  p95 38 ms, n=200" in text


def test_show_tells_every_figure_with_interval_and_n() -> None:
    lines = [text for topic, text in _lines(build("passed")) if topic == "figures"]
    assert "p50         21.4 ms (21.1–22), n=200" in lines
    assert "eager p50   118 ms (110–125), n=13" in lines
    assert "change      −0.3 points (−1.2 to +0.6), n=375" in lines
    assert "agreement   99.7 % (98.5–100.0) with the source, n=375" in lines
    (fp32,) = [line for line in lines if line.startswith("fp32")]
    assert fp32.endswith("too few calls for an interval, or made before it was kept")


def test_an_override_is_told_in_the_list_in_show_and_in_json() -> None:
    item = overridden()
    assert override_text(item) == "overridden by ana 2026-11-24T09:14:05Z: seen in the lab"
    assert _below(item) == [f"{override_text(item)} (refused: p95 363 ms, budget 100 ms, n=8)"]
    assert ("overridden", "by ana 2026-11-24T09:14:05Z: seen in the lab") in list(_lines(item))
    document = record(item)
    assert document["override_by"] == "ana"
    assert document["override_at"] == "2026-11-24T09:14:05Z"
    assert override_text(build("passed")) == ""


def test_a_failed_build_is_cut_to_its_error_in_the_list_and_whole_in_show() -> None:
    lines = [
        "/lib/onnx/quant.py:12: UserWarning: no opset",
        "Traceback (most recent call last):",
        '  File "job.py", line 1',
        "onnxruntime.capi.onnxruntime_pybind11_state.Fail: no kernel for Foo",
        "a last word",
    ]
    item = build("failed", reason="the job died", last_lines=lines)
    said = _below(item)
    assert said[:2] == ["the job died", lines[3]]
    assert said[2].startswith("all lines of the job: fleetctl build show digits:1.0.0 --profile pi")
    assert len(said) == 3
    assert [text for topic, text in _lines(item) if topic == "last lines"] == lines


def test_what_the_reason_says_is_not_said_again() -> None:
    assert error_line(["warning", "MemoryError: 6 GiB"], "failed: MemoryError: 6 GiB") == ""
    assert error_line(["only a word", ""], "the job died") == "only a word"
    assert error_line([], "the job died") == ""
    assert _below(build("passed", reason="all of it")) == []


def test_a_job_tells_a_step_once_and_each_build_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session()
    said: dict[str, set[str]] = {}

    def told(state: str, step: str = "", pct: float = 0.0, **more: Any) -> list[str]:
        more = {"job_id": "j-1", **more}
        builds = [build(state, step=step, progress_pct=pct, **more) for _ in range(2)]
        builds[0].recipe = "onnxruntime-fp32"
        _say_changes(session, builds, said)
        return capsys.readouterr().out.splitlines()

    both = "pi  heavy  onnxruntime-fp32, onnxruntime-int8"
    assert told("queued") == [f"{both}  queued"]
    assert told("running", "exporting", 10) == [f"{both}  exporting 10 %"]
    assert told("running", "exporting", 12) == []
    assert told("running", "evaluating", 60) == [f"{both}  evaluating 60 %"]
    assert told("running", "calibrating", 70) == [f"{both}  calibrating 70 %"]
    assert told("running", "evaluating", 80) == []  # of the next recipe
    assert told("running", "exporting", 10, attempts=2) == [f"{both}  exporting 10 %"]
    ends = told("passed")
    assert [line.split("  ")[2:4] for line in ends] == [
        ["onnxruntime-fp32", "done"],
        ["onnxruntime-int8", "done"],
    ]
    assert told("passed") == []
    # Negative control: of builds in no common job each has its own line.
    assert len(told("running", "exporting", 10, job_id="")) == 2
