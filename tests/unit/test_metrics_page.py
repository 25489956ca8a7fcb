"""The page of metrics: classic buckets, what is counted for whom, who may read, and how often."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.domain.histogram import Histogram as AgentHistogram
from controller.app_metrics import metrics_token
from controller.clock import SystemClock
from controller.domain.histogram import histogram_of
from controller.errors import InvalidError, UnavailableError
from controller.services.samples import StatusUpdate, flush_samples
from controller.services.telemetry import RungSample, Seen, Telemetry, take_telemetry
from controller.services.totals import LatencyTotals, Series
from controller.settings import Settings
from controller.store.devices import put_capabilities, update_device
from controller.store.labels import change_labels
from controller.web import metric_table as table
from controller.web.health import Health, Metered, make_app
from controller.web.metrics import MetricsPage, Own
from lighterman.exposition import Page
from lighterman.metrics import BOUNDS_S, Metric, MetricKind, cumulative
from tests.support.asgi import get
from tests.support.gateway import NOW, Desk, open_desk
from tests.support.stores import seed_assignment, seed_device, seed_rollout, seed_version

TOKEN = "t" * 20


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            for name in ("pi-1", "pi-2", "pi-3"):
                seed_device(conn, name)
        yield opened


@dataclass
class Stopped(SystemClock):
    """A clock that a test moves."""

    at_s: float = 0.0

    def monotonic(self) -> float:
        return self.at_s


def own() -> Own:
    return Own("1.0", NOW, True, 1, {"reports": 3, "shed": 2}, 0)


def values(text: str | bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a page by name and labels."""
    text = text.decode() if isinstance(text, bytes) else text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(found: Mapping[tuple[str, tuple[tuple[str, str], ...]], float], name: str) -> object:
    return {labels: value for (this, labels), value in found.items() if this == name}


@given(st.lists(st.floats(min_value=1e-6, max_value=60.0), max_size=50))
def test_classic_buckets_hold_what_the_exact_ones_hold(seconds: list[float]) -> None:
    exact = AgentHistogram()
    for one in seconds:
        exact.add(one)
    at_most = cumulative(exact.buckets, 3)
    assert at_most == sorted(at_most)
    for bound, count in zip(BOUNDS_S, at_most, strict=True):
        # A value on the very bound may fall on either side by rounding of the logarithm.
        sure = sum(one <= bound * (1 - 1e-9) for one in seconds)
        assert sure <= count <= sum(one <= bound * (1 + 1e-9) for one in seconds)
    assert cumulative(histogram_of(seconds).buckets, 3) == at_most


def test_a_coarser_histogram_counts_where_all_of_a_bucket_does() -> None:
    coarse = histogram_of([0.3, 0.3, 0.6], scale=0)  # (0.25, 0.5] and (0.5, 1]
    counts = dict(zip(BOUNDS_S, cumulative(coarse.buckets, 0, zero_count=1), strict=True))
    assert (counts[0.25], counts[0.5], counts[1.0]) == (1, 3, 4)


def test_a_page_takes_only_what_is_documented() -> None:
    gauge = Metric("a", MetricKind.GAUGE, "A.", ("x",))
    page = Page((gauge,))
    page.put(gauge, 1, 'quote " and\nline')
    for wrong in ((), ("p", "q"), ('quote " and\nline',)):
        with pytest.raises(ValueError, match="a"):
            page.put(gauge, 1, *wrong)
    with pytest.raises(KeyError):
        page.put(Metric("b", MetricKind.GAUGE, "B."), 1)
    with pytest.raises(TypeError):
        page.put_histogram(gauge, [0] * len(BOUNDS_S), 0, 0.0, "h")
    ((_, labels),) = values(page.render())
    assert labels == (("x", 'quote " and\nline'),)


def telemetry(*versions: str, seconds: float = 0.04) -> Telemetry:
    service = histogram_of([seconds] * 10)
    return Telemetry(
        [RungSample("digits", one, "heavy", "sha256:1", service, 1, 2) for one in versions]
    )


