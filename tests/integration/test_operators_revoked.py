"""A revocation is felt at once: by calls, by calls that go on, and by sessions of the broker."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.services.operators import issue_identity, revoke_operator
from lighterman.v1 import fleet_pb2, fleet_pb2_grpc
from tests.support.gateway import (
    Context,
    Mqtt,
    Running,
    channel,
    client_context,
    read_context,
    running,
)
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
        self.call = fleet.TailEvents(fleet_pb2.ListEventsRequest(kinds=["store_repaired"]))
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
    assert "lost laptop" in str(caught.value.details())
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

    def kick(_self: Doorbells, name: str) -> bool:
        seen.append(name)
        return True

    monkeypatch.setattr(Doorbells, "kick", kick)
    port = int(home.listening.mqtt.rpartition(":")[2])
    context = issued(home, "ticker", "consumer")
    client = Mqtt(client_context(tmp_path, context))
    assert client.open(port)
    revoke_operator(home.deps, home.ctx(), "ticker")
    wait_for(lambda: "ticker" in seen, 20, "the kick that does nothing")
    assert not client.lost.is_set()
    client.close()


def test_the_commands_of_the_host_do_it_beside_a_running_controller(
    home: Running, tmp_path: Path
) -> None:
    def operator(verb: str, *words: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "controller", "operator", verb, *words]
        done = subprocess.run(
            [*command, "--data-dir", str(home.folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    file = tmp_path / "cy.json"
    operator("issue", "cy", "--out", str(file))
    cy = stub(home, read_context(file))
    cy.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    refused = operator("issue", "cy", "--out", str(tmp_path / "cy2.json"), expect=1)
    assert "operator cy has 1 valid certificate already" in refused
    assert not (tmp_path / "cy2.json").exists()
    assert re.search(r"^cy +operator +good +1 +20\d\d-", operator("list"), re.MULTILINE)
    said = operator("revoke", "cy", "--reason", "lost laptop")
    assert said.startswith("revoked operator cy: 1 certificate;")
    with pytest.raises(grpc.RpcError) as caught:
        cy.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    assert "lost laptop" in str(caught.value.details())
    assert re.search(r"^cy +operator +revoked 20.*  0 +–$", operator("list"), re.MULTILINE)
    assert "no operator, consumer or worker cyy" in operator("revoke", "cyy", expect=1)
    operator("issue", "cy", "--again", "--out", str(file))
    back = stub(home, read_context(file))
    back.GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
