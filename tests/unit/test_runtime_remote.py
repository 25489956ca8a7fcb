"""Remote rungs over the real wire: another server, a link that is cut, a peer that cannot."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.domain.ports import LinkReading, RemoteModel
from agent.domain.probation import StepDown
from agent.errors import InferenceError, LoadError
from agent.runtime.remote import LinkProber, open_remote
from agent.serve.server import InferenceServer
from examples.fleet.ports import free_port
from tests.support.serving import Bench, make_release, scaled, tensor, values
from tests.support.wait import wait_for

# The deadline of a remote call follows the slow threshold; a busy machine shall not miss it.
PATIENT_MS = 2000
LOCAL = {"heavy": scaled(2.0), "light": scaled(3.0)}


class Edge:
    """Another agent's host and server."""

    def __init__(self, folder: Path, port: int | None = None, version: str = "1.0.0") -> None:
        folder.mkdir(exist_ok=True)
        self.bench = Bench(folder)
        self.bench.serve(version, {"heavy": scaled(7.0)})
        self.address = f"127.0.0.1:{port or free_port()}"
        self.server = InferenceServer(self.bench.host, self.bench.clock, "test", self.address)
        self.server.start()

    @property
    def endpoint(self) -> str:
        return f"grpc://{self.address}"

    def stop(self) -> None:
        self.server.stop(grace_s=0)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    made = Edge(tmp_path / "edge")
    yield made
    made.stop()


def test_a_remote_rung_answers_when_it_is_chosen(edge: Edge, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", LOCAL, remote=edge.endpoint, slow_threshold_ms=PATIENT_MS)
    # A start must not depend on any network.
    assert bench.infer().rung == "heavy"
    bench.host.set_rung("photo", "edge")
    answer = bench.infer()
    assert (answer.rung, values(answer)) == ("edge", [7.0, 14.0, 21.0, 28.0])
    windows = {w.rung: w.digest for w in bench.host.take_windows()}
    assert windows["edge"] == ""
    bench.host.close()


def test_a_cut_link_fails_no_request(edge: Edge, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", LOCAL, remote=edge.endpoint, slow_threshold_ms=PATIENT_MS)
    bench.host.set_rung("photo", "edge")
    answers = [bench.infer() for _ in range(5)]
    edge.stop()
    answers += [bench.infer() for _ in range(20)]
    assert [a.rung for a in answers] == ["edge"] * 5 + ["heavy"] * 20
    # While it rests nobody tries it, so few failures were counted (one a second).
    errors = {w.rung: w.errors for w in bench.host.take_windows()}
    assert errors["heavy"] == 0
    assert 1 <= errors["edge"] <= 5
    bench.host.close()


def test_a_peer_that_lives_but_cannot_infer_is_stepped_away_from(
    edge: Edge, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    bench.serve("1.0.0", LOCAL, remote=edge.endpoint, slow_threshold_ms=PATIENT_MS)
    bench.host.set_rung("photo", "edge")
    assert bench.infer().rung == "edge"
    edge.bench.host.close()

    def decided() -> bool:
        assert bench.infer().rung == "heavy"
        return bool(bench.decisions)

    wait_for(decided, 15, "the row of failed calls")
    (decision,) = bench.decisions
    assert isinstance(decision.verdict, StepDown)
    assert decision.swapped_to == "heavy"
    bench.host.close()


def test_a_remote_that_hangs_costs_its_deadline_and_no_more(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        endpoint = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        signature = make_release("1.0.0", LOCAL).signature
        remote = open_remote(RemoteModel(endpoint, "photo", "1.0.0"), 0.3, signature)
        clock = SystemClock()
        began = clock.monotonic()
        with pytest.raises(
            InferenceError, match=r"127.0.0.1:\d+ did not answer: DEADLINE_EXCEEDED"
        ):
            remote.run({"x": tensor()})
        assert 0.25 < clock.monotonic() - began < 2.0
        remote.close()


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:1", "http://a:1", "grpc://a", "grpc://:80", "", "grpc://a:1?", "grpc://a:1?1.0.0",
     "grpc://a:1?1.0.0=/", "grpc://a:1?=1", "grpc://a:1?1.0.0=1&1.0.0=2"],
)  # fmt: skip
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str, tmp_path: Path) -> None:
    remote = RemoteModel(endpoint, "photo", "1.0.0")
    with pytest.raises(LoadError, match="remote rung endpoint"):
        open_remote(remote, 1.0, make_release("1.0.0", LOCAL).signature)
    with pytest.raises(LoadError):
        LinkProber(SystemClock()).watch(frozenset({remote}))


def test_the_prober_sees_a_link_go_and_come_back(edge: Edge, tmp_path: Path) -> None:
    prober = LinkProber(SystemClock(), interval_s=0.05, timeout_s=0.2)
    prober.start()
    try:
        remote = RemoteModel(edge.endpoint, "photo", "1.0.0")
        stranger = RemoteModel(edge.endpoint, "unknown", "1.0.0")
        assert prober.read(remote) is None
        prober.watch(frozenset({remote, stranger}))

        def loss() -> float:
            reading = prober.read(remote)
            return -1.0 if reading is None else reading.loss_pct

        wait_for(lambda: loss() == 0.0, 5, "the first answers")
        reading = prober.read(remote)
        assert reading is not None
        assert reading.rtt_s is not None
        assert 0.0 < reading.rtt_s < 0.2
        # The server lives, but has no such model: no link for that rung.
        wait_for(lambda: prober.read(stranger), 5, "the other one's first answer")
        without = prober.read(stranger)
        assert without is not None
        assert without == LinkReading(None, 100.0, f"{edge.address} does not serve unknown")
        edge.stop()
        wait_for(lambda: loss() == 100.0, 10, "every probe to be lost")
        again = Edge(tmp_path / "again", int(edge.address.rpartition(":")[2]))
        wait_for(lambda: loss() == 0.0, 15, "the link to be good again")
        again.stop()
        prober.watch(frozenset())
        wait_for(lambda: prober.read(remote) is None, 5, "the endpoint to be forgotten")
    finally:
        prober.stop()
