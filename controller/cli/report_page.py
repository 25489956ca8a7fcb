"""The page of ``fleetctl build report --html``: one file, no script, nothing fetched.

Everything that came from the controller is escaped: reasons and names are other people's words.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from controller.cli import units
from controller.cli.build_figures import (
    accuracy_cell,
    agreement_cells,
    change_cells,
    device_text,
    eager_cells,
    override_text,
    p50_cell,
    quality_column,
    quality_of,
)
from controller.cli.report_classes import LOSES, class_legend, class_lines
from lighterman.v1 import fleet_pb2

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 70, 70, 60, 75
CLASSES_MOST = 20  # of a build
LARGEST = 30.0  # radius of the largest build
COLOURS = ("#1560bd", "#c2410c", "#1a7f4b", "#7a3db8", "#8a6d00")
STYLE = """\
body{font:15px/1.45 system-ui,sans-serif;color:#1f2630;background:#fff}
body{margin:2rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2rem}
div{overflow-x:auto}th{width:1%;white-space:nowrap}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{padding:.25rem .5rem;border-bottom:1px solid #e4e8ed;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}
code{font-size:.8rem;word-break:break-all}.no{color:#b42318}.quiet{color:#5b6675}
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#1f2630}
"""


def report_page(
    ref: str,
    builds: Sequence[fleet_pb2.Build],
    best: frozenset[int],
    labels: Sequence[str] = (),
) -> str:
    """The whole page; ``best`` are the places of the builds on a front, ``labels`` name classes."""
    profiles = list(dict.fromkeys(item.profile for item in builds))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(ref)}: builds</title>',
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>Builds of {escape(ref)}</h1>",
        '<p class="quiet">Accuracy is agreement with the source where rows have no labels. Ranges'
        " are 95 % intervals. A ring marks builds that no other usable one of the profile beats in"
        " accuracy, p95 and size.</p>",
    ]
    for profile in profiles:
        here = [(place, item) for place, item in enumerate(builds) if item.profile == profile]
        parts += [
            f"<h2>{escape(profile)}</h2>",
            *_plot(here, best),
            *_table(here, best),
        ]
    parts += _classes(builds, labels)
    parts += ["<h2>Where they come from</h2>", *_lineage(builds), "</body></html>"]
    return "\n".join(parts) + "\n"


def _quality(figures: fleet_pb2.BuildFigures) -> fleet_pb2.Interval | None:
    found = quality_of(figures)
    if found is not None:
        return found.value
    return figures.agreement_pct if figures.HasField("agreement_pct") else None


def _plot(here: Sequence[tuple[int, fleet_pb2.Build]], best: frozenset[int]) -> Iterator[str]:
    """p95 to the right (logarithmic), accuracy upwards, size as area."""
    shown = [
        (place, item, found)
        for place, item in here
        if item.figures.p95_ms and (found := _quality(item.figures)) is not None
    ]
    if not shown:
        yield "<p>Nothing to draw: no build has both an accuracy and a latency.</p>"
        return
    times = [item.figures.p95_ms for _, item, _ in shown]
    low_ms, high_ms = min(times) / 1.5, max(times) * 1.5
    bottom = max(0.0, min(found.low for _, _, found in shown) - 1)
    top = min(100.0, max(found.high for _, _, found in shown) + 1)
    largest = max(item.size_bytes for _, item, _ in shown) or 1
    variants = list(dict.fromkeys(item.variant for _, item in here))

    def x(time_ms: float) -> float:
        share = math.log(time_ms / low_ms) / math.log(high_ms / low_ms)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(share_pct: float) -> float:
        share = (share_pct - bottom) / max(1e-9, top - bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="accuracy against p95">'
    yield from _axes(x, y, (low_ms, high_ms), (bottom, top))
    by_size = sorted(shown, key=lambda one: -one[1].size_bytes)
    for number, (place, item, found) in enumerate(by_size):
        colour = COLOURS[variants.index(item.variant) % len(COLOURS)]
        at, up = x(item.figures.p95_ms), y(found.value)
        radius = max(3.0, LARGEST * math.sqrt(item.size_bytes / largest))
        usable = item.state in ("passed", "overridden")
        ring = "3" if place in best else "1"
        dashes = "" if usable else ' stroke-dasharray="4 3"'
        yield (
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(found.low):.1f}" y2="{y(found.high):.1f}"'
            f' stroke="{colour}" stroke-opacity=".5"/>'
            f'<circle cx="{at:.1f}" cy="{up:.1f}" r="{radius:.1f}" fill="{colour}"'
            f' fill-opacity="{0.35 if usable else 0}" stroke="{colour}"'
            f' stroke-width="{ring}"{dashes}>'
            f"<title>{escape(_title(item))}</title></circle>"
            # Above and below in turn: neighbours are often of one accuracy.
            f'<text x="{at:.1f}" y="{up + (-radius - 6, radius + 15)[number % 2]:.1f}"'
            ' text-anchor="middle">'
            f"{escape(f'{item.variant} {item.recipe}')}</text>"
        )
    yield "</svg>"


def _title(item: fleet_pb2.Build) -> str:
    p95 = units.ms(item.figures.p95_ms)
    return (
        f"{item.variant} {item.recipe}: {item.state}, p95 {p95} ms, {units.size(item.size_bytes)}"
    )


def _axes(
    x: Callable[[float], float],
    y: Callable[[float], float],
    times: tuple[float, float],
    shares: tuple[float, float],
) -> Iterator[str]:
    """Lines and figures at round numbers."""
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    power = math.floor(math.log10(times[0]))
    ticks = [step * 10.0 ** (power + more) for more in range(8) for step in (1, 2, 5)]
    for time_ms in (one for one in ticks if times[0] <= one <= times[1]):
        at = f"{x(time_ms):.1f}"
        yield f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{floor}" stroke="#e4e8ed"/>'
        yield f'<text x="{at}" y="{floor + 18}" text-anchor="middle">{time_ms:g}</text>'
    span = shares[1] - shares[0]
    step = next((one for one in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if span / one <= 8), 25)
    for number in range(math.ceil(shares[0] / step), math.floor(shares[1] / step) + 1):
        up = f"{y(number * step):.1f}"
        yield f'<line x1="{LEFT}" x2="{right}" y1="{up}" y2="{up}" stroke="#e4e8ed"/>'
        yield f'<text x="{LEFT - 8}" y="{up}" dy="4" text-anchor="end">{number * step:g}</text>'
    yield f'<path d="M{LEFT} {TOP}V{floor}H{right}" stroke="#8a94a3" fill="none"/>'
    middle = (LEFT + right) / 2
    yield f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">p95, ms</text>'
    yield f'<text x="16" y="{HEIGHT / 2:.0f}" transform="rotate(-90 16 {HEIGHT / 2:.0f})"'
    yield ' text-anchor="middle">accuracy, %</text>'


def _table(here: Sequence[tuple[int, fleet_pb2.Build]], best: frozenset[int]) -> Iterator[str]:
    heads = ("variant", "recipe", "state", "size", "p50 ms", "p95 ms", "calls", "fp32 p50 ms")
    column = quality_column([item for _, item in here]).replace("acc ", "accuracy ")
    more = ("eager p50 ms", column, "change, points", "agrees %", "rows", "memory")
    yield (
        "<div><table><tr>"
        + "".join(
            f'<th class="{"" if place < 3 else "n"}">{name}</th>'
            for place, name in enumerate((*heads, *more))
        )
        + "</tr>"
    )
    for place, item in here:
        figures = item.figures
        known = bool(figures.latency_n)
        change, rows = change_cells(figures)
        agrees, agreed_rows = agreement_cells(figures)
        cells = (
            units.size(item.size_bytes) if item.size_bytes else units.UNKNOWN,
            p50_cell(figures) if known else units.UNKNOWN,
            units.ms(figures.p95_ms) if known else units.UNKNOWN,
            f"{figures.latency_n:,}" if known else units.UNKNOWN,
            units.ms(figures.fp32_p50_ms) if figures.fp32_p50_ms else units.UNKNOWN,
            eager_cells(figures)[0],
            accuracy_cell(figures),
            change,
            agrees,
            rows if rows != units.UNKNOWN else agreed_rows,
            units.size(figures.peak_rss_bytes) if figures.peak_rss_bytes else units.UNKNOWN,
        )
        star = " ◦" if place in best else ""
        names = (item.variant, item.recipe + star, item.state)
        yield (
            "<tr>"
            + "".join(f"<td>{escape(text)}</td>" for text in names)
            + "".join(f'<td class="n">{escape(text)}</td>' for text in cells)
            + "</tr>"
        )
        refused = [one.text for one in item.findings if not one.ok] or (
            [item.reason] if item.state in ("refused", "failed") and item.reason else []
        )
        said = [*refused, *([override_text(item)] if item.override_by else [])]
        if said:
            yield f'<tr><td colspan="14" class="no">{escape("; ".join(said))}</td></tr>'
    yield "</table></div>"


def _classes(builds: Sequence[fleet_pb2.Build], labels: Sequence[str]) -> Iterator[str]:
    """Which classes lose most by each build."""
    lines = class_lines(builds, labels, CLASSES_MOST)
    if not lines:
        return
    yield "<h2>Classes that lose most</h2>"
    yield f'<p class="quiet">{escape(class_legend(builds))}.</p><div><table><tr>'
    heads = ("recipe", "class", "source %", "build %", "change, points", "rows", "")
    yield "".join(
        f'<th class="{"n" if 1 < at < 6 else ""}">{one}</th>' for at, one in enumerate(heads)
    )
    yield "</tr>"
    for one in lines:
        cells = (one.source, one.value, one.change, one.n)
        yield (
            f"<tr><td>{escape(one.build)}</td><td>{escape(one.name)}</td>"
            + "".join(f'<td class="n">{escape(text)}</td>' for text in cells)
            + f'<td class="{"no" if one.word == LOSES else "quiet"}">{one.word}</td></tr>'
        )
    yield "</table></div>"


def _lineage(builds: Sequence[fleet_pb2.Build]) -> Iterator[str]:
    """Each build once, however many profiles share it."""
    seen: set[str] = set()
    for item in builds:
        if not item.digest or item.build_id in seen:
            continue
        seen.add(item.build_id)
        rows = {
            "source": item.source_digest,
            "dataset": f"{item.dataset or 'none'} {item.dataset_digest}".strip(),
            "recipe": item.recipe_spec_json,
            "build": f"{item.build_id} {item.digest}",
            "target": item.target_key,
            "measured on": item.figures.measured_on,
            "on devices": "; ".join(map(device_text, item.measured)),
            "made by": f"{item.worker}, job {item.job_id}" if item.job_id else item.worker,
            "tools": ", ".join(
                f"{name} {item.tool_versions[name]}" for name in sorted(item.tool_versions)
            ),
            "passes": "; ".join(
                one.text for one in item.findings if one.text.startswith(("pruned ", "trained "))
            ),
        }
        yield f"<h3>{escape(f'{item.variant} {item.recipe}')}</h3><table>"
        for name, text in rows.items():
            if text:
                yield f"<tr><th>{name}</th><td><code>{escape(text)}</code></td></tr>"
        yield "</table>"
