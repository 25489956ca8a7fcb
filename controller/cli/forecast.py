"""The forecast of ``rollout plan``: asked for, shown as text, drawn as SVG. Forecasts nothing."""

import json
from pathlib import Path
from xml.sax.saxutils import escape

import click
import yaml

from controller.cli import units
from controller.cli.session import Session
from lighterman.v1 import fleet_pb2

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 52, 52
_STYLE = """\
.ground{fill:#ffffff;stroke:#d5dae0}
text{fill:#1f2630;font:12px "DejaVu Sans",Verdana,Arial,sans-serif}
.title{font-size:15px;font-weight:bold}.quiet{fill:#5b6675}.end{text-anchor:end}
.middle{text-anchor:middle}.axis{stroke:#8a94a3;fill:none}.grid{stroke:#e4e8ed}
.cap{stroke:#b42318;fill:none;stroke-dasharray:6 4;stroke-width:1.5}
.half{stroke:#1560bd;fill:none;stroke-width:2.5}.most{stroke:#1560bd;fill:none;opacity:.45}
@media (prefers-color-scheme:dark){.ground{fill:#12171e;stroke:#343d49}text{fill:#e4e9f0}
.quiet{fill:#9fabba}.grid{stroke:#242c36}.cap{stroke:#ff8a80}.half,.most{stroke:#6cb0ff}}"""


def read_fleet(file: Path) -> str:
    """A described fleet as JSON; a usage error where the file is no YAML."""
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"{file}: {error}") from error
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{file}: {error}") from error


def show_forecast(session: Session, found: fleet_pb2.Forecast) -> None:
    """The figures, for people."""
    bad = f", a version that fails on {found.fails_on_pct:g} %" if found.fails_on_pct else ""
    session.say()
    session.say(f"forecast ({found.runs} runs{bad}): {found.fleet}")
    rows = [
        ["takes", *_times(found.duration_s if found.HasField("duration_s") else None)],
        ["sends", units.size(int(found.bytes.p50)), units.size(int(found.bytes.p90))],
        ["reaches, devices", f"{found.exposed.p50:,.0f}", f"{found.exposed.p90:,.0f}"],
    ]
    if found.fails_on_pct:
        rows.append(["fails on, devices", f"{found.hit.p50:,.0f}", f"{found.hit.p90:,.0f}"])
    for wave in found.waves:
        passed = _times(wave.passed_s if wave.HasField("passed_s") else None)
        rows.append([f"wave {wave.number} passed (cap {wave.cumulative:,})", *passed])
    session.table(["", ">half of the runs", ">nine of ten"], rows)
    hours = list(found.reached_per_hour)
    shown = ", ".join(f"{count:,}" for count in hours[:12])
    session.say(f"new devices in each hour: {shown}" + (", ..." if len(hours) > 12 else ""))
    ends = ", ".join(f"{name} {count}" for name, count in sorted(found.endings.items()))
    session.say(f"runs ended: {ends}")
    for note in found.notes:
        session.say(f"note: {note}")


def _times(span: fleet_pb2.Span | None) -> list[str]:
    return [units.UNKNOWN] * 2 if span is None else [took(span.p50), took(span.p90)]


def took(seconds: float) -> str:
    """``2 h 10 min``, ``45 s``, ``3 d 4 h``: the two largest units."""
    whole = round(seconds)
    for unit, name, part, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def picture(found: fleet_pb2.Forecast, title: str) -> str:
    """Exposed devices over time under their cap, as SVG text."""
    last_s = max((one.at_s for one in found.points), default=0.0) or 1.0
    most = max([1.0, *(max(one.cap, one.exposed.p90) for one in found.points)])

    def x(at_s: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at_s / last_s

    def y(devices: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * devices / most

    parts = [f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>']
    parts += _axes(last_s, most)
    for look, values in (
        ("cap", [(one.at_s, one.cap) for one in found.points]),
        ("most", [(one.at_s, one.exposed.p90) for one in found.points]),
        ("half", [(one.at_s, one.exposed.p50) for one in found.points]),
    ):
        corners: list[str] = []
        before = 0.0
        for at_s, value in values:
            corners += [f"{x(at_s):.1f},{y(before):.1f}", f"{x(at_s):.1f},{y(value):.1f}"]
            before = value
        parts.append(f'<polyline class="{look}" points="{" ".join(corners)}"/>')
    legend = (("half", "exposed, half of the runs"), ("most", "nine of ten"), ("cap", "cap"))
    at = float(LEFT)
    for look, words in legend:
        parts.append(f'<polyline class="{look}" points="{at:.0f},38 {at + 22:.0f},38"/>')
        parts.append(f'<text class="quiet" x="{at + 28:.0f}" y="42">{words}</text>')
        at += 46 + 7 * len(words)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _axes(last_s: float, most: float) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for number in range(5):
        at_x = LEFT + (right - LEFT) * number / 4
        at_y = bottom - (bottom - TOP) * number / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at_y}" y2="{at_y}"/>')
        parts.append(
            f'<text class="quiet end" x="{LEFT - 8}" y="{at_y + 4}">{most * number / 4:,.0f}</text>'
        )
        look = "quiet end" if number == 4 else "quiet middle" if number else "quiet"
        parts.append(
            f'<text class="{look}" x="{at_x}" y="{bottom + 20}">{took(last_s * number / 4)}</text>'
        )
    parts.append(f'<polyline class="axis" points="{LEFT},{TOP} {LEFT},{bottom} {right},{bottom}"/>')
    return parts
