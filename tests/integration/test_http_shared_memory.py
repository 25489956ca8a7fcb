"""Shared memory of clients: what is taken, and that what is not is said and harms nobody."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.domain.tensor import DType
from agent.errors import RequestError, UnknownModelError
from agent.serve import shared_memory
from agent.serve.errors import RefusedError
from agent.serve.shared_memory import Place, Regions, SharedInput
from tests.support.http_api import PATH, HttpApi, request
from tests.support.serving import scaled, tensor

DATA = bytes(tensor().data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stands for /dev/shm: regions are files there, too."""
    (tmp_path / "camera").write_bytes(DATA + bytes(16))
    return tmp_path


def taken(folder: Path, name: str = "r", key: str = "/camera", **place: int) -> Regions:
    regions = Regions(True, folder)
    regions.register(name, key, place.get("offset", 0), place.get("size", 32))
    return regions


def shared(region: str = "r", offset: int = 0, size: int = 16) -> SharedInput:
    return SharedInput("x", DType.FP32, (1, 4), Place(region, offset, size))


def test_an_input_is_read_when_asked_and_an_output_written(folder: Path) -> None:
    regions = taken(folder)
    assert regions.read(shared()).data == DATA
    assert regions.write("y", Place("r", 16, 16), memoryview(DATA)) == 16
    assert (folder / "camera").read_bytes() == DATA + DATA
    assert regions.write("y", Place("r", 16, 16), b"") == 0
    assert [(one.key, one.size) for one in regions.status()] == [("/camera", 32)]
    inner = taken(folder, offset=16, size=16)
    assert inner.read(shared(offset=8, size=8)).data == DATA[8:]


