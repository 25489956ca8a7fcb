"""Two controllers on one machine: neither takes the other's context for fleetctl away."""

import socket
from pathlib import Path

from controller.app_identity import ContextFile, read_context, register_context


def context(controller: str, ca: bytes) -> ContextFile:
    return ContextFile("local", controller, ca, b"certificate", b"key", "default")


def current(folder: Path) -> str:
    return (folder / "current").read_text().strip()


def test_a_second_controller_takes_a_name_of_its_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = context(f"127.0.0.1:{listener.getsockname()[1]}", b"first")
        second = context("127.0.0.1:1", b"second")
        assert register_context(tmp_path, first) == "local"
        assert register_context(tmp_path, second) == "local-2"
        assert register_context(tmp_path, second) == "local-2", "the same one again"
        assert current(tmp_path) == "local"
        kept = read_context(tmp_path / "contexts" / "local.json")
        assert kept is not None
        assert kept.ca_pem == b"first"
        named = read_context(tmp_path / "contexts" / "local-2.json")
        assert named is not None
        assert (named.name, named.ca_pem) == ("local-2", b"second")


def test_one_that_is_gone_is_replaced(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = context(f"127.0.0.1:{listener.getsockname()[1]}", b"first")
    register_context(tmp_path, gone)
    assert register_context(tmp_path, context("127.0.0.1:1", b"second")) == "local"
    assert current(tmp_path) == "local"


def test_damaged_and_strange_contexts_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "contexts").mkdir()
    (tmp_path / "contexts" / "local.json").write_text("{")
    (tmp_path / "current").write_bytes(b"\xff")
    assert register_context(tmp_path, context("no address", b"first")) == "local"
    assert register_context(tmp_path, context("127.0.0.1:1", b"second")) == "local"
    assert current(tmp_path) == "local"
