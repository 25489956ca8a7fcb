"""The same controller on PostgreSQL: enrolment, reports and telemetry end in the same rows."""

from pathlib import Path

import pytest

from lighterman.v1 import device_pb2, fleet_pb2
from tests.support.gateway import running


@pytest.mark.postgres
def test_a_device_enrols_speaks_and_is_retired(tmp_path: Path, postgres_url: str) -> None:
    with running(tmp_path, database=postgres_url) as home:
        fleet = home.fleet()
        token = fleet.CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10).token
        device = home.enrol("pg-1", token)
        hello = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
        device.api().Hello(hello, timeout=10)
        envelope = device_pb2.Envelope(protocol=1, boot_id="1-a", seq=1)
        envelope.event.kind = "boot"
        for _ in range(3):
            ack = device.api().Report(device_pb2.ReportRequest(envelopes=[envelope]), timeout=10)
            assert ack.seq == 1
        listed = fleet.ListDevices(fleet_pb2.ListDevicesRequest(selector="device=pg-1"), timeout=10)
        assert [one.state for one in listed.devices] == ["active"]
        fleet.RetireDevice(fleet_pb2.DeviceRequest(device_id="pg-1"), timeout=10)
        events = fleet.ListEvents(fleet_pb2.ListEventsRequest(device_id="pg-1"), timeout=10)
        assert [e.kind for e in events.events] == ["device_enrolled", "boot", "device_retired"]
        assert fleet.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10).devices["retired"] == 1