def test_inferences_count_for_their_class_and_invented_versions_for_nobody(desk: Desk) -> None:
    seen = Seen("pi", "default")
    with desk.deps.store.write() as conn:
        seed_version(conn)
        seed_rollout(conn)
        for position, device in enumerate(("pi-1", "pi-2")):
            change_labels(conn, device, {"site": "berlin"})
            seed_assignment(conn, "r-222222", device, position=position)
    for device in ("pi-1", "pi-2"):
        take_telemetry(desk.deps, NOW, device, seen, telemetry("1.0.0", "6.6.6"))
    found = values(MetricsPage(desk.deps, SystemClock(), own).text())
    labels = (
        ("model", "digits"),
        ("profile", "pi"),
        ("rung", "heavy"),
        ("site", "berlin"),
        ("version", "1.0.0"),
    )
    assert found["lighterman_inference_duration_seconds_count", labels] == 20
    assert found["lighterman_inference_duration_seconds_sum", labels] == pytest.approx(0.8)
    assert found["lighterman_inference_errors_total", labels] == 2
    assert found["lighterman_inference_non_finite_total", labels] == 4
    below = {
        float(dict(label)["le"]): value
        for label, value in labelled(found, "lighterman_inference_duration_seconds_bucket").items()  # type: ignore[attr-defined]
        if set(labels) <= set(label)
    }
    assert len(below) == len(BOUNDS_S) + 1
    assert next(value for bound, value in sorted(below.items()) if bound > 0.045) == 20
    assert [value for bound, value in sorted(below.items()) if bound < 0.036][-1] == 0
    assert not any("6.6.6" in dict(label).values() for _, label in found)
    other = [label for name, label in found if dict(label).get("model") == "other"]
    assert other


def test_a_version_that_is_new_is_known_after_seconds_and_a_site_after_a_minute(
    desk: Desk,
) -> None:
    def series_after(seconds: float) -> set[tuple[str, str]]:
        before = set(desk.deps.totals.read())
        now = NOW + timedelta(seconds=seconds)
        take_telemetry(desk.deps, now, "pi-1", Seen("pi", "default"), telemetry("1.0.0"))
        return {(one.version, one.site) for one in set(desk.deps.totals.read()) - before}

    assert series_after(0) == {("other", "")}
    with desk.deps.store.write() as conn:
        seed_version(conn)
        seed_rollout(conn)
        seed_assignment(conn, "r-222222", "pi-1")
    assert series_after(4) == set()
    assert series_after(6) == {("1.0.0", "")}
    with desk.deps.store.write() as conn:
        change_labels(conn, "pi-1", {"site": "berlin"})
    assert series_after(50) == set()
    assert series_after(70) == {("1.0.0", "berlin")}


def test_series_of_the_fleet_are_bounded() -> None:
    totals = LatencyTotals(max_series=5)
    for number in range(50):
        totals.add(Series("m", "1", f"r{number}", "p", ""), histogram_of([0.1]), 0, 0)
    found = totals.read()
    assert len(found) == 6
    assert sum(total.service.count for total in found.values()) == 50


