"""EnrollmentService: the one thing a device without a certificate can ask, and not often."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from controller.api.convert_device import capabilities_from_wire, keys_to_wire
from controller.clock import Clock
from controller.errors import ExhaustedError, InvalidError
from controller.services.context import Ctx, Deps
from controller.services.enrolment import EnrolmentRequest, enrol_device
from controller.services.protocol import negotiate
from lighterman.v1 import enrollment_pb2, enrollment_pb2_grpc

ADDRESSES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where devices find the other listeners, host:port."""

    grpc: str
    mqtt: str


class RateLimit:
    """A bucket of tries per address. Bounded in memory; the oldest address is forgotten first."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, address: str) -> float:
        """Seconds until the next try is allowed; 0 when this one is."""
        now = self._clock.monotonic()
        rate = self._per_minute / 60.0
        with self._lock:
            left, at = self._buckets.pop(address, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - at) * rate)
            wait_s = 0.0 if left >= 1.0 else (1.0 - left) / rate
            self._buckets[address] = (left - 1.0 if wait_s == 0.0 else left, now)
            while len(self._buckets) > ADDRESSES_MAX:
                self._buckets.popitem(last=False)
        return wait_s


class EnrollmentApi(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """Enrols, within the rate limit."""

    def __init__(
        self, deps: Deps, new_ctx: Callable[[str], Ctx], endpoints: Endpoints, limit: RateLimit
    ) -> None:
        self._deps = deps
        self._new_ctx = new_ctx
        self._endpoints = endpoints
        self._limit = limit

    def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: grpc.ServicerContext
    ) -> enrollment_pb2.EnrollResponse:
        """Trade a token and a certificate request for a certificate."""
        address = context.peer().rpartition(":")[0]
        wait_s = self._limit.take(address)
        if wait_s > 0:
            context.set_trailing_metadata((("retry-after-s", f"{wait_s:.3f}"),))
            raise ExhaustedError(
                "too many enrolments from this address", f"try again in {wait_s:.0f} s"
            )
        if len(request.hardware_id) > 200 or len(request.token_secret) > 200:
            raise InvalidError("hardware id or token is longer than 200 characters")
        protocol = negotiate(request.protocol_min, request.protocol_max)
        done = enrol_device(
            self._deps,
            self._new_ctx("enrolment"),
            EnrolmentRequest(
                secret=request.token_secret,
                csr_pem=request.csr_pem,
                device_id=request.device_id,
                hardware_id=request.hardware_id,
                protocol=protocol,
                capabilities=capabilities_from_wire(request.capabilities),
            ),
        )
        return enrollment_pb2.EnrollResponse(
            protocol=protocol,
            device_id=done.device_id,
            project=done.project,
            certificate_pem=done.certificate_pem,
            ca_pem=done.ca_pem,
            signing_keys=keys_to_wire(done.signing_keys),
            grpc_endpoint=self._endpoints.grpc,
            mqtt_endpoint=self._endpoints.mqtt,
            pending=done.pending,
        )
