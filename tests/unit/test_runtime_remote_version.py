"""A remote rung answers with this device's version or not at all: real servers, real wire."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from agent.clock import SystemClock
from agent.domain.ports import LinkReading, RemoteModel
from agent.domain.remote import RemoteAddress, parse_remote, why_not
from agent.errors import InferenceError
from agent.runtime.remote import LinkProber, Remote, open_remote
from agent.serve.server import InferenceServer
from examples.fleet.ports import free_port
from lighterman.oip import inference_pb2 as pb
from lighterman.oip import inference_pb2_grpc as pb_grpc
from tests.support.serving import Bench, make_release, scaled, tensor, values
from tests.support.wait import wait_for

PATIENT_MS = 2000
LOCAL = {"heavy": scaled(2.0), "light": scaled(3.0)}


@contextmanager
def edge_with(folder: Path, version: str, factor: float = 7.0) -> Iterator[tuple[Bench, str]]:
    """Another agent's host and server; gives it and HOST:PORT."""
    folder.mkdir(exist_ok=True)
    bench = Bench(folder)
    bench.serve(version, {"heavy": scaled(factor)})
    address = f"127.0.0.1:{free_port()}"
    server = InferenceServer(bench.host, bench.clock, "test", address)
    server.start()
    try:
        yield bench, address
    finally:
        server.stop(grace_s=0)
        bench.host.close()


