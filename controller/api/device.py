"""DeviceService: what an enrolled device asks. Every answer is about the caller and nobody else."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import grpc

from controller.api.base import ApiBase, caller_of
from controller.api.convert_device import (
    desired_to_wire,
    engine_to_wire,
    envelope_from_wire,
    hello_from_wire,
    keys_to_wire,
    orders_to_wire,
    time_to_wire,
)
from controller.api.pace import in_pieces
from controller.api.upload import split_upload
from controller.clock import SystemClock
from controller.errors import InvalidError
from controller.services.context import Ctx, Deps
from controller.services.device_sessions import (
    fetch_desired,
    greet_device,
    open_build,
    renew_certificate,
)
from controller.services.engines import allowed_digests, find_shared, publish_engine
from controller.services.reports import accept_reports
from controller.services.tuning_orders import fetch_orders
from lighterman.v1 import common_pb2, device_pb2, device_pb2_grpc

ENVELOPES_MAX = 1000
REMEMBERED_MAX = 20_000


class DeviceApi(ApiBase, device_pb2_grpc.DeviceServiceServicer):
    """Answers one device at a time; remembers only which builds it handed out last."""

    def __init__(
        self, deps: Deps, new_ctx: Callable[[str], Ctx], mqtt_endpoint: str, poll_s: float
    ) -> None:
        super().__init__(deps, new_ctx)
        self._mqtt_endpoint = mqtt_endpoint
        self._poll_s = poll_s
        self._clock = SystemClock()
        self._handed: OrderedDict[str, tuple[int, frozenset[str], frozenset[str]]] = OrderedDict()
        self._lock = threading.Lock()

    def Hello(
        self, request: device_pb2.HelloRequest, context: grpc.ServicerContext
    ) -> device_pb2.HelloResponse:
        """Agree on a protocol; take capabilities in."""
        ctx = self.ctx(context)
        view = greet_device(self.deps, ctx, caller_of(context).name, hello_from_wire(request))
        return device_pb2.HelloResponse(
            protocol=view.protocol,
            now=time_to_wire(ctx.now),
            desired_generation=view.desired_generation,
            poll_after_s=self._poll_s,
            mqtt_endpoint=self._mqtt_endpoint,
            signing_keys=keys_to_wire(view.signing_keys),
            profile=view.profile,
            pending=view.pending,
            stored=[device_pb2.Ack(boot_id=boot, seq=seq) for boot, seq in view.stored],
            orders=view.orders,
        )

    def GetDesired(
        self, request: device_pb2.GetDesiredRequest, context: grpc.ServicerContext
    ) -> device_pb2.DesiredState:
        """The signed desired state of the caller."""
        device_id = caller_of(context).name
        view = fetch_desired(self.deps, self.ctx(context), device_id)
        self._remember(device_id, view.generation, view.digests)
        return desired_to_wire(view, request.known_generation)

    def FetchBlob(
        self, request: common_pb2.FetchBlobRequest, context: grpc.ServicerContext
    ) -> Iterator[common_pb2.BlobChunk]:
        """Bytes of a build of the caller's manifests or orders, or of an engine of one."""
        device_id, ctx = caller_of(context).name, self.ctx(context)
        allowed = allowed_digests(self.deps, ctx, device_id, request.digest)
        allowed |= self._handed_before(device_id)
        length, chunks = open_build(
            self.deps, ctx, device_id, request.digest, request.offset, allowed
        )
        offset, total = request.offset, length
        for data in in_pieces(chunks, self._clock):
            yield common_pb2.BlobChunk(data=data, offset=offset, total_bytes=total)
            offset, total = offset + len(data), 0
        if total:  # nothing left behind the offset: still say how long it is
            yield common_pb2.BlobChunk(offset=offset, total_bytes=total)

    def GetOrders(
        self, request: device_pb2.GetOrdersRequest, context: grpc.ServicerContext
    ) -> device_pb2.Orders:
        """What the caller is to do beside serving."""
        view = fetch_orders(self.deps, self.ctx(context), caller_of(context).name)
        return orders_to_wire(view)

    def FindEngine(
        self, request: device_pb2.FindEngineRequest, context: grpc.ServicerContext
    ) -> device_pb2.Engine:
        """What another device compiled of a build of the caller's, for exactly its key."""
        ctx = self.ctx(context)
        found = find_shared(self.deps, ctx, caller_of(context).name, request.key_json)
        return device_pb2.Engine(found=False) if found is None else engine_to_wire(found)

    def PublishEngine(
        self, request: Iterator[device_pb2.PublishEngineRequest], context: grpc.ServicerContext
    ) -> device_pb2.Engine:
        """Take what a builder compiled."""
        first, chunks = split_upload(request)
        header = first.header
        found = publish_engine(
            self.deps,
            self.ctx(context),
            caller_of(context).name,
            header.key_json,
            header.digest,
            header.length,
            chunks,
        )
        return engine_to_wire(found)

    def Report(
        self, request: device_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> device_pb2.Ack:
        """Reports and events of one boot, in order."""
        if not 1 <= len(request.envelopes) <= ENVELOPES_MAX:
            raise InvalidError(f"1 to {ENVELOPES_MAX} envelopes at a time")
        envelopes = [envelope_from_wire(one) for one in request.envelopes]
        if len({one.boot_id for one in envelopes}) != 1:
            raise InvalidError("envelopes of several boots in one call")
        accepted = accept_reports(self.deps, self.ctx(context), caller_of(context).name, envelopes)
        return device_pb2.Ack(boot_id=accepted.acks[0].boot_id, seq=accepted.acks[0].seq)

    def Renew(
        self, request: device_pb2.RenewRequest, context: grpc.ServicerContext
    ) -> device_pb2.RenewResponse:
        """A new certificate for a new key."""
        pem = renew_certificate(
            self.deps, self.ctx(context), caller_of(context).name, request.csr_pem
        )
        return device_pb2.RenewResponse(
            certificate_pem=pem, ca_pem=self.deps.authority.certificate_pem
        )

    def _remember(self, device_id: str, generation: int, digests: frozenset[str]) -> None:
        with self._lock:
            known = self._handed.pop(device_id, (0, frozenset[str](), frozenset[str]()))
            if known[0] != generation:
                known = (generation, digests, known[1])
            self._handed[device_id] = known
            while len(self._handed) > REMEMBERED_MAX:
                self._handed.popitem(last=False)

    def _handed_before(self, device_id: str) -> frozenset[str]:
        with self._lock:
            known = self._handed.get(device_id)
        return known[1] | known[2] if known is not None else frozenset()
