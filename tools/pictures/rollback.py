"""The picture of the rollback rule: inferences, the row that they make, and what the rule says."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from agent.domain.policy import Policy, ProbationPolicy
from agent.domain.probation import (
    Commit,
    LadderPosition,
    RollBack,
    RowState,
    ServiceSample,
    StepDown,
    Trial,
    Verdict,
    Wait,
    begin,
    judge,
    observe,
    on_rung_change,
)
from tools.pictures.chart import Axes, Canvas, steps

# A smaller probation than the default, so that the whole of it fits into the picture.
POLICY = replace(Policy(), probation=ProbationPolicy(min_inferences=20, min_s=6.0, max_s=60.0))
END_S = 14.5
TOP_MS = 200.0


@dataclass(frozen=True, slots=True)
class Given:
    """One inference as the picture gives it: when it began, how long, and under pressure or not."""

    at_s: float
    took_ms: float
    pressured: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One inference and what the rule made of it."""

    given: Given
    row: int
    counted: bool
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Panel:
    """One story: its inferences, and where the device stands."""

    title: str
    trial: Trial
    given: tuple[Given, ...]


def _even(since: float, every: float, took_ms: Sequence[float]) -> tuple[Given, ...]:
    return tuple(Given(round(since + every * i, 2), ms) for i, ms in enumerate(took_ms))


def _pressed(given: tuple[Given, ...]) -> tuple[Given, ...]:
    return tuple(replace(one, pressured=True) for one in given)


PANELS = (
    Panel(
        "In probation: five slow ones in a row, and the device goes back",
        Trial.PROBATION,
        (
            *_even(0.4, 0.4, (150, 62, 70, 58, 131, 142, 120, 138, 66)),
            *_even(6.6, 0.4, (155, 71, 124, 118)),
            *_pressed(_even(8.4, 0.4, (160, 172, 149, 157))),
            *_even(10.4, 0.4, (131, 140, 122)),
        ),
    ),
    Panel(
        "In probation: enough inferences and time without such a row, and it is committed",
        Trial.PROBATION,
        _even(0.4, 0.4, (150, *(62, 71, 58, 66, 118, 131, 64, 69) * 3)),
    ),
    Panel(
        "Committed: first a step down, and back only from the lightest local rung",
        Trial.COMMITTED,
        (
            *_even(0.4, 0.4, (150, 62, 70, 121, 133, 128, 140, 126)),
            *_even(4.0, 0.4, (31, 28, 35, 30, 27, 33, 29, 34, 30, 28)),
            *_even(8.4, 0.4, (112, 118, 131, 125, 140)),
        ),
    ),
)


def follow(panel: Panel) -> list[Seen]:
    """Give the real rule one inference after the other, until it goes back or commits."""
    state: RowState = begin(0.0)
    position = LadderPosition.LOCAL
    seen: list[Seen] = []
    for one in panel.given:
        service_s = one.took_ms / 1000
        sample = ServiceSample(one.at_s + service_s, service_s, pressured=one.pressured)
        before = state
        state = observe(state, sample, POLICY)
        excused = state.row == before.row and state.counted == before.counted
        verdict = judge(state, panel.trial, position, True, POLICY, sample.at_s)
        seen.append(Seen(one, len(state.row), not excused, verdict))
        match verdict:
            case RollBack() | Commit():
                return seen
            case StepDown():
                state, position = on_rung_change(state), LadderPosition.LOWEST_LOCAL
            case Wait():
                pass
    return seen


def said(verdict: Verdict, trial: Trial) -> str:
    """The verdict in the picture's words, with the rule's own reason."""
    match verdict:
        case RollBack():
            return f"roll back: {verdict.reason}"
        case StepDown():
            return f"step down: {verdict.reason}"
        case Commit():
            return f"commit: {verdict.reason}"
        case Wait():
            return f"{trial.value}: {verdict.reason}"


