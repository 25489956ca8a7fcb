"""The doctor asks both inference roads a real question: a port that is open proves nothing."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.doctor_serve import Silence, ask_grpc, ask_http, look_at_http
from agent.finding import Verdict
from agent.serve.http2.server import GrpcServer
from examples.fleet.ports import free_port
from tests.support.http_api import HttpApi

STUCK = "takes connections and gives no answer in 1 s"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[HttpApi]:
    opened = HttpApi(tmp_path)
    yield opened
    opened.close()


def text(silence: Silence | None) -> str:
    return silence.text if silence else "answers"


def test_negative_control_roads_that_answer(api: HttpApi) -> None:
    assert (text(ask_grpc(api.grpc_address)), text(ask_http(api.address))) == ("answers", "answers")
    assert look_at_http(api.address).verdict is Verdict.OK


def test_a_reading_thread_that_is_stuck_is_found(
    api: HttpApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    monkeypatch.setattr(GrpcServer, "_serve_asked", lambda _: free.wait())
    try:
        assert text(ask_grpc(api.grpc_address, 1.0)) == f"{api.grpc_address} {STUCK}"
    finally:
        free.set()


def test_who_takes_connections_and_says_nothing_is_found_on_both_roads() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert text(ask_grpc(address, 1.0)) == f"{address} {STUCK}"
        assert text(ask_http(address, 1.0)) == f"{address} {STUCK}"


def test_a_closed_port_and_another_program_are_told_apart(api: HttpApi) -> None:
    closed = f"127.0.0.1:{free_port()}"
    assert text(ask_grpc(closed)) == text(ask_http(closed)) == f"nothing listens on {closed}"
    assert text(ask_grpc(api.address)).startswith("another program than the agent answers on")
    assert text(ask_http(api.grpc_address)).startswith("another program than the agent answers on")
    assert look_at_http("").verdict is Verdict.NOTE
