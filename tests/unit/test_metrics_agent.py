"""/metrics of the agent: sums that telemetry leaves alone, outcomes, a listener that is safe."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.clock import SystemClock
from agent.domain.histogram import Histogram
from agent.domain.ports import RungWindow
from agent.errors import UnavailableError
from agent.host.sensors import zone_temperatures
from agent.serve import metric_table as table
from agent.serve.metrics import MetricsServer, Queue, Snapshot, render
from agent.serve.server import InferenceServer
from agent.settings import load_settings
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.serving import Bench, scaled, tensor
from tests.support.wait import wait_for

EMPTY = Snapshot("1.0", "pi-1", "pi", 1.0, {"controller": True, "broker": False}, {"applied": 3})


def samples(page: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name and the values of the labels in the order of the table."""
    order = {name: metric.labels for metric in table.METRICS for name in metric.names()}
    return {
        (one.name, tuple(one.labels[label] for label in order[one.name])): one.value
        for family in text_string_to_metric_families(page.decode())
        for one in family.samples
    }


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.host.close()


def test_sums_only_grow_and_telemetry_still_gets_all(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    told = 0
    for round_number in range(1, 4):
        bench.infer(1.0, 2.0, 3.0, 4.0)
        total = bench.host.totals()[0]
        assert (total.service.count, total.version, total.rung) == (round_number, "1.0.0", "heavy")
        total.service.add(1.0)  # a copy: nobody else sees it
        told += sum(window.service.count for window in bench.host.take_windows())
        assert bench.host.totals()[0].service.count == round_number
    assert told == 3


def test_what_is_long_gone_makes_room(bench: Bench) -> None:
    for number in range(20):
        bench.serve(f"1.{number}.0", {"heavy": scaled(2.0)})
        bench.infer(1.0, 2.0, 3.0, 4.0)
        bench.host.take_windows()
    versions = {total.version for total in bench.host.totals()}
    assert len(versions) == 16
    assert {"1.19.0", "1.4.0"} <= versions


def test_the_page_holds_the_snapshot() -> None:
    service = Histogram()
    service.add(0.04, times=5)
    page = render(
        replace(
            EMPTY,
            totals=(RungWindow("photo", "1.0.0", "heavy", "", service, errors=1),),
            queues={"photo": Queue(2, 0.5)},
            requests={("photo", "ok"): 5},
            rollbacks={("photo", "1.1.0", "slow"): 1},
            rung_changes={("photo", "heavy", "light", "load"): 1},
            zones={("thermal_zone0", "cpu-thermal"): 61.5},
            memory_total_bytes=10,
            spool_entries=4,
        )
    )
    found = samples(page)
    mine = ("photo", "1.0.0", "heavy", EMPTY.profile, EMPTY.device)
    assert found["lighterman_inference_duration_seconds_count", mine] == 5
    assert found["lighterman_inference_errors_total", mine] == 1
    assert found["lighterman_queue_requests", ("photo",)] == 2
    assert found["lighterman_requests_total", ("photo", "ok")] == 5
    assert found["lighterman_rollbacks_total", ("photo", "1.1.0", "slow")] == 1
    assert found["lighterman_device_temperature_celsius", ("thermal_zone0", "cpu-thermal")] == 61.5
    assert found["lighterman_device_memory_bytes", ("total",)] == 10
    assert ("lighterman_device_memory_bytes", ("available",)) not in found
    assert found["lighterman_connected", ("broker",)] == 0


def test_a_version_that_serves_has_its_noughts(bench: Bench) -> None:
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    serving = bench.host.serving("photo")
    assert serving is not None
    found = samples(render(replace(EMPTY, serving=(serving,))))
    assert found["lighterman_rollbacks_total", ("photo", "1.0.0", "slow")] == 0
    assert found["lighterman_rung_in_use", ("photo", "1.0.0", "heavy")] == 1


def test_requests_are_counted_by_outcome_and_unknown_names_make_no_series(bench: Bench) -> None:
    server = InferenceServer(bench.host, bench.clock, "1", "127.0.0.1:0")
    bench.serve("1.0.0", {"heavy": scaled(2.0)})
    request = pb.ModelInferRequest(model_name="photo")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(tensor().data))
    with grpc.insecure_channel(server.start()) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(request)
        for name in ("ghost-1", "ghost-2"):
            with pytest.raises(grpc.RpcError):
                stub.ModelInfer(pb.ModelInferRequest(model_name=name))
        request.inputs[0].name = "y"
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(request)
    server.stop(0)
    assert server.requests() == {
        ("photo", "ok"): 1,
        ("", "unknown"): 2,
        ("photo", "invalid"): 1,
    }


def test_the_listener_tells_its_page_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.serve.metrics.REQUEST_S", 0.5)
    made: list[int] = []

    def look() -> Snapshot:
        made.append(1)
        return EMPTY

    server = MetricsServer(look, SystemClock(), "127.0.0.1:0")
    address = server.start()
    try:
        for _ in range(5):
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                assert ("lighterman_generation", ("applied",)) in samples(answer.read())
        assert len(made) < 5  # at most one page a second
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{address}/", timeout=5)
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))):  # one that says nothing holds nobody long
            wait_for(
                lambda: urllib.request.urlopen(f"http://{address}/metrics", timeout=20).status,
                20,
                "an answer beside a silent caller",
            )
        with pytest.raises(UnavailableError, match=r"serve\.metrics"):
            MetricsServer(look, SystemClock(), address).start()
    finally:
        server.stop()


def test_a_restarted_listener_has_its_port_again() -> None:
    server = MetricsServer(lambda: EMPTY, SystemClock(), "127.0.0.1:0")
    address = server.start()
    try:  # HTTP/1.0: the server closes first, and the kernel keeps its end for a minute
        urllib.request.urlopen(f"http://{address}/metrics", timeout=20).read()
    finally:
        server.stop()
    again = MetricsServer(lambda: EMPTY, SystemClock(), address)
    try:
        assert again.start() == address
    finally:
        again.stop()


def test_the_setting_takes_an_address_or_off() -> None:
    assert load_settings({}, None, {}).serve_metrics == "127.0.0.1:8002"
    assert load_settings({}, None, {"LIGHTERMAN_SERVE_METRICS": "off"}).serve_metrics == "off"


def test_zones_are_told_by_name_and_type(tmp_path: Path) -> None:
    for number, (kind, milli) in enumerate((("cpu-thermal", "61500"), ("gpu", "-256000"))):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{milli}\n")
    assert zone_temperatures(tmp_path) == {("thermal_zone0", "cpu-thermal"): 61.5}
