"""The picture of the ladder: a temperature trace, and what `choose_rung` makes of it."""

from dataclasses import dataclass, field
from itertools import pairwise

from agent.domain.desired import RungKind, RungSpec
from agent.domain.ladder import ChangeKind, Pressure, RungChange, begin_ladder, choose_rung
from agent.domain.policy import LadderPolicy
from tools.pictures.chart import Axes, Canvas, steps

# Seconds and °C, joined by straight lines; a trace that shows each rule once.
TRACE = (
    (0.0, 66.0), (18.0, 77.0), (21.0, 81.0), (22.0, 81.0), (25.0, 76.0), (40.0, 76.5),
    (48.0, 83.0), (56.0, 83.5), (78.0, 76.0), (100.0, 73.0), (110.0, 72.5), (115.0, 75.5),
    (121.0, 75.0), (128.0, 72.5), (160.0, 71.0), (178.0, 82.0), (184.0, 82.5), (205.0, 75.0),
    (212.0, 73.0), (285.0, 70.0), (300.0, 69.5),
)  # fmt: skip
END_S = TRACE[-1][0]
TICK_S = 0.5
RUNGS = (RungSpec("heavy", RungKind.LOCAL), RungSpec("light", RungKind.LOCAL))


def celsius(at: float) -> float:
    """The trace at a moment."""
    for (since, before), (until, after) in pairwise(TRACE):
        if since <= at <= until:
            return before + (after - before) * (at - since) / (until - since)
    return TRACE[-1][1]


@dataclass(slots=True)
class Story:
    """What the ladder did: rungs with the moment they began, moves, and spans of waiting."""

    rungs: list[tuple[float, str]] = field(default_factory=list)
    moves: list[tuple[float, RungChange]] = field(default_factory=list)
    held: list[tuple[float, float]] = field(default_factory=list)  # too hot
    calm: list[tuple[float, float]] = field(default_factory=list)  # cool enough to step up


def run_trace(policy: LadderPolicy) -> Story:
    """Ask the real ladder at every tick of the trace."""
    state = begin_ladder(RUNGS, 0.0)
    story = Story([(0.0, state.rung)])
    for tick in range(int(END_S / TICK_S) + 1):
        now = tick * TICK_S
        before = state
        choice = choose_rung(state, Pressure(temperature_c=celsius(now)), policy, RUNGS, now)
        state = choice.state
        hot = dict(before.down_since_s).get(ChangeKind.TEMPERATURE)
        still = dict(state.down_since_s).get(ChangeKind.TEMPERATURE)
        if hot is not None and still is None and before.rung == "heavy":
            story.held.append((hot, now))
        if before.up_since_s is not None and state.up_since_s is None and before.rung == "light":
            story.calm.append((before.up_since_s, now))
        if choice.change is not None:
            story.rungs.append((now, choice.change.to_rung))
            story.moves.append((now, choice.change))
    return story


def ladder_picture() -> str:
    """docs/pictures/ladder.svg."""
    policy = LadderPolicy()
    story = run_trace(policy)
    canvas = Canvas(
        900, 508, "The ladder over a temperature trace",
        "Temperature over 300 seconds and the rung that answers: down after 3 s at 80 °C or more,"
        " up after 30 s at 74 °C or less, and 60 s after a step up that did not last.",
    )  # fmt: skip
    heat = Axes(56, 872, 56, 280, END_S, 64, 86)
    _spans(canvas, heat, story)
    upper, lower = heat.y(policy.temperature_down_c), heat.y(policy.temperature_up_c)
    canvas.box(heat.left, upper, heat.right - heat.left, lower - upper, "band")
    _waits(canvas, heat, story)
    marks = [(float(s), f"{s} s") for s in range(0, int(END_S) + 1, 30)]
    heat.draw(canvas, (), [(float(c), f"{c} °C") for c in (65, 70, 75, 85)])
    for value, look, words in (
        (policy.temperature_down_c, "limit", f"temperature_down_c {policy.temperature_down_c:g}"),
        (policy.temperature_up_c, "calm", f"temperature_up_c {policy.temperature_up_c:g}"),
    ):
        canvas.line(((heat.left, heat.y(value)), (heat.right, heat.y(value))), f"{look} dash")
        place = -6 if look == "limit" else 16
        canvas.text(heat.right - 6, heat.y(value) + place, words, f"text-{look} small end")
    canvas.line([(heat.x(at), heat.y(value)) for at, value in TRACE], "a wide")
    rung = Axes(56, 872, 316, 366, END_S, 0, 1)
    rung.draw(canvas, marks, ((0.15, "light"), (0.85, "heavy")))
    level = {"light": 0.15, "heavy": 0.85}
    corners = steps([(at, level[name]) for at, name in story.rungs], END_S)
    canvas.line([(rung.x(at), rung.y(value)) for at, value in corners], "b wide")
    canvas.text(16, 30, "Temperature, and the rung that answers", "bold title")
    _tell(canvas, rung, story, policy)
    return canvas.svg()


def _spans(canvas: Canvas, heat: Axes, story: Story) -> None:
    for since, until in story.held:
        canvas.box(heat.x(since), heat.top, heat.x(until) - heat.x(since), 224, "hold")
    for since, until in story.calm:
        canvas.box(heat.x(since), heat.top, heat.x(until) - heat.x(since), 224, "rest")


def _waits(canvas: Canvas, heat: Axes, story: Story) -> None:
    for since, until in story.held:
        words, middle = f"{until - since:g} s", heat.x((since + until) / 2)
        canvas.text(middle, heat.top - 6, words, "text-limit small middle")
    for since, until in story.calm:
        words, middle = f"{until - since:g} s", heat.x((since + until) / 2)
        canvas.text(middle, heat.top - 6, words, "text-calm small middle")


def _tell(canvas: Canvas, rung: Axes, story: Story, policy: LadderPolicy) -> None:
    for number, (at, change) in enumerate(story.moves, 1):
        canvas.badge(rung.x(at), rung.y(0.5), str(number))
        y = 408 + 20 * (number - 1)
        canvas.badge(66, y - 4, str(number))
        words = f"{at:g} s  {change.from_rung} → {change.to_rung}: {change.reason}"
        canvas.text(84, y, words, "small")
    y = 408 + 20 * len(story.moves)
    canvas.text(
        56, y + 4,
        f"red: at or over {policy.temperature_down_c:g} °C, a step down after"
        f" {policy.dwell_down_s:g} s · green: at or below {policy.temperature_up_c:g} °C, a step up"
        f" after {policy.dwell_up_s:g} s · between: nothing moves",
        "quiet small",
    )  # fmt: skip
