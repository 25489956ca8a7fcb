"""Builds the two gRPC servers: mutual TLS for those who are known, server TLS for enrolment only.

Starts no thread of its own besides gRPC's pool and decides nothing about a call.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from controller.api.interceptors import Admit, Gate, NewCtx
from controller.errors import UnavailableError
from lighterman.v1 import build_pb2_grpc, device_pb2_grpc, enrollment_pb2_grpc, fleet_pb2_grpc

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of a listener: threads, calls at a time (the rest is told to come back), bytes."""

    threads: int = 64
    concurrent_calls: int = 2048
    message_bytes: int = 8 * MIB
    connection_age_s: int = 3600


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a listener presents, all PEM; `refresh` gives a newer pair or None."""

    ca_pem: bytes
    chain_pem: bytes
    key_pem: bytes
    refresh: Callable[[], tuple[bytes, bytes] | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Services:
    """The servicers of the mutual TLS listener."""

    fleet: fleet_pb2_grpc.FleetServiceServicer
    device: device_pb2_grpc.DeviceServiceServicer
    build: build_pb2_grpc.BuildServiceServicer


class Listener:
    """One gRPC server on one port."""

    def __init__(self, server: grpc.Server, port: int) -> None:
        self._server = server
        self.port = port

    def start(self) -> None:
        """Serve until `stop`."""
        self._server.start()

    def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then cancel them."""
        self._server.stop(grace_s).wait()


def options(limits: ServerLimits) -> list[tuple[str, int]]:
    """Channel options. Without the pending limits gRPC sheds opens silently as CANCELLED."""
    return [
        ("grpc.so_reuseport", 0),  # a taken port is an error, not a second listener
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.server.max_pending_requests", 4096),
        ("grpc.server.max_pending_requests_hard_limit", 8192),
        ("grpc.max_connection_age_ms", limits.connection_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", 600_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]


def make_mutual_listener(
    address: str,
    tls: ServerTls,
    services: Services,
    new_ctx: NewCtx,
    admit: Admit,
    limits: ServerLimits,
) -> Listener:
    """The listener of devices, workers and operators; a client certificate of ours is a must.

    Raises UnavailableError when the address cannot be had.
    """
    server = _make_server([Gate(new_ctx, admit)], limits)
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(services.fleet, server)
    device_pb2_grpc.add_DeviceServiceServicer_to_server(services.device, server)
    build_pb2_grpc.add_BuildServiceServicer_to_server(services.build, server)

    return _bound(server, address, _credentials(tls, True), "devices and operators (grpc)")


def make_enrolment_listener(
    address: str,
    tls: ServerTls,
    servicer: enrollment_pb2_grpc.EnrollmentServiceServicer,
    new_ctx: NewCtx,
    limits: ServerLimits,
) -> Listener:
    """The listener that can only enrol. It asks for no client certificate and sends the CA too."""
    server = _make_server([Gate(new_ctx)], limits)
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, server)

    return _bound(server, address, _credentials(tls, False), "enrolment")


def _credentials(tls: ServerTls, mutual: bool) -> grpc.ServerCredentials:
    ca_pem = tls.ca_pem if mutual else None

    def fetch() -> Any:  # None: the pair in use is still the newest
        newer = tls.refresh()
        if newer is None:
            return None
        chain, key = newer
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca_pem)

    initial = grpc.ssl_server_certificate_configuration([(tls.key_pem, tls.chain_pem)], ca_pem)
    return grpc.dynamic_ssl_server_credentials(initial, fetch, mutual)


def _make_server(gates: list[grpc.ServerInterceptor], limits: ServerLimits) -> grpc.Server:
    return grpc.server(
        ThreadPoolExecutor(limits.threads, thread_name_prefix="grpc"),
        interceptors=gates,
        options=options(limits),
        maximum_concurrent_rpcs=limits.concurrent_calls,
    )


def _bound(
    server: grpc.Server, address: str, credentials: grpc.ServerCredentials, what: str
) -> Listener:
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        port = 0
        cause: Exception | None = error
    else:
        cause = None
    if port == 0:
        raise UnavailableError(
            f"cannot listen on {address} for {what}",
            "another process holds the port, or the address is not of this machine",
        ) from cause
    return Listener(server, port)
