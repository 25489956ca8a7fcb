"""The device's calls to its controller, with domain values in and out.

Every call has a deadline. Refuses to try again by itself: the caller knows what else waits.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import grpc

from agent.domain.capability import Capabilities
from agent.domain.desired import PROTOCOL
from agent.domain.ports import SpoolEntry
from agent.link.authority import Endpoint
from agent.link.channel import Credentials, link_error, open_channel
from agent.link.convert import (
    AckPoint,
    ack_from_wire,
    capabilities_to_wire,
    engine_from_wire,
    numbered,
    orders_from_wire,
    state_from_wire,
    time_from_wire,
)
from agent.link.errors import LinkError, LinkFault
from agent.link.orders import SignedEngine, SignedOrders
from agent.link.trust import SignedState
from lighterman.v1 import common_pb2, device_pb2, device_pb2_grpc

PROTOCOL_MIN = PROTOCOL
PROTOCOL_MAX = PROTOCOL
CALL_S = 15.0
PART_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Welcome:
    """The controller's answer to hello. Empty `profile`: none matches this device."""

    protocol: int
    controller_now: datetime
    desired_generation: int
    poll_after_s: float
    mqtt_endpoint: str
    profile: str
    pending: bool
    forgotten: frozenset[str] = frozenset()  # boots of which less is stored than was acknowledged


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a file. `total_bytes` is 0 on all but the first."""

    data: bytes
    offset: int
    total_bytes: int


class BlobStream:
    """A running download; `cancel` may be called from another thread."""

    def __init__(
        self, call: "grpc._CallIterator[common_pb2.BlobChunk]", endpoint: Endpoint
    ) -> None:
        self._call = call
        self._endpoint = endpoint

    def __iter__(self) -> Iterator[Chunk]:
        try:
            for chunk in self._call:
                yield Chunk(chunk.data, chunk.offset, chunk.total_bytes)
        except grpc.RpcError as error:
            raise link_error(error, self._endpoint) from None

    def cancel(self) -> None:
        """End it now; the iteration raises."""
        self._call.cancel()


class ControllerClient:
    """One channel to the controller; safe to call from several threads."""

    def __init__(
        self, endpoint: Endpoint, credentials: Credentials, call_s: float = CALL_S
    ) -> None:
        self.endpoint = endpoint
        self._call_s = call_s
        # The number of the newest orders, as the controller said last.
        self.orders = 0
        self._lock = threading.Lock()
        self._open(credentials)

    def _open(self, credentials: Credentials) -> None:
        self._channel = open_channel(self.endpoint, credentials)
        self._stub = device_pb2_grpc.DeviceServiceStub(self._channel)

    def use(self, credentials: Credentials) -> None:
        """Go on with another certificate: gRPC clients cannot reload one, so a new channel."""
        with self._lock:
            old = self._channel
            self._open(credentials)
        old.close()

    def close(self) -> None:
        """End every call and the channel."""
        self._channel.close()

    def hello(
        self,
        boot_id: str,
        capabilities: Capabilities,
        applied_generation: int,
        acknowledged: Mapping[str, int] | None = None,
    ) -> Welcome:
        """Say who speaks and agree on a protocol. LinkError."""
        before = acknowledged or {}
        request = device_pb2.HelloRequest(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            boot_id=boot_id,
            capabilities=capabilities_to_wire(capabilities),
            applied_generation=applied_generation,
            acknowledged=[device_pb2.Ack(boot_id=b, seq=n) for b, n in before.items()],
        )
        try:
            answer = self._stub.Hello(request, timeout=self._call_s)
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None
        self.orders = max(self.orders, answer.orders)
        if not PROTOCOL_MIN <= answer.protocol <= PROTOCOL_MAX:
            raise LinkError(
                f"the controller chose protocol {answer.protocol},"
                f" this agent speaks {PROTOCOL_MIN} to {PROTOCOL_MAX}",
                "update the agent, or the controller",
                fault=LinkFault.REFUSED,
            )
        return Welcome(
            protocol=answer.protocol,
            controller_now=time_from_wire(answer.now),
            desired_generation=answer.desired_generation,
            poll_after_s=answer.poll_after_s,
            mqtt_endpoint=answer.mqtt_endpoint,
            profile=answer.profile,
            pending=answer.pending,
            forgotten=frozenset(
                one.boot_id for one in answer.stored if one.seq < before.get(one.boot_id, 0)
            ),
        )

    def get_desired(self, known_generation: int) -> SignedState | None:
        """The signed desired state, unverified; None when it is still the known one. LinkError."""
        request = device_pb2.GetDesiredRequest(known_generation=known_generation)
        try:
            answer = self._stub.GetDesired(request, timeout=self._call_s)
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None
        self.orders = max(self.orders, answer.orders)
        return state_from_wire(answer)

    def get_orders(self) -> SignedOrders:
        """What this device is to do beside serving, unverified. LinkError."""
        try:
            answer = self._stub.GetOrders(device_pb2.GetOrdersRequest(), timeout=self._call_s)
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None
        return orders_from_wire(answer)

    def find_engine(self, key_json: str) -> SignedEngine | None:
        """What another device compiled for this key, unverified; None: nothing. LinkError."""
        request = device_pb2.FindEngineRequest(key_json=key_json)
        try:
            return engine_from_wire(self._stub.FindEngine(request, timeout=self._call_s))
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None

    def publish_engine(self, key_json: str, digest: str, data: bytes, timeout_s: float) -> None:
        """Give what was compiled here to devices that are like this one. LinkError."""
        header = device_pb2.EngineHeader(key_json=key_json, digest=digest, length=len(data))

        def parts() -> Iterator[device_pb2.PublishEngineRequest]:
            yield device_pb2.PublishEngineRequest(header=header)
            for start in range(0, len(data), PART_BYTES):
                yield device_pb2.PublishEngineRequest(data=data[start : start + PART_BYTES])

        try:
            self._stub.PublishEngine(parts(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None

    def open_blob(self, digest: str, offset: int, timeout_s: float) -> BlobStream:
        """Start to receive a file from a byte on."""
        request = common_pb2.FetchBlobRequest(digest=digest, offset=offset)
        return BlobStream(self._stub.FetchBlob(request, timeout=timeout_s), self.endpoint)

    def report(self, entries: Sequence[SpoolEntry], acknowledged: int = 0) -> AckPoint:
        """Hand over entries of one boot, in order; gives what is stored now. LinkError."""
        request = device_pb2.ReportRequest(envelopes=[numbered(e, acknowledged) for e in entries])
        try:
            return ack_from_wire(self._stub.Report(request, timeout=self._call_s))
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None

    def renew(self, csr_pem: bytes) -> tuple[bytes, bytes]:
        """A new certificate for the same name, and the authority's certificate. LinkError."""
        try:
            answer = self._stub.Renew(
                device_pb2.RenewRequest(csr_pem=csr_pem), timeout=self._call_s
            )
        except grpc.RpcError as error:
            raise link_error(error, self.endpoint) from None
        return answer.certificate_pem, answer.ca_pem
