"""What a device writes is stored and logged as one line that steers no terminal."""

import io
import logging

import pytest

from controller.api.convert_device import capabilities_from_wire, envelope_from_wire
from controller.app_log import TextFormatter
from controller.domain.words import one_line
from controller.mqtt.convert import spooled, telemetry_of
from controller.services.reports import EventBody, ReportBody
from lighterman.v1 import common_pb2, device_pb2

HOSTILE = "slow\x1b[2J\x00\n09:00:00 INFO all is well\x9b1A\u202e"
CLEAN = "slow\ufffd[2J\ufffd 09:00:00 INFO all is well\ufffd1A\ufffd"


def test_words_become_one_plain_line() -> None:
    assert one_line(HOSTILE) == CLEAN
    assert one_line("p95 41 → 38 ms, 80 °C ≥ 74") == "p95 41 → 38 ms, 80 °C ≥ 74"
    assert one_line("a\u00a0b\tc") == "a b c"


def test_reports_and_events_are_cleaned_on_both_roads() -> None:
    event = device_pb2.Envelope(
        protocol=1,
        boot_id="1-a",
        seq=1,
        event=device_pb2.DeviceEvent(kind="note", reason=HOSTILE, details={"why": HOSTILE}),
    )
    report = device_pb2.Envelope(
        protocol=1, boot_id="1-a", seq=2, report=device_pb2.Report(reason=HOSTILE)
    )
    for convert in (envelope_from_wire, spooled):
        said = [convert(one) for one in (event, report)]
        assert said[0] is not None
        assert said[1] is not None
        assert isinstance(said[0].body, EventBody)
        assert isinstance(said[1].body, ReportBody)
        assert (said[0].body.reason, said[0].body.details) == (CLEAN, {"why": CLEAN})
        assert said[1].body.reason == CLEAN


def test_telemetry_and_capabilities_are_cleaned() -> None:
    status = device_pb2.ModelStatus(model="digits", rung_reason=HOSTILE)
    envelope = device_pb2.Envelope(boot_id="1-a", telemetry=device_pb2.Telemetry(models=[status]))
    assert telemetry_of(envelope).models[0].rung_reason == CLEAN
    found = capabilities_from_wire(common_pb2.Capabilities(device_model=HOSTILE, cpu_model=HOSTILE))
    assert (found.device_model, found.cpu_model) == (CLEAN, CLEAN)


@pytest.mark.parametrize(
    ("formatter", "lines"), [(TextFormatter, 1), (logging.Formatter, 2)], ids=["ours", "control"]
)
def test_a_word_cannot_forge_a_line_of_the_log(
    formatter: type[logging.Formatter], lines: int
) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("%(levelname)s %(message)s"))
    record = logging.LogRecord("x", logging.INFO, "f", 1, "said %s", (HOSTILE,), None)
    handler.emit(record)
    assert len(stream.getvalue().splitlines()) == lines
    assert ("\x1b" in stream.getvalue()) is (formatter is logging.Formatter)