class Foreign(pb_grpc.GRPCInferenceServiceServicer):
    """A server that numbers versions (or has none), as Triton does: "1.0.0" is no number."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.asked: list[str] = []

    def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.ServicerContext
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.ServicerContext
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=True)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="foreign")

    def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        if request.version and not request.version.isdigit():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "version is no number")
        return pb.ModelReadyResponse(ready=request.version in ("", self.version))

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        versions = [self.version] if self.version else []
        return pb.ModelMetadataResponse(name=request.name, versions=versions)

    def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        self.asked.append(request.model_version)
        answer = pb.ModelInferResponse(
            model_name=request.model_name, model_version=self.version,
            raw_output_contents=request.raw_input_contents,
        )  # fmt: skip
        answer.outputs.add(name="y", datatype="FP32", shape=(1, 4))
        return answer


@contextmanager
def foreign_with(version: str) -> Iterator[tuple[Foreign, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Foreign(version)  # type: ignore[abstract]  # it has no extensions
    pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield servicer, address
    finally:
        server.stop(0)


@contextmanager
def rung_at(endpoint: str, version: str = "1.0.0") -> Iterator[Remote]:
    remote = RemoteModel(endpoint, "photo", version)
    rung = open_remote(remote, 5.0, make_release(version, LOCAL).signature)
    try:
        yield rung
    finally:
        rung.close()


@contextmanager
def looking_at(*remotes: RemoteModel) -> Iterator[LinkProber]:
    prober = LinkProber(SystemClock(), interval_s=0.05, timeout_s=1.0)
    prober.start()
    try:
        prober.watch(frozenset(remotes))
        yield prober
    finally:
        prober.stop()


def read(prober: LinkProber, remote: RemoteModel) -> LinkReading:
    wait_for(lambda: prober.read(remote) is not None, 10, "the first look")
    reading = prober.read(remote)
    assert reading is not None
    return reading


def test_another_version_never_answers_under_our_name(tmp_path: Path) -> None:
    with edge_with(tmp_path / "edge", "1.0.0") as (edge, address):
        bench = Bench(tmp_path)
        bench.serve("1.1.0", LOCAL, remote=f"grpc://{address}", slow_threshold_ms=PATIENT_MS)
        bench.host.set_rung("photo", "edge")
        answer = bench.infer()
        # The device's own answer, under the device's own rung: no request failed.
        assert (answer.version, answer.rung) == ("1.1.0", "heavy")
        assert values(answer) == [2.0, 4.0, 6.0, 8.0]
        assert sum(w.service.count for w in edge.host.take_windows()) == 0
        told = {(w.version, w.rung): (w.service.count, w.errors) for w in bench.host.take_windows()}
        assert told == {("1.1.0", "edge"): (0, 1), ("1.1.0", "heavy"): (1, 0)}
        bench.host.close()


def test_negative_control_the_same_version_answers_there(tmp_path: Path) -> None:
    with edge_with(tmp_path / "edge", "1.1.0") as (_, address):
        bench = Bench(tmp_path)
        bench.serve("1.1.0", LOCAL, remote=f"grpc://{address}", slow_threshold_ms=PATIENT_MS)
        bench.host.set_rung("photo", "edge")
        answer = bench.infer()
        assert (answer.version, answer.rung) == ("1.1.0", "edge")
        assert values(answer) == [7.0, 14.0, 21.0, 28.0]
        bench.host.close()


def test_a_link_is_good_only_where_that_very_version_is_ready(tmp_path: Path) -> None:
    with edge_with(tmp_path / "edge", "1.0.0") as (edge, address):
        ours = RemoteModel(f"grpc://{address}", "photo", "1.1.0")
        theirs = RemoteModel(f"grpc://{address}", "photo", "1.0.0")
        with looking_at(ours, theirs) as prober:
            why = f"{address} serves photo:1.0.0, not 1.1.0"
            assert read(prober, ours) == LinkReading(None, 100.0, why)
            good = read(prober, theirs)
            assert (good.loss_pct, good.why) == (0.0, "")
            # The edge server follows: what was good is not any more, and the other way round.
            edge.serve("1.1.0", {"heavy": scaled(8.0)})
            wait_for(lambda: read(prober, ours).why == "", 10, "the version to arrive there")
            reading = read(prober, ours)
            assert reading.loss_pct == 0.0
            assert reading.rtt_s is not None
            wait_for(lambda: read(prober, theirs).loss_pct == 100.0, 10, "the old one to be gone")
            assert read(prober, theirs).why == f"{address} serves photo:1.1.0, not 1.0.0"


@pytest.mark.parametrize("answered", ["1", "2", ""])
def test_an_answer_that_names_another_version_or_none_is_refused(answered: str) -> None:
    told = "answered as photo:.*asked was photo:1.0.0"
    with (
        foreign_with(answered) as (_, address),
        rung_at(f"grpc://{address}") as rung,
        pytest.raises(InferenceError, match=told),
    ):
        rung.run({"x": tensor()})


@pytest.mark.parametrize(("theirs", "query"), [("1", "?1.0.0=1"), ("", "?1.0.0=")])
def test_a_server_with_other_names_is_used_by_the_name_that_was_given(
    theirs: str, query: str
) -> None:
    with foreign_with(theirs) as (foreign, address):
        endpoint = f"grpc://{address}{query}"
        with rung_at(endpoint) as rung:
            assert rung.run({"x": tensor()})["y"].data == tensor().data
            assert foreign.asked == [theirs]
        remote = RemoteModel(endpoint, "photo", "1.0.0")
        with looking_at(remote) as prober:
            assert read(prober, remote).loss_pct == 0.0


def test_a_name_that_was_given_counts_for_its_version_alone() -> None:
    with foreign_with("1") as (_, address):
        endpoint = f"grpc://{address}?1.0.0=1"
        remotes = [RemoteModel(endpoint, "photo", v) for v in ("1.0.0", "1.1.0")]
        with looking_at(*remotes) as prober:
            assert read(prober, remotes[0]).why == ""
            assert read(prober, remotes[1]).why == f"{address} serves photo:1, not 1.1.0"
        with rung_at(endpoint, "1.1.0") as rung, pytest.raises(InferenceError):
            rung.run({"x": tensor()})


def test_an_endpoint_is_read_with_its_names() -> None:
    assert parse_remote("grpc://edge-1:8001") == RemoteAddress("edge-1:8001")
    found = parse_remote("grpc://[::1]:8001?1.0.0=1&1.1.0=2&2.0.0=")
    assert found.address == "[::1]:8001"
    assert [found.name_of(v) for v in ("1.0.0", "1.1.0", "2.0.0", "3.0.0")] == [
        "1", "2", "", "3.0.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "served", "told"),
    [
        ("", ("1.0.0",), "edge-1:8001 serves detector:1.0.0, not 1.1.0"),
        ("", ("1.1.0",), "edge-1:8001 is not ready for detector:1.1.0"),
        ("", (), "edge-1:8001 is not ready for detector:1.1.0"),
        ("", None, "edge-1:8001 does not serve detector"),
        ("?1.1.0=2", ("1",), "edge-1:8001 serves detector:1, not 2 (which is 1.1.0 here)"),
        ("?1.1.0=", ("1",), "edge-1:8001 is not ready for detector:1.1.0"),
    ],
)
def test_why_an_endpoint_is_not_used(query: str, served: tuple[str, ...] | None, told: str) -> None:
    address = parse_remote(f"grpc://edge-1:8001{query}")
    assert why_not(address, "detector", "1.1.0", served) == told
