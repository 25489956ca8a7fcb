"""The HTTP road on the wire: what it answers, what it refuses, and that it outlives its clients."""

import socket
import stat
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from agent.domain.probation import Trial, begin
from agent.errors import UnavailableError
from agent.serve import http_connection, http_infer, http_server, lanes
from agent.serve.desk import MAX_MESSAGE_BYTES
from agent.serve.http_answer import Answer
from agent.serve.http_server import HttpServer
from tests.support.http_api import PATH, HttpApi, binary_request, json_body, request
from tests.support.serving import make_release, products_for, scaled, slow, tensor
from tests.support.wait import wait_for

RUNGS = {"heavy": scaled(2.0), "light": scaled(3.0)}
LARGE = MAX_MESSAGE_BYTES + 1


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path_factory.mktemp("http"))
    made.bench.serve("1.0.0", RUNGS)
    yield made
    made.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path)
    yield made
    made.close()


# -- what it answers -------------------------------------------------------------------------------


def test_json_in_gives_json_out_with_version_and_rung(served: HttpApi) -> None:
    reply = served.ask("POST", PATH, json_body())
    assert reply.status == 200
    assert reply.json == {
        "model_name": "photo",
        "model_version": "1.0.0",
        "parameters": {"lighterman_version": "1.0.0", "lighterman_rung": "heavy"},
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2, 4, 6, 8]}],
    }
    assert reply.fields["content-type"] == "application/json"
    assert reply.fields["lighterman-version"] == "1.0.0"
    assert reply.fields["lighterman-rung"] == "heavy"


def test_binary_in_gives_binary_out_over_both_sockets(served: HttpApi) -> None:
    for address in (served.address, served.path):
        with served.wire(address) as wire:
            # Often enough that the quick way is taken as well.
            for _ in range(40):
                wire.send(binary_request())
                reply = wire.reply()
                assert memoryview(reply.raw).cast("f").tolist() == [2.0, 4.0, 6.0, 8.0]
                assert reply.json["outputs"][0]["parameters"] == {"binary_data_size": 16}
                assert reply.fields["content-type"] == "application/octet-stream"


def test_requests_come_in_one_piece_or_in_many_and_are_answered_in_order(served: HttpApi) -> None:
    with served.wire() as wire:
        wire.send(b"".join(request("POST", PATH, json_body(data=[i] * 4)) for i in range(60)))
        answers = [wire.reply().json["outputs"][0]["data"][0] for _ in range(60)]
        assert answers == [2.0 * i for i in range(60)]
        for byte in binary_request():
            wire.send(bytes([byte]))
        assert wire.reply().status == 200


def test_a_large_body_is_read_and_a_large_answer_sent(served: HttpApi) -> None:
    rows = 300_000
    data = bytes(tensor().data) * rows
    with served.wire() as wire:
        wire.send(binary_request(data=data, shape=[rows, 4]))
        assert len(wire.reply().raw) == len(data)
        wire.send(request("POST", PATH, json_body(shape=[3000, 4], data=[1, 2, 3, 4] * 3000)))
        assert wire.reply().json["outputs"][0]["data"] == [2, 4, 6, 8] * 3000


@pytest.mark.parametrize(
    ("method", "path", "status", "found"),
    [
        ("GET", "/v2", 200, {"name": "lighterman-agent", "version": "1.2.3"}),
        ("GET", "/v2/health/live", 200, {"live": True}),
        ("GET", "/v2/health/ready", 200, {"ready": True}),
        ("GET", "/v2/models/photo", 200, {"name": "photo", "versions": ["1.0.0"]}),
        ("GET", "/v2/models/ph%6fto/versions/1.0.0?x=1", 200, {"platform": "onnxruntime_onnx"}),
        ("GET", "/v2/models/photo/versions/2", 404, {}),
        ("GET", "/v2/models/photo/ready", 200, {"ready": True}),
        ("GET", "/v2/models/photo/versions/2/ready", 404, {}),
        ("GET", "/v2/models/other", 404, {}),
        ("GET", "/v2/models/other/ready", 404, {}),
        ("GET", "http://x/v2/models/photo/ready", 200, {"ready": True}),
        ("POST", "/v2/repository/models/photo/load", 403, {}),
        ("POST", "/v2/repository/models/photo/unload", 403, {}),
        ("POST", "/v2/models/other/infer", 404, {}),
        ("GET", PATH, 405, {}),
        ("DELETE", "/v2/models/photo", 405, {}),
        ("GET", "/", 404, {}),
        ("GET", "/v2/models/photo/nothing/at/all/here", 404, {}),
    ],
)
def test_every_path_says_what_it_knows(
    served: HttpApi, method: str, path: str, status: int, found: dict[str, Any]
) -> None:
    reply = served.ask(method, path, json_body() if path.endswith("infer") else b"")
    assert reply.status == status
    assert found.items() <= reply.json.items()
    assert status == 200 or reply.error


