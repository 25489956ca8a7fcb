"""Figures of builds as people read them: every one with its interval and n. Asks nobody."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from controller.cli import units
from lighterman.v1 import fleet_pb2

FINAL = ("passed", "refused", "failed", "overridden")
USABLE = ("passed", "overridden")
# `onnxruntime.capi….Fail: …`, `RuntimeError: …`: what a library's traceback ends with.
_ERROR = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Fail|Interrupt)\b")


def share_text(found: fleet_pb2.Interval) -> str:
    """``98.2 % (97.0–99.1), n=400``."""
    return f"{found.value:.1f} % ({found.low:.1f}–{found.high:.1f}), n={found.n:,}"


def change_text(found: fleet_pb2.Interval) -> str:
    """``−0.3 points (−1.3 to +0.7), n=2,000``."""
    low, high = units.signed(found.low), units.signed(found.high)
    return f"{units.signed(found.value)} points ({low} to {high}), n={found.n:,}"


@dataclass(frozen=True, slots=True)
class Quality:
    """The first figure that builds of a task are judged by: its name, value and what it changes."""

    name: str
    value: fleet_pb2.Interval
    change: fleet_pb2.Interval | None


def quality_of(figures: fleet_pb2.BuildFigures) -> Quality | None:
    """Accuracy of a classifier, F1 of a detector, else the version's own metric; None: no truth."""
    if figures.HasField("accuracy_pct"):
        known = figures.HasField("accuracy_delta_pts")
        change = figures.accuracy_delta_pts if known else None
        return Quality("acc", figures.accuracy_pct, change)
    for one in figures.metrics:
        return Quality(metric_name(one.name), one.value_pct, one.delta_pts)
    return None


def quality_column(builds: Sequence[fleet_pb2.Build]) -> str:
    """What to call the column of it: ``acc %``, ``F1 %``, or ``quality %`` where they differ."""
    found = (quality_of(item.figures) for item in builds)
    names = {one.name for one in found if one is not None}
    return f"{names.pop() if len(names) == 1 else 'quality' if names else 'acc'} %"


def metric_name(name: str) -> str:
    """As people write it."""
    return {"f1": "F1", "map": "mAP"}.get(name, name)


def quantile_cell(value_ms: float, found: fleet_pb2.Interval, known: bool) -> str:
    """Milliseconds and, where ``known``, their interval: ``38 (37–41)``."""
    if not value_ms:
        return units.UNKNOWN
    text = units.ms(value_ms)
    return f"{text} ({units.ms(found.low)}–{units.ms(found.high)})" if known else text


def p50_cell(figures: fleet_pb2.BuildFigures) -> str:
    """Median of the build."""
    known = figures.HasField("p50_interval_ms")
    return quantile_cell(figures.p50_ms, figures.p50_interval_ms, known)


def eager_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """Median of the source in its own framework, and its calls."""
    found, known = figures.eager_p50_interval_ms, figures.HasField("eager_p50_interval_ms")
    return (
        quantile_cell(figures.eager_p50_ms, found, known),
        f"{found.n:,}" if known else units.UNKNOWN,
    )


def figures_text(figures: fleet_pb2.BuildFigures) -> str:
    """``acc 91.2 % (−0.3 points, −1.3 to +0.7, n=2,000)  p50 38 (37–41)  p95 44 ms, n=200``."""
    parts: list[str] = []
    quality = quality_of(figures)
    if quality is not None:
        change = f"n={quality.value.n:,}"
        if quality.change is not None:
            found = quality.change
            low, high = units.signed(found.low), units.signed(found.high)
            change = f"{units.signed(found.value)} points, {low} to {high}, n={found.n:,}"
        parts.append(f"{quality.name} {quality.value.value:.1f} % ({change})")
    if figures.HasField("agreement_pct"):
        parts.append(f"agrees {share_text(figures.agreement_pct)}")
    if figures.latency_n:
        p95 = units.ms(figures.p95_ms)
        parts.append(f"p50 {p50_cell(figures)}  p95 {p95} ms, n={figures.latency_n:,}")
    return "  ".join(parts)


def accuracy_cell(figures: fleet_pb2.BuildFigures) -> str:
    """Accuracy, or what stands in its place, in percent."""
    found = quality_of(figures)
    return f"{found.value.value:.1f}" if found is not None else units.UNKNOWN


def change_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """Change of accuracy with its interval, and the rows behind it."""
    quality = quality_of(figures)
    if quality is None:
        return units.UNKNOWN, units.UNKNOWN
    found = quality.change
    if found is None:
        return units.UNKNOWN, f"{quality.value.n:,}"
    low, high = units.signed(found.low), units.signed(found.high)
    return f"{units.signed(found.value)} ({low}…{high})", f"{found.n:,}"


def agreement_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """Share of rows answered as the source does with its interval, and the rows behind it."""
    if not figures.HasField("agreement_pct"):
        return units.UNKNOWN, units.UNKNOWN
    found = figures.agreement_pct
    return f"{found.value:.1f} ({found.low:.1f}–{found.high:.1f})", f"{found.n:,}"


def quality_cells(figures: fleet_pb2.BuildFigures) -> tuple[str, str]:
    """The change of accuracy; where there are no labels, how often both say the same."""
    quality = quality_of(figures)
    told = quality is not None and quality.change is not None
    if told or not figures.HasField("agreement_pct"):
        return change_cells(figures)
    share, rows = agreement_cells(figures)
    return f"agrees {share}", rows


def device_text(one: fleet_pb2.DeviceFigures) -> str:
    """``pi-7  p50 31.2  p95 33.0 ms, n=900, 81 MB, 71 °C (+12), 45 mJ each``."""
    if not one.ok:
        return f"{one.device_id}  {one.reason}"
    parts = [f"p50 {units.ms(one.p50_ms, 3)}  p95 {units.ms(one.p95_ms, 3)} ms, n={one.n:,}"]
    if one.rss_bytes:
        parts.append(units.size(one.rss_bytes))
    if one.HasField("temperature_max_c"):
        rise = one.temperature_max_c - one.temperature_start_c
        known = one.HasField("temperature_start_c")
        parts.append(f"{one.temperature_max_c:.0f} °C" + (f" ({rise:+.0f})" if known else ""))
    if one.HasField("energy_mj"):
        parts.append(f"{one.energy_mj:.3g} mJ each ({one.energy_source})")
    parts.append(f"{one.runtime}, {one.os}")
    stale = f"  stale: {one.stale}" if one.stale else ""
    return f"{one.device_id}  {', '.join(parts)}{stale}"


def override_text(item: fleet_pb2.Build) -> str:
    """``overridden by ana 2026-11-24T09:14:05Z: seen in the lab``; empty without an override."""
    if not item.override_by:
        return ""
    when = units.instant(item.override_at)
    at = f" {when:%Y-%m-%dT%H:%M:%SZ}" if when else ""
    return f"overridden by {item.override_by}{at}: {item.override_reason}"


def error_line(lines: Sequence[str], reason: str) -> str:
    """What a job said last about its end; empty where the reason says it already."""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if _ERROR.match(line)]
    last = (errors or said or [""])[-1]
    return "" if last in reason else last
