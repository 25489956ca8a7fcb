"""Why a good version did not win under random faults: only a fault of that run excuses it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.faults.ends import CRASHED, Struck, Why, judge, log_between

T0 = datetime(2026, 11, 24, 14, 0, 0, tzinfo=UTC)
SLOW = "5 inferences in a row over 100 ms (131 118 124 140 122)"


def at(second: float) -> datetime:
    return T0 + timedelta(seconds=second)


def event(kind: str, device: str, second: float, reason: str = "") -> dict[str, Any]:
    return {"kind": kind, "device_id": device, "at": at(second).isoformat(), "reason": reason}


def explained(*left: tuple[str, str], intent: str = "RUN", why: str = "FAILED") -> dict[str, Any]:
    rows = [{"device_id": d, "state": "ROLLED_BACK", "reason": reason} for d, reason in left]
    shown = {"phase": "ROLLED_BACK", "phase_reason": why, "intent": intent}
    return {"rollout": shown, "assignments": rows}


EVENTS = [
    event("assignment_offered", "a", 1),
    event("assignment_staged", "a", 2),
    event("assignment_rolling_back", "a", 9, CRASHED),
]
KILL = Struck("agent kill -9", "a", at(4))


def test_a_kill_on_trial_explains_the_return() -> None:
    why, text = judge(explained(("a", CRASHED)), EVENTS, [KILL])
    assert why is Why.KILLED
    assert "killed at 14:00:04" in text


@pytest.mark.parametrize(
    ("reason", "struck"),
    [
        (CRASHED, []),
        (CRASHED, [Struck("agent kill -9", "b", at(4))]),
        (CRASHED, [Struck("agent kill -9", "a", at(1.5))]),
        (CRASHED, [Struck("agent kill -9", "a", at(9.5))]),
        (CRASHED, [Struck("partition", "a", at(4))]),
        (SLOW, [KILL]),
        ("an inference failed in probation: no", [KILL]),
        ("no room: 5 MB are missing", [Struck("disk full", "b", at(3))]),
    ],
)
def test_negative_control_what_no_fault_explains_breaks_the_run(
    reason: str, struck: list[Struck]
) -> None:
    assert judge(explained(("a", reason)), EVENTS, struck)[0] is Why.UNEXPLAINED


def test_who_was_called_back_needs_no_cause_of_its_own() -> None:
    both = explained(("a", CRASHED), ("b", "called back: FAILED: a left it"))
    assert judge(both, EVENTS, [KILL])[0] is Why.KILLED
    only = explained(("b", "called back: FAILED: a left it"))
    assert judge(only, EVENTS, [KILL])[0] is Why.UNEXPLAINED


def test_a_person_explains_it_but_hides_no_device_that_left_by_itself() -> None:
    orders = [
        event("assignment_rolling_back", "b", 9, "the controller orders the previous version")
    ]
    asked = explained(("b", "the controller orders the previous version"), intent="ROLL_BACK")
    assert judge(asked, orders, [])[0] is Why.PERSON
    slow = explained(("b", "called back: x"), ("a", SLOW), intent="ROLL_BACK")
    assert judge(slow, EVENTS, [KILL])[0] is Why.UNEXPLAINED


def test_a_full_disk_and_a_newer_rollout_explain_it() -> None:
    for reason in ("no room: 5 MB are missing", "the disk of this device is full: journal"):
        full = explained(("a", reason))
        assert judge(full, EVENTS, [Struck("disk full", "a", at(3))])[0] is Why.DISK_FULL
    newer = explained(why="superseded by r-2")
    assert judge(newer, [], [])[0] is Why.SUPERSEDED


def test_the_log_is_cut_by_its_times_and_keeps_what_has_none() -> None:
    lines = [
        "2026-11-24 13:59:59,900 INFO    before",
        "2026-11-24 14:00:01,000 WARNING within",
        "  its second line",
        "2026-11-24 14:00:05,000 INFO    after",
        "  of that",
    ]
    assert log_between(lines, at(0), at(4)) == lines[1:3]
