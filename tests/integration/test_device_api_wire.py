"""The mutual TLS listener: roles, revocation, clones, and what a device gets of what it asks."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.app_database import issue_beside
from controller.store import devices
from controller.store.desired import put_desired
from controller.trust.authority import Authority
from controller.trust.names import Role
from lighterman.v1 import build_pb2, common_pb2, device_pb2, fleet_pb2
from tests.support.gateway import (
    Context,
    DeviceClient,
    Running,
    channel,
    identity,
    new_csr,
    read_context,
    running,
)
from tests.support.stores import digest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("devices")) as started:
        yield started


def enrol(home: Running, device_id: str) -> DeviceClient:
    made = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10)
    return home.enrol(device_id, made.token)


def hello(device: DeviceClient, boot_id: str = "1-a") -> device_pb2.HelloResponse:
    request = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id=boot_id)
    answer: device_pb2.HelloResponse = device.api().Hello(request, timeout=10)
    return answer


def code_of(call: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(call, grpc.Call)
    return call.code()


CALLS = {
    "device": ("DeviceService/Hello", device_pb2.HelloRequest(protocol_min=1, protocol_max=1)),
    "worker": ("BuildService/Claim", build_pb2.ClaimRequest(worker="w")),
    "operator": ("FleetService/GetStatus", fleet_pb2.GetStatusRequest()),
}


@pytest.mark.parametrize("role", ["device", "worker", "operator", "consumer", "controller"])
@pytest.mark.parametrize("service", list(CALLS))
def test_a_certificate_opens_only_the_service_of_its_role(
    home: Running, role: str, service: str, tmp_path: Path
) -> None:
    if role == "device":
        context = enrol(home, "").context
    elif role == "controller":
        context = identity(home.deps.authority, Role.CONTROLLER, "controller")
    elif role == "consumer":
        issue_beside(home.controller.settings, f"c-{service}", role, tmp_path / "c")
        pems = ((tmp_path / "c" / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem"))
        context = Context("", *pems)
    else:
        issue_beside(home.controller.settings, f"{role}-{service}", role, tmp_path / "f")
        context = read_context(tmp_path / "f")
    method, message = CALLS[service]
    opened = home.keep(channel(context, home.listening.grpc))
    call: Any = opened.unary_unary(f"/lighterman.v1.{method}")
    try:
        call(message.SerializeToString(), timeout=10)
        code = grpc.StatusCode.OK
    except grpc.RpcError as error:
        code = code_of(error)
    if role == service:
        # A hello without a boot id gets as far as its content.
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
    else:
        assert code is grpc.StatusCode.PERMISSION_DENIED


def test_without_a_certificate_of_this_authority_there_is_no_connection(home: Running) -> None:
    ca = (home.folder / "ca.pem").read_bytes()
    foreign = identity(Authority.create(datetime.now(UTC)), Role.OPERATOR, "ana")
    expired = identity(home.deps.authority, Role.OPERATOR, "ana", datetime(2020, 1, 1, tzinfo=UTC))
    for credentials in (
        grpc.ssl_channel_credentials(ca),
        grpc.ssl_channel_credentials(ca, foreign.key_pem, foreign.certificate_pem),
        grpc.ssl_channel_credentials(ca, expired.key_pem, expired.certificate_pem),
    ):
        opened = home.keep(grpc.secure_channel(home.listening.grpc, credentials))
        call: Any = opened.unary_unary("/lighterman.v1.FleetService/GetStatus")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=5)
        assert code_of(caught.value) in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )


def test_a_certificate_that_the_database_does_not_know_is_refused(home: Running) -> None:
    forged = identity(home.deps.authority, Role.OPERATOR, "nobody-stored-me")
    call: Any = home.keep(channel(forged, home.listening.grpc)).unary_unary(
        "/lighterman.v1.FleetService/GetStatus"
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=5)
    assert code_of(caught.value) is grpc.StatusCode.UNAUTHENTICATED


def test_a_retired_device_is_refused_on_its_open_connection(home: Running) -> None:
    device = enrol(home, "dev-retired")
    api = device.api()
    request = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
    api.Hello(request, timeout=10)
    home.fleet().RetireDevice(fleet_pb2.DeviceRequest(device_id="dev-retired"), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        api.Hello(request, timeout=10)
    assert code_of(caught.value) is grpc.StatusCode.PERMISSION_DENIED


def test_a_clone_is_refused_with_its_twin_and_shows_in_status(home: Running) -> None:
    device = enrol(home, "dev-cloned")
    hello(device, "5-aaaa")
    with pytest.raises(grpc.RpcError):
        hello(device, "5-bbbb")
    with pytest.raises(grpc.RpcError):
        hello(device, "5-aaaa")
    status = home.fleet().GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
    assert any("dev-cloned" in problem for problem in status.problems)
    home.fleet().RetireDevice(fleet_pb2.DeviceRequest(device_id="dev-cloned"), timeout=10)


def give(home: Running, device_id: str, generation: int, build: str) -> None:
    manifest = f'{{"generation":{generation}}}'.encode()
    (signature,) = home.deps.signer.sign(manifest)
    signed = {
        "key_id": signature.key_id,
        "signature": base64.b64encode(signature.signature).decode(),
    }
    models = {"digits": {"ladder": [{"target": {"digest": build}}]}}
    with home.deps.store.write() as conn:
        put_desired(
            conn,
            device_id,
            generation,
            models,
            manifest,
            digest(manifest.decode()),
            [signed],
            datetime.now(UTC),
        )


def fetch(device: DeviceClient, build: str, offset: int = 0) -> tuple[bytes, int]:
    request = common_pb2.FetchBlobRequest(digest=build, offset=offset)
    chunks = list(device.api().FetchBlob(request, timeout=20))
    assert [chunk.offset for chunk in chunks] == sorted(chunk.offset for chunk in chunks)
    return b"".join(chunk.data for chunk in chunks), chunks[0].total_bytes


def test_desired_state_and_builds_come_to_their_device_alone(home: Running) -> None:
    mine, other = enrol(home, "dev-mine"), enrol(home, "dev-other")
    data = bytes(range(256)) * 10_000
    build = home.deps.blobs.put_bytes(data)
    newer = home.deps.blobs.put_bytes(b"newer")
    give(home, "dev-mine", 1, build)
    first = mine.api().GetDesired(device_pb2.GetDesiredRequest(), timeout=10)
    assert (first.generation, first.manifest, len(first.signatures)) == (1, b'{"generation":1}', 1)
    known = device_pb2.GetDesiredRequest(known_generation=1)
    assert mine.api().GetDesired(known, timeout=10).unchanged
    assert fetch(mine, build) == (data, len(data))
    assert fetch(mine, build, len(data) - 7) == (data[-7:], len(data))
    assert fetch(mine, build, len(data)) == (b"", len(data))
    for device, digest_of in ((other, build), (mine, newer), (mine, "sha256:" + "0" * 64)):
        with pytest.raises(grpc.RpcError) as caught:
            fetch(device, digest_of)
        assert code_of(caught.value) is grpc.StatusCode.PERMISSION_DENIED
    give(home, "dev-mine", 2, newer)
    assert fetch(mine, newer)[0] == b"newer"
    assert fetch(mine, build)[1] == len(data)  # a download of the manifest before goes on
    assert mine.api().GetDesired(known, timeout=10).generation == 2
    give(home, "dev-mine", 3, newer)
    mine.api().GetDesired(known, timeout=10)
    with pytest.raises(grpc.RpcError):
        fetch(mine, build)


def test_reports_are_acknowledged_after_they_are_stored(home: Running) -> None:
    device = enrol(home, "dev-reports")

    def report(*numbers: int, boot_id: str = "1-a") -> device_pb2.Ack:
        envelopes = []
        for seq in numbers:
            envelope = device_pb2.Envelope(protocol=1, boot_id=boot_id, seq=seq)
            envelope.event.kind = "boot"
            envelopes.append(envelope)
        request = device_pb2.ReportRequest(envelopes=envelopes)
        ack: device_pb2.Ack = device.api().Report(request, timeout=10)
        return ack

    assert report(1, 2).seq == 2
    assert report(2, 3, 5).seq == 3
    events = home.fleet().ListEvents(
        fleet_pb2.ListEventsRequest(device_id="dev-reports", kinds=["boot"]), timeout=10
    )
    assert len(events.events) == 3
    with pytest.raises(grpc.RpcError) as caught:
        report()
    assert code_of(caught.value) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_renewed_certificate_works_beside_the_old_one(home: Running) -> None:
    device = enrol(home, "dev-renew")
    csr, key = new_csr()
    answer = device.api().Renew(device_pb2.RenewRequest(csr_pem=csr), timeout=10)
    renewed = Context(device.context.controller, answer.ca_pem, answer.certificate_pem, key)
    hello(DeviceClient("dev-renew", renewed, "", home))
    hello(device)


def test_an_unexpected_error_shows_an_id_and_nothing_else(
    home: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(devices, "list_devices", broken)
    with pytest.raises(grpc.RpcError) as caught:
        home.fleet().ListDevices(fleet_pb2.ListDevicesRequest(), timeout=10)
    assert isinstance(caught.value, grpc.Call)
    told = caught.value.details()
    assert code_of(caught.value) is grpc.StatusCode.INTERNAL
    assert told is not None
    assert "secret" not in told
    assert told.split()[2].rstrip(";") in caplog.text


def test_errors_come_with_their_lines(home: Running) -> None:
    enrol(home, "dev-pi")
    with pytest.raises(grpc.RpcError) as caught:
        home.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device_id="dev-po"), timeout=10)
    assert isinstance(caught.value, grpc.Call)
    assert code_of(caught.value) is grpc.StatusCode.NOT_FOUND
    assert str(caught.value.details()).startswith("no device dev-po\ndid you mean dev-pi")
