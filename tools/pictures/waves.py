"""The picture of the waves: who is exposed when, as `plan` and `judge` decide over 200 devices."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from controller.domain.evidence import Rules, Side, Soak, Trouble, WaveFacts
from controller.domain.health import judge
from controller.domain.histogram import histogram_of
from controller.domain.planner import Facts, plan
from controller.domain.rollout import (
    LIVE,
    OPEN,
    TERMINAL,
    UNDERWAY,
    AssignmentState,
    Intent,
    Phase,
    Verdict,
)
from controller.domain.wave import parse_waves
from tools.pictures.chart import Axes, Canvas, steps

START = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
DEVICES = 200
WAVES = ("2", "10%", "50%", "100%")
RULES = Rules(soak_s=600, min_samples=200, deadline_s=3600, slow_threshold_ms=100,
              p95_budget_ms=100)  # fmt: skip
TICK_S = 2
LONGEST_S = 7200
# What a device needs: the download, probation at three inferences a second, the way back.
DOWNLOAD_S, SPREAD_S, PROBATION_S, RETURN_S, PER_SECOND = 20, 40, 70, 14, 3
# Every such device is away at first.
AWAY_EVERY, AWAY_FIRST, BACK_AT_S = 20, 3, 2400
# Every such device runs the bad version too slowly; the first of them is not in the canary.
BAD_EVERY, BAD_FIRST, BAD_AFTER_S = 20, 9, 8
SLOW_S = (0.131, 0.118, 0.124, 0.140, 0.122)

_A = AssignmentState


@dataclass(slots=True)
class Device:
    """One device of the picture."""

    name: str
    bad: bool = False
    state: AssignmentState = _A.PLANNED
    wave: int = 0
    offered_s: int = 0
    left_s: int = 0
    inferences: int = 0
    away: bool = False
    needs_s: int = 0  # from the offer to the first answer


@dataclass(slots=True)
class Run:
    """One rollout: its course as (seconds, devices), and where it ended."""

    devices: list[Device]
    exposed: list[tuple[float, float]] = field(default_factory=list)
    running: list[tuple[float, float]] = field(default_factory=list)  # the new version answers
    caps: list[tuple[float, float]] = field(default_factory=list)
    phase: Phase = Phase.PENDING
    reason: str = ""
    failed_because: str = ""
    ended_s: int = 0
    wave: int = 0
    opened_s: int = 0
    soak: Soak = field(default_factory=Soak)

    def of(self, wave: int) -> list[Device]:
        """The devices that were given the version in that wave."""
        return [device for device in self.devices if device.wave == wave]


def run_rollout(fails: bool) -> Run:
    """Bring a version to all devices by the real planner and the real judge."""
    run = Run([_device(number, fails) for number in range(1, DEVICES + 1)])
    caps = tuple(wave.cumulative for wave in parse_waves(WAVES, DEVICES).waves)
    for now_s in range(0, LONGEST_S, TICK_S):
        for device in run.devices:
            _live(device, now_s)
        _decide(run, caps, now_s)
        run.exposed.append((now_s, sum(device.wave > 0 for device in run.devices)))
        run.running.append((now_s, sum(device.state in LIVE for device in run.devices)))
        if run.phase in TERMINAL:
            run.ended_s = now_s
            return run
    raise RuntimeError(f"the rollout of the picture did not end within {LONGEST_S} s")


def _device(number: int, fails: bool) -> Device:
    return Device(
        f"pi-{number:03}",
        bad=fails and number % BAD_EVERY == BAD_FIRST,
        away=number % AWAY_EVERY == AWAY_FIRST,
        needs_s=DOWNLOAD_S + number * 7 % SPREAD_S,
    )


def _live(device: Device, now_s: int) -> None:
    """What happens on the device by itself."""
    device.away = device.away and now_s < BACK_AT_S
    age = now_s - device.offered_s - device.needs_s
    match device.state:
        case _A.OFFERED if age >= 0:
            device.state = _A.PROBATION
        case _A.PROBATION if device.bad and age >= BAD_AFTER_S:
            device.state = _A.ROLLED_BACK
        case _A.PROBATION if age >= PROBATION_S:
            device.state = _A.COMMITTED
        case _A.ROLLING_BACK if now_s - device.left_s >= RETURN_S:
            device.state = _A.ROLLED_BACK
        case _:
            pass
    if device.state in LIVE:
        device.inferences += PER_SECOND * TICK_S


def _decide(run: Run, caps: tuple[int, ...], now_s: int) -> None:
    """One look of the controller."""
    now = START + timedelta(seconds=now_s)
    verdict, why = Verdict.PENDING, ""
    if run.wave and run.phase is Phase.PROGRESSING:
        found = judge(_wave_facts(run, now), RULES, now)
        verdict, why, run.soak = found.verdict, found.reason, found.soak
    counts = Counter(device.state for device in run.devices)
    facts = Facts(
        rollout_id="r-1", phase=run.phase, phase_reason=run.reason, intent=Intent.RUN,
        intent_by="ana", intent_at=START, intent_reason="", caps=caps, current_wave=run.wave,
        counts=counts, exposed=sum(device.wave > 0 for device in run.devices),
        wave_live=sum(d.state in LIVE | UNDERWAY for d in run.of(run.wave)) if run.wave else 0,
        candidates=tuple(d.name for d in run.devices if d.state is _A.PLANNED and not d.away),
        verdict=verdict, verdict_reason=why,
    )  # fmt: skip
    decided = plan(facts, now)
    if decided.current_wave != run.wave:
        run.wave, run.opened_s, run.soak = decided.current_wave, now_s, Soak()
        run.caps.append((now_s, caps[run.wave - 1]))
    if decided.phase is Phase.ROLLING_BACK and run.phase is not Phase.ROLLING_BACK:
        run.failed_because = decided.reason
    run.phase, run.reason = decided.phase, decided.reason
    for device in run.devices:
        if device.state in decided.withdraw:
            device.state = _A.WITHDRAWN
        elif device.state in decided.roll_back:
            device.state, device.left_s = _A.ROLLING_BACK, now_s
        elif device.name in decided.take:
            device.state, device.wave, device.offered_s = _A.OFFERED, run.wave, now_s


def _wave_facts(run: Run, now: datetime) -> WaveFacts:
    mine = run.of(run.wave)
    committed = [device for device in mine if device.state is _A.COMMITTED]
    samples = sum(device.inferences for device in mine)
    return WaveFacts(
        opened_at=START + timedelta(seconds=run.opened_s),
        exposed=len(mine),
        in_flight=sum(device.state in OPEN for device in mine),
        committed=len(committed),
        offline=0,
        rolled_back=tuple(
            Trouble(device.name, "slow", SLOW_S, 0.2)
            for device in run.devices
            if device.state is _A.ROLLED_BACK
        ),
        after=Side(histogram_of([0.038] * min(samples, 1000))),
        samples=samples,
        short=tuple(d.name for d in committed if d.inferences < RULES.min_samples),
        last_evidence_at=now if samples else None,
        last_change_at=None,
        soak=run.soak,
    )


def waves_picture() -> str:
    """docs/pictures/waves.svg."""
    good, bad = run_rollout(fails=False), run_rollout(fails=True)
    canvas = Canvas(
        900, 590, "Devices exposed over time, wave by wave",
        f"{DEVICES} devices in waves of {', '.join(WAVES)}: a good version reaches all of them"
        f" in {good.ended_s / 60:.0f} minutes; one that is slow on every {BAD_EVERY}th device is"
        " stopped in the second wave and taken back.",
    )  # fmt: skip
    canvas.text(16, 30, f"{DEVICES} devices, --waves {','.join(WAVES)} --soak 10m", "bold title")
    canvas.text(16, 62, f"A good version: {good.phase} after {good.ended_s / 60:.0f} min", "bold")
    _panel(canvas, good, Axes(56, 872, 76, 246, 60 * 60, 0, 210), 10, (0, 50, 100, 150, 200))
    canvas.text(
        16, 302,
        f"One that is slow on every {BAD_EVERY}th device: {bad.phase} after"
        f" {bad.ended_s / 60:.0f} min (on axes of its own)",
        "bold",
    )  # fmt: skip
    _panel(canvas, bad, Axes(56, 872, 316, 486, 15 * 60, 0, 24), 1, (0, 5, 10, 15, 20))
    exposed = int(bad.exposed[-1][1])
    canvas.text(56, 526, bad.failed_because, "small text-limit")
    canvas.text(56, 544, f"{exposed} devices were given it and are back,"
                f" {DEVICES - exposed} never saw it", "small text-limit")  # fmt: skip
    _legend(canvas, 572)
    return canvas.svg()


def _panel(canvas: Canvas, run: Run, axes: Axes, every_min: int, marks: tuple[float, ...]) -> None:
    end = float(run.ended_s)
    for (since, cap), until in zip(run.caps, [*(at for at, _ in run.caps[1:]), end], strict=True):
        canvas.box(axes.x(since), axes.y(cap), axes.x(until) - axes.x(since),
                   axes.bottom - axes.y(cap), "band")  # fmt: skip
    minutes = range(0, int(axes.x_max / 60) + 1, every_min)
    axes.draw(canvas, [(m * 60, f"{m} min") for m in minutes], [(n, f"{n:g}") for n in marks])
    for points, look in ((run.exposed, "b wide"), (run.running, "a wide dash")):
        line = [(axes.x(at), axes.y(value)) for at, value in steps(_changes(points), end)]
        canvas.line(line, look)
    for number, (since, cap) in enumerate(run.caps, 1):
        words = f"wave {number}: {cap:g}"
        if axes.x(end) - axes.x(since) > 90:
            canvas.text(axes.x(since) + 6, axes.y(cap) - 6, words, "quiet small")
        else:  # no room before the end
            canvas.text(axes.x(since) - 6, axes.y(cap) + 4, words, "quiet small end")
    canvas.line(((axes.x(end), axes.top), (axes.x(end), axes.bottom)), "axis dash")
    canvas.text(axes.x(end) + 6, axes.top + 12, run.phase, "small")


def _legend(canvas: Canvas, y: float) -> None:
    canvas.box(56, y - 10, 24, 12, "band")
    canvas.text(88, y, "cap of the open wave", "quiet small")
    canvas.line(((262, y - 4), (286, y - 4)), "b wide")
    canvas.text(294, y, "exposed: were given the version", "quiet small")
    canvas.line(((540, y - 4), (564, y - 4)), "a wide dash")
    canvas.text(572, y, "answer with it now", "quiet small")


def _changes(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Only the points where something changed: the same line with fewer corners."""
    kept = points[:1]
    for at, value in points[1:]:
        if value != kept[-1][1]:
            kept.append((at, value))
    return kept
