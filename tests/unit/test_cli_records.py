"""Messages as the documented JSON."""

import json
from datetime import UTC, datetime

from controller.cli import records
from lighterman.v1 import fleet_pb2


def test_enums_lose_their_prefix_and_times_are_iso() -> None:
    rollout = fleet_pb2.Rollout(rollout_id="r-1", phase=fleet_pb2.ROLLOUT_PHASE_ROLLED_BACK)
    rollout.created_at.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    record = records.document("rollout", rollout)
    assert record["schema_version"] == records.SCHEMA_VERSION
    assert record["phase"] == "ROLLED_BACK"
    assert record["created_at"] == "2026-01-02T03:04:05Z"
    assert record["finished_at"] is None


def test_numbers_stay_numbers_and_unset_optionals_are_null() -> None:
    device = fleet_pb2.Device(device_id="d", desired_generation=2**40)
    record = records.record(device)
    assert record["desired_generation"] == 2**40
    assert record["temperature_c"] is None
    assert record["capabilities"] is None
    device.temperature_c = 0.0
    assert records.record(device)["temperature_c"] == 0.0


def test_json_fields_are_parsed_and_renamed() -> None:
    item = fleet_pb2.Object(kind="Policy", name="p", spec_json=json.dumps({"slow_count": 5}))
    record = records.record(item)
    assert record["spec"] == {"slow_count": 5}
    assert "spec_json" not in record


def test_a_listing_has_a_kind_and_items() -> None:
    listing = records.listing("device", [fleet_pb2.Device(device_id="a")])
    assert listing["kind"] == "device_list"
    assert listing["items"][0]["device_id"] == "a"


def test_every_documented_field_is_in_the_record() -> None:
    documented = {name for name, _ in records.describe(fleet_pb2.Build.DESCRIPTOR)}
    assert documented == set(records.record(fleet_pb2.Build()))
