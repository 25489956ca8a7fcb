"""A page of metrics in Prometheus' text format, by prometheus_client. For one scrape, then gone.

Refuses samples of metrics that no table documents, with other labels, and two with the same ones.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import (
    Metric as Family,
)
from prometheus_client.registry import Collector

from lighterman.metrics import BOUNDS_S, Metric, MetricKind

# The format that every scraper reads; our names need nothing newer.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = tuple(f"{bound:.9g}" for bound in BOUNDS_S)


class Page(Collector):
    """Collects samples; `render` gives the text."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._families = {metric.name: _family(metric) for metric in metrics}
        self._labels = {metric.name: metric.labels for metric in metrics}
        self._seen: set[tuple[str, ...]] = set()

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        """One counter or gauge, with the labels in the metric's order."""
        family = self._of(metric, labels)
        if not isinstance(family, CounterMetricFamily | GaugeMetricFamily):
            raise TypeError(f"{metric.name} is a histogram")
        family.add_metric(labels, value)

    def put_histogram(
        self, metric: Metric, at_most: Sequence[int], count: int, sum_s: float, *labels: str
    ) -> None:
        """One histogram: how many values are at most each bound, how many there are, their sum."""
        family = self._of(metric, labels)
        if not isinstance(family, HistogramMetricFamily):
            raise TypeError(f"{metric.name} is no histogram")
        buckets = [(bound, float(n)) for bound, n in zip(_BOUNDS, at_most, strict=True)]
        family.add_metric(labels, [*buckets, ("+Inf", float(count))], sum_s)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> Family:
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, given {labels}")
        if (metric.name, *labels) in self._seen:
            raise ValueError(f"{metric.name}{labels} twice on one page")
        self._seen.add((metric.name, *labels))
        return self._families[metric.name]

    def collect(self) -> Iterator[Family]:
        """For prometheus_client."""
        yield from self._families.values()

    def render(self) -> bytes:
        """The page."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


def _family(metric: Metric) -> Family:
    match metric.kind:
        case MetricKind.COUNTER:
            return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        case MetricKind.GAUGE:
            return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        case MetricKind.HISTOGRAM:
            return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


def put_process(page: Page, cpu: Metric, resident: Metric, files: Metric, threads: Metric) -> None:
    """This process as /proc tells it; nothing where there is none."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        open_files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return
    page.put(cpu, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    page.put(resident, int(fields[21]) * os.sysconf("SC_PAGESIZE"))
    page.put(files, open_files)
    page.put(threads, int(fields[17]))