def test_the_fleet_in_numbers(desk: Desk) -> None:
    deps = desk.deps
    with deps.store.write() as conn:
        for name, heat in (("pi-1", 50.0), ("pi-2", 81.0)):
            put_capabilities(conn, name, {"memory_bytes": 1000}, NOW)
            update_device(conn, name, profile="raspberry-pi-5", online=True)
            status = {"temperature_c": heat, "memory_used_pct": 40.0, "models": [
                {"model": "digits", "version": "1.0.0", "rung": "heavy"}]}  # fmt: skip
            deps.samples.note(StatusUpdate(name, SystemClock().now(), status, 0))
        seed_version(conn)
        seed_rollout(conn)
        seed_assignment(conn, "r-222222", "pi-1")
    flush_samples(deps)
    found = values(MetricsPage(deps, SystemClock(), own).text())

    def one(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    pi = "raspberry-pi-5"
    assert one("lighterman_store_up") == 1
    assert one("lighterman_devices", profile=pi, state="active", presence="online") == 2
    assert one("lighterman_devices", profile="", state="active", presence="offline") == 1
    assert one("lighterman_devices_silent", profile=pi, seconds="60") == 0
    assert one("lighterman_device_temperature_celsius", profile=pi, statistic="max") == 81
    assert one("lighterman_device_temperature_celsius", profile=pi, statistic="median") == 50
    assert one("lighterman_device_memory_bytes", profile=pi, statistic="max") == 400
    assert one("lighterman_profile_throttle_celsius", profile=pi) == 85
    assert one("lighterman_serving_devices", model="digits", version="1.0.0", rung="heavy") == 2
    assert one("lighterman_rollout_phase", rollout="r-222222", phase="PENDING") == 1
    assert one("lighterman_rollout_phase", rollout="r-222222", phase="PAUSED") == 0
    assert one("lighterman_rollout_devices", rollout="r-222222", state="PLANNED") == 1
    assert one("lighterman_rollbacks_total", model="digits", version="1.0.0", cause="slow") == 0
    assert one("lighterman_ingest_shed_total", what="messages") == 2
    no_device = [
        label for _, label in found if {"pi-1", "pi-2", "pi-3"} & set(dict(label).values())
    ]
    assert no_device == []


def test_the_page_names_no_metric_that_the_table_lacks(desk: Desk) -> None:
    known = {name for metric in table.METRICS for name in metric.names()}
    found = {name for name, _ in values(MetricsPage(desk.deps, SystemClock(), own).text())}
    assert found <= known


def test_without_the_database_the_page_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def away() -> Iterator[None]:
        raise UnavailableError("the database does not answer")
        yield

    page = MetricsPage(desk.deps, clock := Stopped(), own)
    monkeypatch.setattr(desk.deps.store, "read", away)
    found = values(page.text())
    assert found["lighterman_store_up", ()] == 0
    assert found["lighterman_ingest_messages_total", (("outcome", "reports"),)] == 3
    monkeypatch.undo()
    clock.at_s += 2.0
    assert values(page.text())["lighterman_store_up", ()] == 1


def test_many_scrapes_make_one_page(desk: Desk) -> None:
    made: list[int] = []
    wait, go_on = threading.Event(), threading.Event()
    clock = Stopped()

    def counted() -> Own:
        made.append(1)
        if len(made) == 2:
            wait.set()
            go_on.wait(20)
        return own()

    page = MetricsPage(desk.deps, clock, counted)
    first = page.text()
    assert page.text() is first
    clock.at_s += 5.0
    maker = threading.Thread(target=page.text)
    maker.start()
    assert wait.wait(20)
    assert page.text() is first  # who comes while one is being made does not wait
    go_on.set()
    maker.join(20)
    assert len(made) == 2


def test_callers_from_elsewhere_need_the_token() -> None:
    app = make_app(Health(dict, dict), Metered(lambda: b"page", TOKEN))
    elsewhere = ("10.0.0.7", 1)
    assert get(app, "/metrics")[2] == "page"
    assert get(app, "/metrics", client=("::1", 1))[0] == 200
    status, headers, body = get(app, "/metrics", client=elsewhere)
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="metrics"')
    assert "metrics_token_file" in body
    for wrong in ("", TOKEN[:-1], "ö" * 20):
        assert get(app, "/metrics", {"authorization": f"Bearer {wrong}"}, elsewhere)[0] == 401
    right = {"authorization": f"Bearer {TOKEN}"}
    assert get(app, "/metrics", right, elsewhere)[0] == 200
    empty = make_app(Health(dict, dict), Metered(lambda: b"page", ""))
    assert get(empty, "/metrics", {"authorization": "Bearer "}, elsewhere)[0] == 401


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    token = metrics_token(settings)
    assert metrics_token(settings) == token
    assert settings.token_file().stat().st_mode & 0o077 == 0
    named = replace(settings, metrics_token_file=str(tmp_path / "other"))
    with pytest.raises(InvalidError, match="cannot be read"):
        metrics_token(named)
    (tmp_path / "other").write_text("short\n")
    with pytest.raises(InvalidError, match="5 characters"):
        metrics_token(named)
