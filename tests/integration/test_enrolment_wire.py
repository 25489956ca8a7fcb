"""Enrolment over its own listener: what a stranger can reach, and how often."""

import hashlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from lighterman.v1 import device_pb2, enrollment_pb2, enrollment_pb2_grpc, fleet_pb2
from tests.support.gateway import Running, channel, new_csr, read_context, running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("enrolment")) as started:
        yield started


def token(home: Running, **more: object) -> str:
    request = fleet_pb2.CreateTokenRequest(**more)  # type: ignore[arg-type]
    return str(home.fleet().CreateToken(request, timeout=10).token)


def code_of(call: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(call, grpc.Call)
    return call.code()


def test_the_listener_sends_the_authority_that_the_token_names(home: Running) -> None:
    fingerprint = token(home).split(".")[2]
    host, _, port = home.listening.enroll.rpartition(":")
    context = ssl.create_default_context(cafile=str(home.folder / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        sent = secured._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    ders = [one.public_bytes(2) for one in sent]  # 2: DER
    assert fingerprint in [hashlib.sha256(der).hexdigest() for der in ders]


def test_a_stranger_with_a_token_becomes_a_device(home: Running) -> None:
    device = home.enrol("wire-1", token(home))
    answer = device.api().Hello(hello("1-a"), timeout=10)
    assert answer.protocol == 1
    assert answer.mqtt_endpoint == home.listening.mqtt
    assert len(answer.signing_keys[0].public_key) == 32


def hello(boot_id: str) -> device_pb2.HelloRequest:
    return device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id=boot_id)


def test_the_token_is_good_once_over_the_wire(home: Running) -> None:
    used = token(home)
    home.enrol("wire-2", used)
    refused = 0
    for _ in range(50):
        with pytest.raises(grpc.RpcError) as caught:
            home.enrol("", used)
        assert code_of(caught.value) is grpc.StatusCode.PERMISSION_DENIED
        refused += 1
    assert refused == 50


def test_the_enrolment_listener_can_only_enrol(home: Running) -> None:
    context = read_context(home.folder / "operator.json")
    strange = home.keep(channel(context, home.listening.enroll))
    for method in ("FleetService/GetStatus", "DeviceService/Hello", "BuildService/Claim"):
        call: Any = strange.unary_unary(f"/lighterman.v1.{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
        assert code_of(caught.value) is grpc.StatusCode.UNIMPLEMENTED


def test_enrolment_is_not_on_the_listener_of_the_known(home: Running) -> None:
    context = read_context(home.folder / "operator.json")
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(home.keep(channel(context)))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Enroll(enrollment_pb2.EnrollRequest(), timeout=10)
    assert code_of(caught.value) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"csr_pem": b"nonsense"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"csr_pem": b"x" * 9000}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"device_id": "../up"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"device_id": "controller"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_secret": "x"}, grpc.StatusCode.UNAUTHENTICATED),
        ({"token_secret": "x" * 300}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"protocol_min": 7, "protocol_max": 9}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"csr_pem": b"x" * 100_000}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_bad_requests_have_a_code_and_use_no_token(
    home: Running, change: dict[str, object], code: grpc.StatusCode
) -> None:
    used = token(home)
    values: dict[str, object] = {
        "protocol_min": 1,
        "protocol_max": 1,
        "token_secret": used.split(".")[1],
        "csr_pem": new_csr()[0],
    }
    request = enrollment_pb2.EnrollRequest(**{**values, **change})  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as caught:
        home.enrolment().Enroll(request, timeout=10)
    assert code_of(caught.value) is code
    home.enrol("", used)


def test_enrolments_of_one_address_are_limited(tmp_path: Path) -> None:
    with running(tmp_path, enroll_per_minute=5) as home:
        used = token(home)
        codes = []
        for _ in range(12):
            with pytest.raises(grpc.RpcError) as caught:
                home.enrol("", used[:10] + "AAAAAA" + used[16:])
            codes.append(code_of(caught.value))
        assert codes[:5] == [grpc.StatusCode.UNAUTHENTICATED] * 5
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes[5:]


def test_a_pending_device_is_let_in_by_a_person(home: Running) -> None:
    device = home.enrol("wire-pending", token(home, pending=True))
    assert device.api().Hello(hello("1-a"), timeout=10).pending
    with pytest.raises(grpc.RpcError) as caught:
        device.api().GetDesired(device_pb2.GetDesiredRequest(), timeout=10)
    assert code_of(caught.value) is grpc.StatusCode.FAILED_PRECONDITION
    home.fleet().AcceptDevice(fleet_pb2.DeviceRequest(device_id="wire-pending"), timeout=10)
    assert device.api().GetDesired(device_pb2.GetDesiredRequest(), timeout=10).unchanged
