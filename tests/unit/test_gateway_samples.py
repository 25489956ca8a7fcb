"""Telemetry on its way to rows: bounded, merged, kept by a failed flush; no payload raises."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.convert_device import envelope_from_wire
from controller.domain.histogram import histogram_of
from controller.errors import InvalidError, UnavailableError
from controller.mqtt.convert import parse_envelope, spooled, telemetry_of
from controller.services import protocol
from controller.services.protocol import ProtocolError
from controller.services.samples import SampleWindow, StatusUpdate, flush_samples
from controller.services.telemetry import (
    ModelStatus,
    RungSample,
    Seen,
    Telemetry,
    take_telemetry,
)
from controller.store import devices, samples
from controller.store.samples import SampleRow
from lighterman.v1 import device_pb2, topics
from tests.support.gateway import NOW, Desk, open_desk
from tests.support.stores import seed_device


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as opened:
        with opened.deps.store.write() as conn:
            seed_device(conn, "pi-1")
        yield opened


def row(device_id: str = "pi-1", *, values: tuple[float, ...] = (0.04,)) -> SampleRow:
    return SampleRow(
        device_id, "digits", "1.0.0", "heavy", NOW, "", histogram_of(values), 0, 0, NOW
    )


def test_rows_of_one_minute_are_merged_in_memory_and_in_the_table(desk: Desk) -> None:
    for _ in range(2):
        desk.deps.samples.add(row(values=(0.04, 0.05)))
        desk.deps.samples.add(row(values=(0.2,)))
        assert flush_samples(desk.deps) == 1
    with desk.deps.store.read() as conn:
        (stored,) = samples.list_samples(conn, model="digits")
    assert stored.histogram.count == 6
    assert stored.histogram.quantile(0.95) == pytest.approx(0.2, rel=0.1)


def test_a_full_window_sheds_and_counts() -> None:
    window = SampleWindow(max_rows=2)
    taken = [window.add(row(name)) for name in ("a", "b", "c", "a")]
    assert (taken, window.shed) == ([True, True, False, True], 1)


def test_a_failed_flush_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UnavailableError("the database does not answer")

    desk.deps.samples.add(row())
    desk.deps.samples.note(StatusUpdate("pi-1", NOW, {"device": "pi-1"}, 2))
    with monkeypatch.context() as patch:
        patch.setattr(samples, "add_samples", full)
        with pytest.raises(UnavailableError):
            flush_samples(desk.deps)
    assert flush_samples(desk.deps) == 1
    with desk.deps.store.read() as conn:
        device = devices.get_device(conn, "pi-1")
    assert device is not None
    assert (device.applied_generation, device.status) == (2, {"device": "pi-1"})


def test_samples_of_unknown_devices_are_dropped(desk: Desk) -> None:
    desk.deps.samples.add(row("ghost"))
    flush_samples(desk.deps)
    with desk.deps.store.read() as conn:
        assert samples.list_samples(conn) == []


def test_the_health_document_speaks_of_the_rung_that_serves(desk: Desk) -> None:
    slow, fast = histogram_of([0.2] * 10), histogram_of([0.02] * 30)
    telemetry = Telemetry(
        samples=[
            RungSample("digits", "1.0.0", "heavy", "", slow, 1, 0),
            RungSample("digits", "1.0.0", "light", "", fast, 2, 0),
        ],
        models=[ModelStatus("digits", "1.0.0", "light", "COMMITTED", "temperature")],
        temperature_c=81.5,
    )
    document = take_telemetry(desk.deps, NOW, "pi-1", Seen("pi", "default"), telemetry)
    (model,) = document["models"]
    assert (model["rung"], model["inferences"], model["errors"]) == ("light", 30, 2)
    assert model["p95_ms"] == pytest.approx(20, rel=0.1)
    assert (document["temperature_c"], document["memory_used_pct"]) == (81.5, None)
    assert len(desk.deps.samples.take()[0]) == 2


def test_a_tail_sees_what_comes_after_it_began() -> None:
    window = SampleWindow()
    window.note(StatusUpdate("a", NOW, {"device": "a"}, 0))
    after = window.newest()
    window.note(StatusUpdate("b", NOW + timedelta(seconds=1), {"device": "b"}, 0))
    assert window.wait_newer(after, 0.0) == (2, [{"device": "b"}])
    assert window.wait_newer(2, 0.0) == (2, [])


SUFFIXES = (topics.UP_PRESENCE, topics.UP_REPORT, topics.UP_TELEMETRY, topics.UP_EVENT)


SPOKEN = device_pb2.Envelope(protocol=1).SerializeToString()  # at the end of a payload it counts


@given(st.sampled_from(SUFFIXES), st.binary(max_size=400), st.sampled_from((b"", SPOKEN)))
def test_no_payload_raises(suffix: str, payload: bytes, spoken: bytes) -> None:
    try:
        envelope = parse_envelope(suffix, payload + spoken)
    except ProtocolError:
        return
    if envelope is None:
        return
    with contextlib.suppress(InvalidError):
        if suffix == topics.UP_TELEMETRY:
            telemetry_of(envelope)
        elif suffix != topics.UP_PRESENCE:
            spooled(envelope)


def test_a_body_on_another_topic_is_refused() -> None:
    envelope = device_pb2.Envelope(protocol=1, boot_id="1-a")
    envelope.presence.online = True
    payload = envelope.SerializeToString()
    assert parse_envelope(topics.UP_PRESENCE, payload) is not None
    assert parse_envelope(topics.UP_REPORT, payload) is None
    nothing = device_pb2.Envelope(protocol=1).SerializeToString()
    assert parse_envelope(topics.UP_PRESENCE, nothing) is None


@pytest.mark.parametrize(("theirs", "newer"), [(1, "the agent"), (5, "the controller")])
def test_an_envelope_of_another_protocol_is_refused_with_both_sides_named(
    monkeypatch: pytest.MonkeyPatch, theirs: int, newer: str
) -> None:
    envelope = device_pb2.Envelope(protocol=theirs, boot_id="1-a", seq=1)
    envelope.event.kind = "boot"
    monkeypatch.setattr(protocol, "PROTOCOL_MIN", 2)
    monkeypatch.setattr(protocol, "PROTOCOL_MAX", 4)
    for read in (
        lambda: parse_envelope(topics.UP_EVENT, envelope.SerializeToString()),
        lambda: envelope_from_wire(envelope),
    ):
        with pytest.raises(ProtocolError, match=f"protocol {theirs}, .* speaks 2 to 4") as caught:
            read()
        assert caught.value.lines == (f"update {newer}",)
    for spoken in (2, 4):
        envelope.protocol = spoken
        assert parse_envelope(topics.UP_EVENT, envelope.SerializeToString()) is not None
        assert envelope_from_wire(envelope).seq == 1


@pytest.mark.parametrize(
    "service",
    [
        {"scale": 3, "count": 5, "index": [1], "bucket": [4]},
        {"scale": 3, "count": 1, "index": [1, 2], "bucket": [1]},
        {"scale": 99, "count": 1, "index": [1], "bucket": [1]},
        {"scale": 3, "count": 1, "index": [1], "bucket": [1], "sum_s": float("nan")},
        {"scale": 3, "count": 1, "index": [2**31 - 1], "bucket": [1]},
        {"scale": 3, "count": 1, "index": [-(2**31)], "bucket": [1]},
        {"scale": 3, "count": 1, "index": [1], "bucket": [1], "sum_s": 1e300},
        {"scale": 3, "count": 2**63, "index": [1], "bucket": [2**63]},
        {"scale": 20, "count": 1, "index": [1], "bucket": [1]},
    ],
)
def test_histograms_that_do_not_add_up_are_refused(service: dict[str, object]) -> None:
    envelope = device_pb2.Envelope(boot_id="1-a")
    sample = envelope.telemetry.samples.add(model="digits")
    sample.service.CopyFrom(type(sample.service)(**service))  # type: ignore[arg-type]
    with pytest.raises(InvalidError):
        telemetry_of(envelope)
