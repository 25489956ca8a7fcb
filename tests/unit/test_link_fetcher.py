"""Downloads go on at the byte where they were cut, are never too long, and never too slow."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from agent.domain.desired import Target
from agent.errors import DigestMismatchError, FetchError
from agent.link.authority import Endpoint
from agent.link.channel import Credentials
from agent.link.client import ControllerClient
from agent.link.fetcher import BlobFetcher
from agent.store.slots import FileSlots
from tests.support.link_server import LinkServer, Trust

DATA = random.Random(7).randbytes(50_000)


@pytest.fixture
def server() -> Iterator[LinkServer]:
    made = LinkServer(Trust.create())
    yield made
    made.stop()


@pytest.fixture
def client(server: LinkServer) -> Iterator[ControllerClient]:
    trust = server.trust
    device = trust.device("dev-1")
    made = ControllerClient(
        Endpoint("127.0.0.1", server.port),
        Credentials(trust.authority.certificate_pem, device.issued.pem, device.key_pem),
    )
    yield made
    made.close()


def target_of(server: LinkServer, data: bytes = DATA) -> Target:
    return Target(server.add_blob(data), len(data), "application/onnx")


def test_a_file_comes_whole(server: LinkServer, client: ControllerClient) -> None:
    target = target_of(server)
    assert b"".join(BlobFetcher(client).fetch(target, 0)) == DATA


@pytest.mark.parametrize("offset", [1, 4095, 4096, 4097, 49_999, 50_000])
def test_a_file_comes_from_any_byte(
    server: LinkServer, client: ControllerClient, offset: int
) -> None:
    target = target_of(server)
    assert b"".join(BlobFetcher(client).fetch(target, offset)) == DATA[offset:]


def test_cut_again_and_again_it_goes_on_at_the_byte(
    server: LinkServer, client: ControllerClient, tmp_path: Path
) -> None:
    target = target_of(server)
    store = FileSlots(tmp_path)
    cuts = random.Random(3)
    for _ in range(200):
        server.script.cut_after = cuts.randrange(1, 3000)
        at = store.partial_bytes(target.digest)
        if at == target.length:
            break
        with contextlib.suppress(FetchError):
            store.receive(target, BlobFetcher(client).fetch(target, at))
    store.finish(target)
    assert Path(store.path(target.digest)).read_bytes() == DATA
    offsets = [offset for _, offset in server.script.fetched]
    assert offsets == sorted(set(offsets)), "no byte was fetched twice"


def test_a_stalled_download_is_cut(server: LinkServer, client: ControllerClient) -> None:
    target = target_of(server)
    server.script.stall_after = 8192
    fetcher = BlobFetcher(client, min_rate_bytes_s=1000, stall_s=0.2)
    with pytest.raises(FetchError, match="slower than 1,000 bytes/s") as caught:
        list(fetcher.fetch(target, 0))
    assert caught.value.retryable


def test_a_file_of_another_length_is_refused(server: LinkServer, client: ControllerClient) -> None:
    target = Target(server.add_blob(DATA), len(DATA) - 10, "application/onnx")
    with pytest.raises(FetchError, match="another file") as caught:
        list(BlobFetcher(client).fetch(target, 0))
    assert not caught.value.retryable


def test_other_bytes_of_the_right_length_do_not_enter_the_store(
    server: LinkServer, client: ControllerClient, tmp_path: Path
) -> None:
    target = target_of(server)
    server.script.blobs[target.digest] = bytes(len(DATA))
    store = FileSlots(tmp_path)
    store.receive(target, BlobFetcher(client).fetch(target, 0))
    with pytest.raises(DigestMismatchError):
        store.finish(target)
    assert not store.has(target.digest)


def test_a_refusal_is_final_and_absence_is_not(
    server: LinkServer, client: ControllerClient
) -> None:
    target = target_of(server)
    server.script.fail["FetchBlob"] = (grpc.StatusCode.PERMISSION_DENIED, "not yours")
    with pytest.raises(FetchError, match="not yours") as caught:
        list(BlobFetcher(client).fetch(target, 0))
    assert not caught.value.retryable
    server.stop()
    with pytest.raises(FetchError) as caught:
        list(BlobFetcher(client).fetch(target, 0))
    assert caught.value.retryable
