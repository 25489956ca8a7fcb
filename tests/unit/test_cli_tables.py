"""Tables that fit, words that stay whole, times that are local, reasons that stand once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controller.cli import tables, units
from controller.cli.apply import read_objects
from controller.cli.build_figures import quality_cells
from controller.cli.devices import _wrapped
from controller.cli.follow import news_key
from controller.cli.problem import CliError
from controller.cli.rollout_watch import _footer, _p95, _verdict, _wave_lines, unsaid
from controller.cli.session import WIDTH, Session
from lighterman.v1 import fleet_pb2

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
REASON = "no build passed because the accuracy fell by more than one point on the evaluation rows"


def test_columns_are_as_wide_as_their_cells_and_numbers_stand_right() -> None:
    lines = tables.layout(["name", ">n", "note"], [["a", "12", ""], ["bcd", "3", "x"]], None)
    assert lines == ["name   n  note", "a     12", "bcd    3  x"]


def test_a_table_that_is_too_wide_wraps_at_spaces_only() -> None:
    rows = [["raspberry-pi-5", "onnxruntime-int8", "1", REASON]]
    lines = tables.layout(["profile", "recipe", ">n", "reason"], rows, 60)
    assert max(len(line) for line in lines) <= 60
    assert set(REASON.split()) <= set(" ".join(lines).split())
    (wide,) = tables.layout(["profile", "recipe", ">n", "reason"], rows, None)[1:]
    assert wide.endswith(REASON)


def test_a_word_wider_than_the_table_stays_whole() -> None:
    word = "sha256:" + "0" * 64
    assert word in tables.layout(["digest", "why"], [[word, "a b c d e f"]], 40)[1]


def test_a_heading_stands_alone() -> None:
    lines = tables.layout(["build", ">n"], ["intel-n100 and much more", ["heavy", "1"]], 100)
    assert lines == ["build  n", "intel-n100 and much more", "heavy  1"]


def test_iso_times_become_local_and_of_today_without_the_date() -> None:
    today, before = "2026-11-24T09:05:00.123456+00:00", "2026-11-20T09:05:00Z"
    local = datetime(2026, 11, 24, 9, 5, tzinfo=UTC).astimezone()
    assert units.localise(f"at {today}.", NOW) == f"at {local:%H:%M:%S}."
    earlier = datetime(2026, 11, 20, 9, 5, tzinfo=UTC).astimezone()
    assert units.localise(before, NOW) == f"{earlier:%Y-%m-%d %H:%M:%S}"
    assert units.localise("2026-11-24 is no time", NOW) == "2026-11-24 is no time"


def test_that_time_passes_makes_no_line_new() -> None:
    one = "pi-1  intel-n100  online  3 s ago   digits:1.0.0"
    other = "pi-1  intel-n100  online  3 h 10 min ago  digits:1.0.0"
    assert news_key(one) == news_key(other)
    assert news_key(one) != news_key(one.replace("online", "offline"))


def test_the_last_events_do_not_repeat_the_reason_above() -> None:
    said = "no evidence for 20 s"
    item = fleet_pb2.Rollout(
        phase_reason=f"INCONCLUSIVE: {said}",
        waves=[fleet_pb2.WaveStatus(number=1, verdict="INCONCLUSIVE", verdict_reason=said)],
    )
    facts = [
        fleet_pb2.Fact(topic="why", text=f"PAUSED: INCONCLUSIVE: {said}"),
        fleet_pb2.Fact(topic="wave 1", text=f"INCONCLUSIVE: {said}"),
        fleet_pb2.Fact(topic="last", text=f"wave judged (wave 1 INCONCLUSIVE: {said}) · offered"),
    ]
    left = [(one.topic, one.text) for one in unsaid(item, facts)]
    assert left == [
        ("wave 1", f"INCONCLUSIVE: {said}"),
        ("last", "wave judged (wave 1 INCONCLUSIVE) · offered"),
    ]


def test_who_waits_for_a_person_says_what_the_person_can_do() -> None:
    item = fleet_pb2.Rollout(rollout_id="r-1", phase=fleet_pb2.ROLLOUT_PHASE_PAUSED)
    assert _footer(item)[-1] == "next       fleetctl rollout resume r-1, or rollback, or abort"
    item.phase = fleet_pb2.ROLLOUT_PHASE_SUCCEEDED
    assert not [line for line in _footer(item) if line.startswith("next")]


def test_a_rollout_that_nobody_took_says_how_to_go_on() -> None:
    item = fleet_pb2.Rollout(
        rollout_id="r-1",
        phase=fleet_pb2.ROLLOUT_PHASE_FAILED,
        phase_reason="no device took it: 1 refused; pi-1: no room",
        spec=fleet_pb2.RolloutSpec(model="digits", version="1.0.0", selector="all"),
    )
    again = "next       mend the cause, then fleetctl rollout start digits:1.0.0 --to all"
    assert _footer(item)[-1] == again
    item.exposed = 1  # one could not return: starting anew is not the cure
    assert again not in _footer(item)


def test_nobody_looks_again_once_it_is_over() -> None:
    wave = fleet_pb2.WaveStatus(number=1, verdict="PENDING", samples=3)
    wave.next_look_at.FromDatetime(NOW)
    assert _verdict(wave, NOW.timestamp() - 2) == "PENDING  3, next look in 2.0 s"
    assert _verdict(wave, NOW.timestamp() + 2) == "PENDING  3 samples"
    assert _verdict(wave, None) == "PENDING  3 samples"


def test_what_is_unknown_has_no_unit() -> None:
    wave = fleet_pb2.WaveStatus(number=1)
    assert _p95(wave) == "–"
    wave.p95_before_s = 0.00034
    assert _p95(wave) == "0.34 ms → –"
    wave.p95_after_s = 0.038
    assert _p95(wave) == "0.34 → 38 ms"
    wave.ClearField("p95_before_s")
    assert _p95(wave) == "– → 38 ms"


def test_a_pending_wave_takes_one_line() -> None:
    wave = fleet_pb2.WaveStatus(
        number=1, devices=3, states={"PROBATION": 3}, verdict="PENDING", samples=340,
        samples_needed=600, p95_before_s=0.00034,
    )  # fmt: skip
    item = fleet_pb2.Rollout(phase=fleet_pb2.ROLLOUT_PHASE_PROGRESSING, waves=[wave])
    session = Session()
    item.waves[0].next_look_at.FromDatetime(session.now() + timedelta(seconds=50))
    _, *lines = (str(line) for line in _wave_lines(session, item))
    assert len(lines) == 1, lines
    assert "PENDING  340 of 600, next look in " in lines[0]
    assert len(lines[0]) <= WIDTH


def test_accuracy_is_told_with_its_interval_and_n_else_agreement() -> None:
    labelled = fleet_pb2.BuildFigures(
        accuracy_pct=fleet_pb2.Interval(value=97.0, n=400),
        accuracy_delta_pts=fleet_pb2.Interval(value=-0.5, low=-1.5, high=0.5, n=400),
        agreement_pct=fleet_pb2.Interval(value=98.0, low=97.0, high=99.0, n=400),
    )
    assert quality_cells(labelled) == ("−0.5 (−1.5…+0.5)", "400")
    unlabelled = fleet_pb2.BuildFigures(agreement_pct=labelled.agreement_pct)
    assert quality_cells(unlabelled) == ("agrees 98.0 (97.0–99.0)", "400")
    assert quality_cells(fleet_pb2.BuildFigures()) == ("–", "–")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("slow_threshold_ms: .nan", "spec.slow_threshold_ms is nan, which is no number"),
        ("probation: {min_s: .inf}", "spec.probation.min_s is inf, which is no number"),
        ("ladder: [{at: 2026-01-01}]", "spec.ladder[0].at is of the YAML type date"),
        ("2026-01-01: 1", "spec has the key 2026-01-01, which is no text"),
    ],
)
def test_what_json_cannot_hold_is_named_by_its_key(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(f"kind: Policy\nname: p\nspec:\n  model: digits\n  {line}\n", encoding="utf-8")
    with pytest.raises(CliError) as caught:
        read_objects(file)
    assert said in caught.value.text


def test_maps_are_told_in_one_order() -> None:
    pairs = {"failed": 1, "odd": 2, "queued": 3}
    assert list(units.in_order(pairs, ("queued", "running", "failed"))) == [
        "queued",
        "failed",
        "odd",
    ]


def test_a_fact_is_wrapped_and_aligned_under_its_text() -> None:
    text = f"1.3.0: rollout r-1, wave 2, {REASON}, committed after 212 inferences"
    first, *more = _wrapped("version", text, WIDTH)
    assert first.startswith("version     1.3.0: rollout r-1")
    assert all(len(line) <= WIDTH for line in (first, *more))
    assert more
    assert all(line.startswith(" " * 14) and line[14] != " " for line in more)
    assert " ".join((first[12:], *(line.strip() for line in more))) == text
    assert _wrapped("version", text, None) == [f"version     {text}"]
    _, second = _wrapped("", f"  {REASON} again", WIDTH)
    assert second.startswith(" " * 16)  # a build under its variant
