"""What was inferred since this process began, per class of devices: counters for /metrics.

Only ever grows, so rates are safe over restarts. Bounded: what comes on top counts as "other".
"""

import threading
from dataclasses import dataclass
from datetime import datetime

from controller.domain.histogram import Histogram

MAX_SERIES = 2_000
OTHER = "other"
NAME_MAX = 80


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """Whose inferences: of which version and rung, on which class of devices, at which site."""

    model: str
    version: str
    rung: str
    profile: str
    site: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device stands, and what (model, version) rollouts ever gave to it or took from it."""

    site: str
    versions: frozenset[tuple[str, str]]
    looked_at: datetime


@dataclass(frozen=True, slots=True)
class Total:
    """Everything one series did; service times in seconds."""

    service: Histogram
    errors: int = 0
    non_finite: int = 0


class LatencyTotals:
    """Thread-safe but for `places`, which is whose thread adds: one entry for each device."""

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._max_series = max_series
        self._lock = threading.Lock()
        self._totals: dict[Series, Total] = {}
        self.places: dict[str, Place] = {}

    def add(self, series: Series, service: Histogram, errors: int, non_finite: int) -> None:
        """Count what one device did in one window."""
        with self._lock:
            key = self._room(series)
            before = self._totals.get(key, Total(Histogram()))
            self._totals[key] = Total(
                before.service.merge(service),
                before.errors + errors,
                before.non_finite + non_finite,
            )

    def _room(self, series: Series) -> Series:
        """The series itself while there is room, else the coarser one that it counts for."""
        names = (series.model, series.version, series.rung, series.profile, series.site)
        if max(len(name) for name in names) > NAME_MAX:
            return Series(OTHER, OTHER, OTHER, OTHER, OTHER)
        if series in self._totals or len(self._totals) < self._max_series:
            return series
        return Series(OTHER, OTHER, OTHER, OTHER, OTHER)

    def read(self) -> dict[Series, Total]:
        """All of it, as it is now."""
        with self._lock:
            return dict(self._totals)
