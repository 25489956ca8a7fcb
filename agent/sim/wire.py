"""The gRPC side of simulated devices, on asyncio: enrolment, hello, desired state, bytes.

One channel per device with its own certificate, kept open as a real agent keeps it. Errors are
those of `agent.link`. Refuses to try again by itself.
"""

import grpc

from agent.domain.capability import Capabilities
from agent.domain.desired import Target
from agent.domain.ports import Identity
from agent.link.authority import Endpoint, parse_endpoint
from agent.link.client import CALL_S, PROTOCOL_MAX, PROTOCOL_MIN
from agent.link.convert import capabilities_to_wire, state_from_wire
from agent.link.enrol import Enrolment, read_identity, request_message
from agent.link.errors import LinkError, LinkFault
from agent.link.keys import new_key_request
from agent.link.trust import SignedState
from lighterman.v1 import common_pb2, device_pb2, device_pb2_grpc, enrollment_pb2_grpc

FETCH_BYTES = 4096  # how much of each file a simulated device fetches: its last bytes

_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
]
_RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE: LinkFault.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: LinkFault.UNREACHABLE,
    grpc.StatusCode.CANCELLED: LinkFault.UNREACHABLE,
    grpc.StatusCode.INTERNAL: LinkFault.UNREACHABLE,
    grpc.StatusCode.UNKNOWN: LinkFault.UNREACHABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LinkFault.BUSY,
}


def open_enrolment(endpoint: Endpoint, ca_pem: bytes) -> grpc.aio.Channel:
    """The channel on which devices enrol; only the server shows a certificate."""
    credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    return grpc.aio.secure_channel(str(endpoint), credentials, options=_OPTIONS)


async def enrol_one(
    channel: grpc.aio.Channel, wanted: Enrolment, secret: str, ca_pem: bytes
) -> Identity:
    """Trade one use of the token for an identity. LinkError."""
    made = new_key_request(wanted.device_id)
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    message = request_message(wanted, secret, made.csr_pem)
    try:
        answer = await stub.Enroll(message, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        raise as_link_error(error) from None
    return read_identity(answer, made.key_pem, ca_pem)


class DeviceCalls:
    """What one simulated device asks of its controller."""

    def __init__(self, identity: Identity) -> None:
        credentials = grpc.ssl_channel_credentials(
            identity.ca_pem, identity.key_pem, identity.certificate_pem
        )
        endpoint = str(parse_endpoint(identity.grpc_endpoint))
        self._channel = grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        self._stub = device_pb2_grpc.DeviceServiceStub(self._channel)

    async def close(self) -> None:
        """End the channel."""
        await self._channel.close()

    async def hello(
        self, boot_id: str, capabilities: Capabilities, applied: int
    ) -> device_pb2.HelloResponse:
        """Say who speaks. LinkError."""
        request = device_pb2.HelloRequest(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            boot_id=boot_id,
            capabilities=capabilities_to_wire(capabilities),
            applied_generation=applied,
        )
        try:
            return await self._stub.Hello(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise as_link_error(error) from None

    async def desired(self, known_generation: int) -> SignedState | None:
        """The signed desired state, unverified; None when it is still the known one. LinkError."""
        request = device_pb2.GetDesiredRequest(known_generation=known_generation)
        try:
            return state_from_wire(await self._stub.GetDesired(request, timeout=CALL_S))
        except grpc.aio.AioRpcError as error:
            raise as_link_error(error) from None

    async def fetch_end(self, target: Target) -> None:
        """The last bytes of a file, as proof that this device may have it. LinkError.

        Its digest cannot be checked by them; its length is.
        """
        offset = max(0, target.length - FETCH_BYTES)
        request = common_pb2.FetchBlobRequest(digest=target.digest, offset=offset)
        at = offset
        try:
            async for chunk in self._stub.FetchBlob(request, timeout=CALL_S):
                at += len(chunk.data)
        except grpc.aio.AioRpcError as error:
            raise as_link_error(error) from None
        if at != target.length:
            raise LinkError(f"{target.digest[:19]}… ended at byte {at} of {target.length}")


def as_link_error(error: grpc.aio.AioRpcError) -> LinkError:
    """What a failed call means, in the words of the controller where it said some."""
    fault = _RETRYABLE.get(error.code(), LinkFault.REFUSED)
    message, _, hint = (error.details() or str(error.code())).partition("\n")
    retry_after_s = 0.0
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after-s":
            try:
                retry_after_s = min(max(float(value), 0.0), 3600.0)
            except ValueError:
                continue
    return LinkError(message, hint, fault=fault, retry_after_s=retry_after_s)