def rollback_picture() -> str:
    """docs/pictures/rollback.svg."""
    canvas = Canvas(
        900, 858, "The rollback rule over single inferences",
        f"Three rows of inferences against the threshold of {POLICY.slow_threshold_s * 1000:g} ms:"
        " which of them count, how long the row of slow ones is, and what the rule decides.",
    )  # fmt: skip
    canvas.text(16, 30, "Service times, the row of slow ones, and what the rule says", "bold title")
    for number, panel in enumerate(PANELS):
        _panel(canvas, panel, 62 + 256 * number)
    y = 838.0
    x = 56.0
    for look, words, width in (
        ("dot-a", "within the threshold", 170),
        ("dot-b", "over it", 84),
        ("dot-off", "neither counts nor breaks the row: after an idle gap, or under pressure", 0),
    ):
        canvas.dot(x, y - 4, look, 4.5)
        canvas.text(x + 10, y, words, "quiet small")
        x += width
    return canvas.svg()


def _panel(canvas: Canvas, panel: Panel, top: float) -> None:
    seen = follow(panel)
    canvas.text(16, top, panel.title, "bold")
    times = Axes(56, 872, top + 14, top + 134, END_S, 0, TOP_MS)
    _excuses(canvas, times, seen)
    times.draw(canvas, (), ((0, "0 ms"), (50, "50 ms"), (150, "150 ms")))
    limit = POLICY.slow_threshold_s * 1000
    canvas.line(((times.left, times.y(limit)), (times.right, times.y(limit))), "limit dash")
    canvas.text(times.right - 6, times.y(limit) - 6, f"slow_threshold_ms {limit:g}",
                "text-limit small end")  # fmt: skip
    row = Axes(56, 872, top + 150, top + 186, END_S, 0, POLICY.slow_count)
    row.draw(canvas, [(float(s), f"{s} s") for s in range(0, int(END_S) + 1)],
             ((0, "row 0"), (POLICY.slow_count, str(POLICY.slow_count))))  # fmt: skip
    corners = [(0.0, 0.0)]
    for one in seen:
        at = one.given.at_s
        corners.append((at, float(one.row)))
        if isinstance(one.verdict, StepDown):
            corners.append((at + 0.2, 0.0))
        _dot(canvas, times, one, limit)
    last = seen[-1].given.at_s
    path = [(row.x(at), row.y(value)) for at, value in steps(corners, last + 0.2)]
    canvas.line(path, "b wide")
    _tell(canvas, panel, seen, times, row)


def _dot(canvas: Canvas, times: Axes, one: Seen, limit: float) -> None:
    look = "dot-b" if one.given.took_ms > limit else "dot-a"
    canvas.dot(times.x(one.given.at_s), times.y(one.given.took_ms),
               look if one.counted else "dot-off", 4.5)  # fmt: skip


def _excuses(canvas: Canvas, times: Axes, seen: Sequence[Seen]) -> None:
    """Grey where the device was under pressure, or idle for longer than the gap."""
    pressed = [one.given.at_s for one in seen if one.given.pressured]
    if pressed:
        _mark(canvas, times, pressed[0] - 0.2, pressed[-1] + 0.2, "pressure")
    for before, after in pairwise(seen):
        ended = before.given.at_s + before.given.took_ms / 1000
        if after.given.at_s - ended > POLICY.idle_gap_s:
            words = f"idle for {after.given.at_s - ended:.1f} s"
            _mark(canvas, times, ended, after.given.at_s, words)


def _mark(canvas: Canvas, times: Axes, since: float, until: float, words: str) -> None:
    width = times.x(until) - times.x(since)
    canvas.box(times.x(since), times.top, width, times.bottom - times.top, "mark")
    canvas.text(times.x((since + until) / 2), times.bottom - 6, words, "quiet small middle")


def _tell(canvas: Canvas, panel: Panel, seen: Sequence[Seen], times: Axes, row: Axes) -> None:
    found = [one for one in seen if not isinstance(one.verdict, Wait)]
    for number, one in enumerate(found, 1):
        at = one.given.at_s + 0.2
        look = "calm" if isinstance(one.verdict, Commit) else "limit"
        canvas.line(((times.x(at), times.top), (times.x(at), row.bottom)), f"{look} dash")
        canvas.badge(times.x(at), times.top + 2, str(number))
        y = row.bottom + 36 + 20 * (number - 1)
        canvas.badge(66, y - 4, str(number))
        canvas.text(84, y, said(one.verdict, panel.trial), "small")