def test_head_tells_as_get_does_and_sends_no_body(served: HttpApi) -> None:
    """By a client that keeps the connection: a body would be taken for the next answer."""
    client = HTTPConnection(served.address, timeout=10)
    try:
        for path, status in (("/v2/health/live", 200), (PATH, 405), ("/nowhere", 404)):
            client.request("HEAD", path)
            reply = client.getresponse()
            assert (reply.status, reply.read()) == (status, b"")
            assert int(reply.headers["Content-Length"]) > 0
        client.request("GET", "/v2/health/live")
        assert client.getresponse().read() == b'{"live":true}'
    finally:
        client.close()


def test_an_answer_that_cannot_be_sent_keeps_nobody_else_waiting(
    api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.bench.serve("1.0.0", RUNGS)

    def no_memory(answer: Answer, keep_alive: bool) -> list[Any]:
        raise MemoryError

    with api.wire() as wire, monkeypatch.context() as patched:
        patched.setattr(Answer, "render", no_memory)
        wire.send(request("POST", PATH, json_body()))
        assert wire.ended()
    assert api.good().status == 200


def test_the_index_and_statistics_tell_what_was_asked(api: HttpApi) -> None:
    assert api.ask("GET", "/v2/health/ready").status == 503
    assert api.ask("POST", "/v2/repository/index").json == []
    api.bench.serve("1.0.0", RUNGS, off=True)
    for _ in range(3):
        api.good()
    assert api.ask("POST", PATH, json_body(name="z")).status == 400
    (stats,) = api.ask("GET", "/v2/models/photo/versions/1.0.0/stats").json["model_stats"]
    assert (stats["version"], stats["inference_count"], stats["execution_count"]) == ("1.0.0", 3, 3)
    found = stats["inference_stats"]
    assert (found["success"]["count"], found["fail"]["count"]) == (3, 1)
    assert 0 < found["compute_infer"]["ns"] < found["success"]["ns"]
    assert api.ask("GET", "/v2/models/stats").json["model_stats"] == [stats]
    assert api.grpc.requests() == {("photo", "ok"): 3, ("photo", "invalid"): 1}
    api.bench.host.set_rung("photo", "off")
    (entry,) = api.ask("POST", "/v2/repository/index").json
    assert (entry["state"], entry["version"]) == ("UNAVAILABLE", "1.0.0")
    assert "switched off" in entry["reason"]
    assert api.ask("POST", "/v2/repository/index", b'{"ready": true}').json == []
    ready = api.ask("GET", "/v2/models/photo/ready")
    assert (ready.status, ready.json["ready"]) == (503, False)
    off = api.good()
    assert (off.status, off.fields["retry-after"]) == (503, "1")


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("POST", PATH, json_body(shape=[-1, 4])), 400),
        (request("POST", PATH, json_body(shape=[2**62, 4])), 400),
        (request("POST", PATH, json_body(data=[1, 2])), 400),
        (request("POST", PATH, json_body(datatype="FP64")), 400),
        (request("POST", PATH, json_body(), Inference_Header_Content_Length="9999"), 400),
        (request("POST", PATH, json_body(), Inference_Header_Content_Length="3"), 400),
        (binary_request(data=b"abc"), 400),
        (binary_request(shape=[2, 4]), 400),
        (request("POST", PATH, json_body(), Content_Encoding="br"), 415),
        (request("POST", PATH, json_body(), Content_Encoding="gzip"), 400),
    ],
)
def test_a_wrong_request_costs_its_connection_nothing(
    served: HttpApi, data: bytes, status: int
) -> None:
    with served.wire() as wire:
        wire.send(data)
        reply = wire.reply()
        assert (reply.status, bool(reply.error)) == (status, True)
        wire.send(binary_request())
        assert wire.reply().status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (request("POST", PATH, json_body(), Inference_Header_Content_Length="-3"), 400),
        (request("POST", PATH, json_body(), Inference_Header_Content_Length="1" * 30), 400),
        (request("POST", PATH, Content_Length="-1"), 400),
        (request("POST", PATH, Content_Length="5x"), 400),
        (request("POST", PATH, Content_Length=str(LARGE)), 413),
        (request("POST", PATH, Content_Length=str(LARGE), Expect="100-continue"), 413),
        (request("POST", PATH, Content_Length="9" * 25), 400),
        (request("POST", PATH, Transfer_Encoding="chunked"), 400),
        (f"POST {PATH} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode(), 411),
        (request("POST", PATH, Expect="miracles"), 417),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 4000, 431),
    ],
)
def test_what_has_no_clear_end_is_told_and_ended(served: HttpApi, data: bytes, status: int) -> None:
    with served.wire() as wire:
        # The rest of a body that is not wanted comes all the same.
        wire.send(data + b"z" * 200_000)
        reply = wire.reply()
        assert (reply.status, bool(reply.error)) == (status, True)
        assert reply.fields["connection"] == "close"
        assert wire.ended()
    assert served.good().status == 200


