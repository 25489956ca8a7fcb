"""A revocation is felt at once: by calls, by calls that go on, and by sessions of the broker."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.services.operators import issue_identity, revoke_operator
from lighterman.v1 import fleet_pb2, fleet_pb2_grpc
from tests.support.gateway import Context, Mqtt, Running, channel, client_context, running
from tests.support.wait import wait_for


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("revoked")) as started:
        yield started


def issued(home: Running, name: str, role: str, **more: Any) -> Context:
    made = issue_identity(home.deps, home.ctx(), name, role, **more)
    return Context(home.listening.grpc, made.ca_pem, made.certificate_pem, made.key_pem)


def stub(home: Running, context: Context) -> Any:
    return fleet_pb2_grpc.FleetServiceStub(home.keep(channel(context)))


class Tail:
    """Somebody who follows events; `code` is what ended it."""

    def __init__(self, fleet: Any) -> None:
        self.call = fleet.TailEvents(fleet_pb2.ListEventsRequest(kinds=["nothing_such"]))
        self.code: grpc.StatusCode | None = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            self.code = self.call.code()


def test_a_revoked_operator_is_out_at_once_and_others_stay(home: Running) -> None:
    ana, bea = (stub(home, issued(home, name, "operator")) for name in ("ana", "bea"))
    tails = {"ana": Tail(ana), "bea": Tail(bea)}
    for fleet in (ana, bea):
        fleet.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    revoke_operator(home.deps, home.ctx(), "ana", "lost laptop")
    with pytest.raises(grpc.RpcError) as caught:
        ana.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "lost laptop" in caught.value.details()
    wait_for(lambda: tails["ana"].code is not None, 20, "the tail of ana to end")
    assert tails["ana"].code is grpc.StatusCode.CANCELLED
    assert tails["bea"].code is None
    bea.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    again = stub(home, issued(home, "ana", "operator", again=True, revived=True))
    again.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    with pytest.raises(grpc.RpcError):  # the old certificate stays revoked
        ana.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    tails["bea"].call.cancel()


def test_a_revoked_consumer_is_kicked_and_stays_out(home: Running, tmp_path: Path) -> None:
    port = int(home.listening.mqtt.rpartition(":")[2])
    contexts = {name: issued(home, name, "consumer") for name in ("dash", "board")}
    clients: dict[str, Mqtt] = {}

    def joined(name: str) -> bool:
        client = Mqtt(client_context(tmp_path, contexts[name]))
        clients[name] = client
        return client.open(port)

    for name in contexts:
        assert joined(name)
    revoke_operator(home.deps, home.ctx(), "dash")
    wait_for(clients["dash"].lost.is_set, 20, "the session of dash to end")
    assert not clients["board"].lost.is_set()
    assert not joined("dash")
    clients["board"].close()
    assert joined("board")
    clients["board"].close()


def test_negative_control_a_revocation_without_the_kick_leaves_the_session(
    home: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from controller.mqtt.doorbells import Doorbells

    seen: list[str] = []
    monkeypatch.setattr(Doorbells, "kick", lambda _self, name: seen.append(name) is None)
    port = int(home.listening.mqtt.rpartition(":")[2])
    context = issued(home, "ticker", "consumer")
    client = Mqtt(client_context(tmp_path, context))
    assert client.open(port)
    revoke_operator(home.deps, home.ctx(), "ticker")
    wait_for(lambda: "ticker" in seen, 20, "the kick that does nothing")
    assert not client.lost.is_set()
    client.close()
