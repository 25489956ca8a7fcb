"""Whatever bytes reach a method of the controller: it lives, says what is wrong, keeps its store.

The methods are those of the descriptors: a new one is fuzzed without a change here.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import select

from controller.api import interceptors
from controller.domain.device import DeviceState
from controller.services.builds import start_build
from controller.services.jobs import claim_job
from controller.services.rollouts import start_rollout
from controller.store import devices
from controller.store.tables import metadata
from lighterman.v1 import build_pb2, device_pb2, fleet_pb2
from tests.support.catalogue import HOST, World, digest_of, tiny_onnx
from tests.support.fuzz import Known, Wild, methods, no_message, wild_messages
from tests.support.gateway import DeviceClient, Running, channel, new_csr, read_context, running

REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
WILD = 30
BROKEN = 12
ENROL_BYTES, GRPC_BYTES = 64 * 1024, 8 * 1024**2
TAIL_S = 0.25
ALL = methods()
JSON = (
    "{}", "[]", "{", '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}",
    "[" * 200_000, '{"a":' * 100_000, '{"schema": 1, "builds": [7]}', "null", '{"spec": {}}',
)  # fmt: skip


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


@dataclass(frozen=True, slots=True)
class Desk:
    """A controller with something of everything, and who calls it."""

    home: Running
    device: DeviceClient
    known: Known
    channels: dict[str, grpc.Channel]

    def call(self, method: MethodDescriptor, sent: Sequence[bytes]) -> tuple[grpc.StatusCode, str]:
        """The code and text of an answer; of a stream that goes on, OK."""
        opened = self.channels[method.containing_service.full_name]
        path = f"/{method.containing_service.full_name}/{method.name}"
        request: Any = iter(sent) if method.client_streaming else sent[0]
        kind = ("stream" if method.client_streaming else "unary") + "_"
        made = getattr(opened, kind + ("stream" if method.server_streaming else "unary"))(path)
        try:
            answer = made(request, timeout=TAIL_S if method.server_streaming else 20)
            if method.server_streaming:
                for _ in answer:
                    pass
        except grpc.RpcError as error:
            code = code_of(error)
            if method.server_streaming and code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return grpc.StatusCode.OK, ""
            return code, getattr(error, "details", str)() or ""
        return grpc.StatusCode.OK, ""

    def rearm(self) -> None:
        """Let the device speak again, whatever boot it said it was."""
        with self.home.deps.store.write() as conn:
            devices.update_device(
                conn, self.device.device_id, state=DeviceState.ACTIVE, boot_id=None
            )

    def stored(self) -> dict[str, str]:
        """A digest of every table but the outbox (it empties by itself), and all artifacts."""
        found = {}
        with self.home.deps.store.read() as conn:
            for table in (one for one in metadata.sorted_tables if one.name != "outbox"):
                rows = sorted(map(repr, conn.execute(select(table))))
                found[table.name] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        blobs = sorted(p.name for p in (self.home.folder / "blobs").rglob("*") if p.is_file())
        return {**found, "blobs": " ".join(blobs)}


def _known(home: Running) -> Known:
    """What makes the controller look further than at the first field."""
    world = World(home.deps, home.ctx())
    world.push()
    world.push_data()
    first = start_build(
        home.deps, home.ctx(), model="digits", version="1.0.0", profiles=["generic-x86-64"]
    )
    world.finish_all()
    rollout = start_rollout(
        home.deps,
        home.ctx(),
        {"model": "digits", "version": "1.0.0", "selector": "device=subject", "waves": ["100%"]},
        1,
    )
    world.push("digits:1.1.0", variants=[("heavy", tiny_onnx(7))])
    start_build(home.deps, home.ctx(), model="digits", version="1.1.0", profiles=["generic-x86-64"])
    job = claim_job(home.deps, home.ctx("local-worker"), HOST)
    assert job is not None
    assert first
    token = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(uses=1000), timeout=10)
    uploaded = world.upload(b"some bytes")
    return {
        "model": ("digits",), "version": ("1.0.0", "1.1.0", "1.2.0"),
        "device_id": ("subject", ""), "device_ids": ("subject",),
        "rollout_id": (rollout.rollout_id,), "rollout": (rollout.rollout_id,),
        "token_id": (token.info.token_id,), "token_secret": (token.token.split(".")[1],),
        "job_id": (job.job_id,), "lease": (job.lease,), "digest": (uploaded,), "length": (10,),
        "data": (b"some bytes",), "offset": (0, 3, 99),
        "selector": ("all", "device=subject", "a=("),
        "waves": ("1", "10%", "100%", "1e9%", "٣"), "kind": ("Policy", "Profile", "Recipe", "boot"),
        "kinds": ("boot",),
        "name": ("digits", "default", "generic-x86-64"), "profile": ("generic-x86-64",),
        "profiles": ("generic-x86-64",), "recipes": ("onnxruntime-fp32",),
        "recipe": ("onnxruntime-fp32",),
        "dataset": ("digits", ""), "variant": ("heavy", "light"), "policy": ("", "default"),
        "spec_json": JSON, "params_json": JSON, "result_json": JSON,
        "csr_pem": (new_csr()[0], b"x"),
        "protocol_min": (1,), "protocol_max": (1, 9), "protocol": (1,), "seq": (1, 2),
        "boot_id": ("1-a", "9-b", "٣-a"), "uses": (1,), "ttl_s": (60.0,), "limit": (5,),
        "confirmed_devices": (1,),
        "reason": ("because",), "soak_s": (1.0,), "min_samples": (1,), "deadline_s": (0.0, 60.0),
        "override_first_wave_reason": ("",), "override_rolled_back_reason": ("", "again"),
        "override_signature_reason": ("", "ready"), "override_missing_rung_reason": ("", "small"),
        "memory_bytes": (2**33,), "disk_bytes": (2**33,), "labels": ("one",), "remove": ("site",),
        "hardware_id": ("", "hw-1"), "file_name": ("m.onnx", "x.npz"),
    }  # fmt: skip


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
)
def desk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """On both databases: they differ in which numbers and texts they keep."""
    folder, database = tmp_path_factory.mktemp("fuzz"), ""
    if request.param == "postgresql":
        database = request.getfixturevalue("postgres_server").new_database()
    with running(
        folder, enroll_per_minute=1_000_000, job_lease_s=3600.0, database=database
    ) as home:
        tokens = [
            home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10) for _ in range(2)
        ]
        capabilities = {
            "arch": "x86_64", "runtimes": {"onnxruntime": "1.32.0"}, "memory_bytes": 2**33
        }  # fmt: skip
        home.enrol("subject", tokens[0].token, capabilities=capabilities)
        device = home.enrol("fuzzed", tokens[1].token, capabilities=capabilities)
        known = _known(home)
        ca = (folder / "ca.pem").read_bytes()
        channels = {
            f"lighterman.v1.{service}": home.keep(channel(read_context(folder / f"{who}.json")))
            for service, who in (("FleetService", "operator"), ("BuildService", "worker"))
        }
        channels["lighterman.v1.DeviceService"] = home.keep(channel(device.context))
        channels["lighterman.v1.EnrollmentService"] = home.keep(
            grpc.secure_channel(home.listening.enroll, grpc.ssl_channel_credentials(ca))
        )
        for loop in home.controller._loops:  # what they do meanwhile is not what was refused
            loop.stop()
        yield Desk(home, device, known, channels)


def good_request_works(desk: Desk, method: MethodDescriptor) -> None:
    """The next good request of the same service."""
    home = desk.home
    match method.containing_service.name:
        case "FleetService":
            home.fleet().GetStatus(fleet_pb2.GetStatusRequest(), timeout=10)
        case "DeviceService":
            desk.rearm()
            hello = device_pb2.HelloRequest(protocol_min=1, protocol_max=1, boot_id="1-a")
            assert desk.device.api().Hello(hello, timeout=10).protocol == 1
        case "BuildService":
            claim = build_pb2.ClaimRequest(worker="w").SerializeToString()
            found = next(m for m in ALL if m.full_name == "lighterman.v1.BuildService.Claim")
            assert desk.call(found, [claim])[0] is grpc.StatusCode.OK
        case "EnrollmentService":
            made = home.fleet().CreateToken(fleet_pb2.CreateTokenRequest(), timeout=10)
            assert home.enrol("", made.token).device_id
        case other:
            pytest.fail(f"{other} is new: say here what a good request to it is, and who calls it")


def names(found: MethodDescriptor) -> str:
    return f"{found.containing_service.name}.{found.name}"


@pytest.mark.parametrize("method", ALL, ids=names)
def test_bytes_that_are_no_message_are_named_and_change_nothing(
    desk: Desk, method: MethodDescriptor
) -> None:
    random = Random(method.full_name)
    most = ENROL_BYTES if method.containing_service.name == "EnrollmentService" else GRPC_BYTES
    before = desk.stored()
    for number in range(BROKEN):
        good = Wild(random, desk.known, tame=10).message(method.input_type)
        sent = [no_message(method.input_type, good, random, most)]
        # What a builder says of its engine is judged before its bytes come.
        if method.client_streaming and number % 2 and method.name != "PublishEngine":
            sent = [_header(method, desk.known), *sent]
        code, text = desk.call(method, sent)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, (sent, text)
        assert text.startswith(f"the request is no message that {method.name} takes\n"), text
    assert desk.stored() == before
    good_request_works(desk, method)


_UPLOADED_FOR = ("PushDataset", "PushModel")


def _header(method: MethodDescriptor, known: Known) -> bytes:
    """A good first message of a stream that brings ten bytes which nobody has."""
    message: Any = GetMessageClass(method.input_type)()
    for field in message.header.DESCRIPTOR.fields:
        if values := known.get(field.name):
            setattr(message.header, field.name, values[0])
    message.header.digest = digest_of(b"0123456789")
    whole: bytes = message.SerializeToString()
    return whole


@pytest.mark.parametrize("method", ALL, ids=names)
def test_wild_messages_are_answered_or_refused_and_refusals_change_nothing(
    desk: Desk, method: MethodDescriptor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    count = 8 if method.server_streaming else WILD
    for message in wild_messages(method.input_type, desk.known, method.full_name, count):
        if method.containing_service.name == "DeviceService":
            desk.rearm()
        before = desk.stored()
        sent = [message.SerializeToString()]
        if method.client_streaming:
            sent = (
                [_header(method, desk.known), *sent] if Random(sent[0]).random() < 0.5 else sent * 2
            )
        code, text = desk.call(method, sent)
        if code is grpc.StatusCode.OK:
            continue
        assert code in REFUSALS, f"{code} {text} {str(message)[:2000]}\n{caplog.text[-4000:]}"
        assert text.strip(), f"{code} without a word: {str(message)[:500]}"
        after = desk.stored()
        changed = [name for name in before if before[name] != after[name]]
        if method.name in _UPLOADED_FOR:  # an upload that only the refused push named goes with it
            changed = [name for name in changed if name not in ("artifact", "blobs")]
        assert not changed, f"{changed} changed by what was refused: {text}"
    good_request_works(desk, method)


def test_after_all_that_the_loops_still_do_their_rounds(desk: Desk) -> None:
    for loop in desk.home.controller._loops:
        loop._act()
    good_request_works(desk, next(m for m in ALL if m.name == "GetStatus"))


def test_too_large_a_message_is_refused_and_the_connection_stays(desk: Desk) -> None:
    method = next(m for m in ALL if m.name == "PushModel")
    huge = fleet_pb2.PushModelRequest(model="x" * 9 * 2**20).SerializeToString()
    code, text = desk.call(method, [huge])
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger" in text
    good_request_works(desk, method)


def test_a_stranger_is_told_nothing_of_what_it_sent(desk: Desk) -> None:
    """The caller is checked before the bytes are judged."""
    method = next(m for m in ALL if m.name == "PushModel")
    mistaken = Desk(
        desk.home, desk.device, desk.known,
        {"lighterman.v1.FleetService": desk.channels["lighterman.v1.DeviceService"]},
    )  # fmt: skip
    assert mistaken.call(method, [b"\xff"])[0] is grpc.StatusCode.PERMISSION_DENIED


def test_negative_control_without_the_reader_bytes_end_as_an_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "_reader", lambda parse: parse)
    with running(tmp_path) as home:
        ca = (tmp_path / "ca.pem").read_bytes()
        opened = home.keep(
            grpc.secure_channel(home.listening.enroll, grpc.ssl_channel_credentials(ca))
        )
        call: Any = opened.unary_unary("/lighterman.v1.EnrollmentService/Enroll")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff", timeout=10)
    assert code_of(caught.value) is grpc.StatusCode.INTERNAL