def test_a_client_that_asks_first_is_told_to_go_on(served: HttpApi) -> None:
    whole = binary_request()
    head, _, body = whole.partition(b"\r\n\r\n")
    with served.wire() as wire:
        wire.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert wire.reply().status == 100
        wire.send(body)
        assert wire.reply().status == 200


def test_http_1_0_and_close_end_the_connection(served: HttpApi) -> None:
    for data in (
        b"GET /v2 HTTP/1.0\r\n\r\n",
        request("GET", "/v2", Connection="close") + request("GET", "/v2"),
    ):
        with served.wire() as wire:
            wire.send(data)
            assert wire.reply().status == 200
            assert wire.ended()


def test_slow_clients_have_a_deadline(api: HttpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_S", 0.2)
    monkeypatch.setattr(http_connection, "BODY_S", 0.2)
    monkeypatch.setattr(http_connection, "LINGER_S", 0.2)
    for part in (b"GET / HT", request("POST", PATH, json_body())[:-1]):
        with api.wire() as wire:
            wire.send(part)
            assert wire.reply().status == 408
            assert wire.ended()
    monkeypatch.setattr(http_connection, "IDLE_S", 0.2)
    with api.wire() as wire:
        assert wire.ended()


def test_a_client_that_does_not_read_is_left(api: HttpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.bench.serve("1.0.0", RUNGS)
    monkeypatch.setattr(http_connection, "SEND_S", 0.2)
    rows = 1_000_000  # more than both sockets hold
    with api.wire() as wire:
        wire.send(binary_request(data=bytes(16 * rows), shape=[rows, 4]))
        wait_for(lambda: api.grpc.requests().get(("photo", "ok")), 20, "the inference")
        wait_for(lambda: not api.server.connections(), 20, "the connection to be ended")
    assert api.good().status == 200


def test_half_closed_sockets_are_answered_or_ended(served: HttpApi) -> None:
    for part, answered in (
        (binary_request(), True),
        (binary_request()[:-1], False),
        (b"GET /v", False),
        (b"", False),
    ):
        with served.wire() as wire:
            wire.send(part)
            wire.socket.shutdown(socket.SHUT_WR)
            if answered:
                assert wire.reply().status == 200
            assert wire.ended()


def test_who_hangs_up_leaves_the_queue(api: HttpApi) -> None:
    api.bench.serve("1.0.0", {"heavy": slow(2.0, products_for(0.05))}, slow_threshold_ms=60_000)
    gate = threading.Event()
    behind = [api.wire() for _ in range(8)]
    with api.wire() as first:
        first.send(binary_request())
        wires = [one.__enter__() for one in behind]
        for wire in wires:
            wire.send(binary_request())
        wait_for(lambda: api.bench.host.queues()["photo"][0] >= 5, 20, "a queue")
        for one in behind:
            one.__exit__(None, None, None)
        assert first.reply().status == 200
    wait_for(lambda: not api.bench.host.queues()["photo"][0], 20, "the queue to be empty")
    assert not gate.is_set()
    assert api.good().status == 200
    # Those that had begun were answered to nobody; the others were never inferred.
    assert api.grpc.requests()["photo", "ok"] < 8


def test_a_full_queue_says_when_to_come_again(
    api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MOST_WAITING", 2)
    api.bench.serve("1.0.0", {"heavy": slow(2.0, products_for(0.05))}, slow_threshold_ms=60_000)
    wires = [api.wire() for _ in range(12)]
    opened = [one.__enter__() for one in wires]
    for wire in opened:
        wire.send(binary_request())
    replies = [wire.reply() for wire in opened]
    for one in wires:
        one.__exit__(None, None, None)
    busy = [reply for reply in replies if reply.status == 429]
    assert {reply.status for reply in replies} == {200, 429}
    assert all(int(reply.fields["retry-after"]) >= 1 for reply in busy)
    assert "requests wait for model photo already" in busy[0].error
    assert api.grpc.requests()["photo", "unavailable"] == len(busy)


def test_idle_connections_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MOST_CONNECTIONS", 20)
    api = HttpApi(tmp_path)
    try:
        api.bench.serve("1.0.0", RUNGS)
        with api.wire() as used:
            idle = [api.wire() for _ in range(60)]
            opened = [one.__enter__() for one in idle]
            opened[-1].send(b"GET /v2 HTT")  # half a head is idle, too
            # It was the first to come, and idle: it had to go.
            assert used.ended()
            for _ in range(20):
                assert api.good().status == 200
            assert api.server.connections() <= 20
            for one in idle:
                one.__exit__(None, None, None)
    finally:
        api.close()


def test_when_all_are_busy_a_newcomer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "MOST_CONNECTIONS", 2)
    api = HttpApi(tmp_path)
    try:
        api.bench.serve("1.0.0", RUNGS)
        with api.wire() as first, api.wire() as second:
            for wire in (first, second):
                wire.send(request("POST", PATH, json_body(), Expect="100-continue")[:-1])
                assert wire.reply().status == 100
            with api.wire() as third:
                reply = third.reply()
                assert (reply.status, reply.fields["retry-after"]) == (503, "1")
                assert third.ended()
            first.send(b"}")
            assert first.reply().status == 200
    finally:
        api.close()


def test_bodies_together_have_a_bound(api: HttpApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MOST_BODIES_BYTES", 1000)
    api.bench.serve("1.0.0", RUNGS)
    with api.wire() as first:
        first.send(request("POST", PATH, Content_Length="900", Expect="100-continue"))
        assert first.reply().status == 100
        with api.wire() as second:
            second.send(request("POST", PATH, Content_Length="900") + b"z")
            reply = second.reply()
            assert (reply.status, "large requests" in reply.error) == (503, True)
    wait_for(lambda: not api.server.connections(), 10, "both to be gone")
    with api.wire() as third:
        third.send(request("POST", PATH, b"z" * 900))
        assert third.reply().status == 400


def test_a_fault_of_the_agent_is_an_answer_too(
    served: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served.wire() as wire, monkeypatch.context() as broken:
        broken.setattr(served.grpc.desk, "index", lambda: 1 / 0)
        wire.send(request("POST", "/v2/repository/index"))
        reply = wire.reply()
        assert (reply.status, "ZeroDivisionError" in reply.error) == (500, True)
        broken.undo()
        wire.send(request("POST", "/v2/repository/index"))
        assert wire.reply().status == 200


# -- beginning and end -----------------------------------------------------------------------------


def test_the_unix_socket_has_its_permissions_and_is_removed(tmp_path: Path) -> None:
    api = HttpApi(tmp_path)
    path = Path(api.path)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for taken, story in ((path, "belongs to another process"), (tmp_path, "is no socket")):
            with pytest.raises(UnavailableError, match=story):
                HttpServer(api.grpc.desk, None, taken).start()
        with pytest.raises(UnavailableError, match="too long"):
            HttpServer(api.grpc.desk, None, tmp_path / ("x" * 108)).start()
        assert api.ask("GET", "/v2").status == 200
    finally:
        api.close()
    assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []


def test_the_socket_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "sock"))
    left.close()
    api = HttpApi(tmp_path)
    try:
        with api.wire(api.path) as wire:
            wire.send(request("GET", "/v2/health/live"))
            assert wire.reply().json == {"live": True}
    finally:
        api.close()


def test_a_taken_port_is_named(served: HttpApi) -> None:
    with pytest.raises(UnavailableError) as caught:
        HttpServer(served.grpc.desk, served.address).start()
    assert str(caught.value).startswith(f"cannot listen on {served.address}: address already")
    assert "LIGHTERMAN_SERVE_HTTP" in str(caught.value)


def test_the_end_waits_for_answers_and_takes_no_new_requests(tmp_path: Path) -> None:
    api = HttpApi(tmp_path)
    api.bench.serve("1.0.0", {"heavy": slow(2.0, products_for(0.3))}, slow_threshold_ms=60_000)
    with api.wire() as busy, api.wire() as idle:
        idle.send(request("GET", "/v2"))
        assert idle.reply().status == 200
        busy.send(binary_request())
        wait_for(lambda: api.bench.host.longest() is not None, 20, "the inference to begin")
        ending = threading.Thread(target=api.server.stop, args=(20.0,))
        ending.start()
        assert busy.reply().status == 200
        assert busy.ended()
        assert idle.ended()
        ending.join(20)
        assert not ending.is_alive()
        with pytest.raises(OSError, match="refused"):
            api.wire().__enter__()
    api.close()


def test_swaps_under_load_fail_no_request(api: HttpApi) -> None:
    factors = {"1.0.0": 2.0, "1.1.0": 3.0}
    rungs = {v: {"heavy": scaled(f), "light": scaled(f)} for v, f in factors.items()}
    made = {v: make_release(v, rungs[v]) for v in factors}
    api.bench.serve("1.0.0", rungs["1.0.0"])
    stop = threading.Event()
    seen: list[tuple[int, str, float]] = []

    def ask() -> None:
        with api.wire() as wire:
            while not stop.is_set():
                wire.send(binary_request(data=bytes(tensor(1.0, 1.0, 1.0, 1.0).data)))
                reply = wire.reply()
                value = memoryview(reply.raw).cast("f")[0] if reply.status == 200 else 0.0
                seen.append((reply.status, reply.fields.get("lighterman-version", ""), value))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    now = "1.0.0"
    for _ in range(60):
        then = "1.1.0" if now == "1.0.0" else "1.0.0"
        api.bench.host.load(made[then], api.bench.paths(rungs[then]))
        api.bench.host.warm("photo", made[then].slot_id)
        row = begin(api.bench.clock.monotonic())
        api.bench.host.swap("photo", made[then].slot_id, Trial.COMMITTED, row, None)
        asked = len(seen)
        wait_for(lambda asked=asked: len(seen) > asked + 4, 20, "answers between swaps")  # type: ignore[misc]
        api.bench.host.unload("photo", made[now].slot_id)
        now = then
    stop.set()
    for thread in threads:
        thread.join(20)
    assert set(seen) == {(200, "1.0.0", 2.0), (200, "1.1.0", 3.0)}


def test_wild_bytes_end_only_their_own_connection(served: HttpApi) -> None:
    from random import Random

    random = Random("http")
    good = binary_request()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(random.randint(1, 6)):
            at = random.randrange(len(data))
            data[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
        with served.wire() as wire:
            wire.send(bytes(data))
            wire.socket.shutdown(socket.SHUT_WR)
            while wire.socket.recv(1 << 16):
                pass
    assert served.good().status == 200
    assert served.bench.decisions == []


def test_negative_control_without_a_deadline_a_slow_client_stays(
    api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "HEAD_S", 0.2)
    monkeypatch.setattr(http_connection.Connection, "expire", lambda self: None)
    with api.wire() as wire, api.wire() as other:
        wire.send(b"GET /v")
        wire.socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            wire.reply()
        other.send(request("GET", "/v2"))
        assert other.reply().status == 200


@pytest.mark.parametrize("failure", [MemoryError, SystemExit, RecursionError])
def test_a_lane_outlives_whatever_ends_its_work(
    api: HttpApi, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    api.bench.serve("1.0.0", RUNGS)
    large = json_body(data=[1.0] * 20_000)

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(http_infer, "read_request", fail)
        for _ in range(2):
            reply = api.ask("POST", PATH, large)
            assert reply.status == 500
            assert "this agent" in reply.error
    assert api.ask("POST", PATH, large).status == 400  # its turn comes: four values were wanted
    assert api.grpc.requests() == {("photo", "failed"): 2, ("photo", "invalid"): 1}


def test_a_lane_goes_on_when_an_answer_cannot_be_handed_on(
    api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda said: told.append(said.exc_value))
    got: list[str] = []

    def finished(_: lanes.Ticket, answer: str) -> None:
        if answer == "bad":
            raise MemoryError
        got.append(answer)

    lane: lanes.Lanes[str] = lanes.Lanes(api.bench.clock, finished)
    lane.offer("photo", 1, lanes.Item(lanes.Ticket(), lambda: "bad"))
    lane.offer("photo", 1, lanes.Item(lanes.Ticket(), lambda: "good"))
    wait_for(lambda: got, 20, "the answer after the one that failed")
    lane.stop()
    assert got == ["good"]
    assert [type(one) for one in told] == [MemoryError]