def open_files(path: Path) -> int:
    """How often this process has it open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += entry.readlink() == path
    return found


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "/..", "../camera", "/a/b", "//camera", "/camera/", "a\0b", "~", "x" * 251,
     "/etc/passwd", "%2e%2e", "camera\n"],
)  # fmt: skip
def test_only_names_of_shared_memory_are_taken(folder: Path, key: str) -> None:
    with pytest.raises(RequestError, match="is no name of POSIX shared memory"):
        taken(folder, key=key)


def test_links_folders_pipes_and_sockets_are_no_regions(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_bytes(bytes(64))
    (folder / "link").symlink_to(secret)
    (folder / "hard").hardlink_to(secret)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.close()
    for key in ("link", "hard", "folder", "pipe", "socket"):
        with pytest.raises(RequestError, match=r"cannot be opened|no memory of its own"):
            taken(folder, key=key)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_memory_of_other_users_is_theirs_unless_they_share_it(folder: Path) -> None:
    path = folder / "camera"
    os.chown(path, 12345, 12345)
    for mode, is_taken in ((0o600, False), (0o660, False), (0o604, False), (0o666, True)):
        path.chmod(mode)
        if is_taken:
            taken(folder)
        else:
            with pytest.raises(RequestError, match="belongs to user 12345"):
                taken(folder)
    os.chown(path, 12345, os.getegid())
    path.chmod(0o660)
    taken(folder)


@pytest.mark.parametrize(
    ("place", "story"),
    [
        ({"size": 0}, "has no place"),
        ({"offset": -1}, "has no place"),
        ({"size": -1}, "has no place"),
        ({"size": 33}, "has shrunk to 32 bytes, 33 were registered"),
        ({"offset": 1}, "33 were registered"),
        ({"offset": 2**62, "size": 2**62}, "were registered"),
    ],
)
def test_places_outside_of_the_memory_are_refused(
    folder: Path, place: dict[str, int], story: str
) -> None:
    with pytest.raises(RequestError, match=story):
        Regions(True, folder).register(
            "r", "/camera", place.get("offset", 0), place.get("size", 32)
        )


def test_tensors_outside_of_their_region_are_refused(folder: Path) -> None:
    regions = taken(folder)
    for offset, size in ((17, 16), (0, 33), (-1, 4), (0, -1), (2**62, 2**62)):
        with pytest.raises(RequestError, match="are not inside region 'r' of 32 bytes"):
            regions.read(shared(offset=offset, size=size))
    with pytest.raises(RequestError, match="'other' is not registered"):
        regions.read(shared("other"))
    with pytest.raises(RequestError, match="has 16 bytes, its place 8"):
        regions.write("y", Place("r", 0, 8), DATA)
    with pytest.raises(UnknownModelError):
        regions.status("other")


def test_memory_that_shrinks_or_goes_is_told_and_ends_nothing(folder: Path) -> None:
    regions = taken(folder)
    path = folder / "camera"
    os.truncate(path, 8)
    with pytest.raises(RequestError, match="has shrunk to 8 bytes"):
        regions.read(shared())
    with pytest.raises(RequestError, match="has shrunk"):
        regions.write("y", Place("r", 0, 16), DATA)
    assert path.stat().st_size == 8
    os.truncate(path, 32)
    regions.read(shared())
    path.unlink()
    with pytest.raises(RequestError, match="was removed"):
        regions.read(shared())
    # Whoever starts anew under the same name is not held up by what is left of the one before.
    path.write_bytes(DATA * 2)
    regions.register("r", "/camera", 0, 32)
    assert regions.read(shared()).data == DATA


def test_a_name_is_taken_once_and_there_is_a_most(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "MOST_REGIONS", 2)
    regions = taken(folder)
    with pytest.raises(RequestError, match="registered already"):
        regions.register("r", "/camera", 0, 32)
    regions.register("s", "/camera", 0, 32)
    with pytest.raises(RequestError, match="2 regions are registered"):
        regions.register("t", "/camera", 0, 32)
    regions.unregister("s")
    regions.register("t", "/camera", 0, 32)
    assert open_files(folder / "camera") == 2
    regions.unregister()
    assert open_files(folder / "camera") == 0


def test_nothing_of_it_works_unless_it_is_switched_on(folder: Path) -> None:
    regions = Regions(False, folder)
    for call in (
        lambda: regions.register("r", "/camera", 0, 32),
        lambda: regions.read(shared()),
        lambda: regions.status(),
        lambda: regions.unregister(),
    ):
        with pytest.raises(RefusedError, match=r"serve\.shared_memory"):
            call()


# -- on the wire -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    made = HttpApi(tmp_path_factory.mktemp("shm"))
    made.bench.serve("1.0.0", {"heavy": scaled(2.0), "light": scaled(3.0)})
    yield made
    made.close()


@contextmanager
def memory(name: str, data: bytes) -> Iterator[Path]:
    path = Path("/dev/shm") / name
    path.write_bytes(data)
    path.chmod(0o600)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def asking(input_: dict[str, Any], output: dict[str, Any]) -> bytes:
    given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": input_}
    body = {"inputs": [given], "outputs": [{"name": "y", "parameters": output}]}
    return request("POST", PATH, json.dumps(body).encode())


def piece(region: Any, size: Any = 16, offset: Any = 0) -> dict[str, Any]:
    return {
        "shared_memory_region": region,
        "shared_memory_byte_size": size,
        "shared_memory_offset": offset,
    }


def test_pictures_go_through_memory_and_wrong_ones_cost_the_connection_nothing(
    api: HttpApi,
) -> None:
    key = f"lighterman-test-{os.getpid()}"
    where = f"/v2/systemsharedmemory/region/{key}"
    with memory(key, DATA * 2) as path, api.wire() as wire:
        asked = json.dumps({"key": f"/{key}", "byte_size": 32}).encode()
        wire.send(request("POST", f"{where}/register", asked))
        assert wire.reply().status == 200
        for _ in range(20):
            path.write_bytes(DATA + bytes(16))
            wire.send(asking(piece(key), piece(key, 16, 16)))
            reply = wire.reply()
            assert reply.json["outputs"][0]["parameters"] == piece(key, 16, 16)
            assert memoryview(path.read_bytes())[16:].cast("f").tolist() == [2.0, 4.0, 6.0, 8.0]
        for input_, output, story in (
            (piece("other"), {}, "'other' is not registered"),
            (piece(key, 33), {}, "not inside region"),
            (piece(key, 8), {}, "has 8 bytes"),
            (piece(key, 2**40), {}, "are more than the"),
            (piece(key, "16"), {}, "needs a region's name"),
            (piece(7), {}, "needs a region's name"),
            ({**piece(key), "binary_data_size": 16}, {}, "in shared memory and in the request"),
            (piece(key), piece(key, 8), "has 16 bytes, its place 8"),
            (piece(key), piece("other"), "output 'y': shared memory region 'other'"),
        ):
            wire.send(asking(input_, output))
            reply = wire.reply()
            assert (reply.status, story in reply.error) == (400, True), reply
        path.unlink()
        wire.send(asking(piece(key), {}))
        assert "was removed" in wire.reply().error
        wire.send(request("POST", f"{where}/unregister"))
        assert wire.reply().status == 200
    assert api.bench.decisions == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"key": "/x"}', 400),
        (b'{"key": "/x", "byte_size": "1"}', 400),
        (b'{"key": "/x", "byte_size": true}', 400),
        (b'{"key": "/x", "byte_size": 1, "offset": 0.5}', 400),
        (b'{"key": "/../etc/passwd", "byte_size": 1}', 400),
        (b'{"key": "/surely-absent", "byte_size": 1}', 400),
    ],
)
def test_a_wrong_registration_is_told(api: HttpApi, body: bytes, status: int) -> None:
    reply = api.ask("POST", "/v2/systemsharedmemory/region/r/register", body)
    assert (reply.status, bool(reply.error)) == (status, True)


def test_the_status_of_regions_is_told(api: HttpApi) -> None:
    assert api.ask("GET", "/v2/systemsharedmemory/status").json == []
    assert api.ask("GET", "/v2/systemsharedmemory/region/r/status").status == 404
    assert api.ask("POST", "/v2/systemsharedmemory/unregister").status == 200
    assert api.ask("GET", "/v2/systemsharedmemory/region/r/register").status == 405
