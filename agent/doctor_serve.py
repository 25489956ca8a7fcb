"""The doctor's look at the inference roads: does a real question get an answer there in time?

The process may live, beat its watchdog and listen while the thread that reads a road is stuck: the
kernel takes connections all the same. Refuses to infer: that would count for the model, and in
probation for the version.
"""

import http.client
import json
from dataclasses import dataclass

from agent.finding import Finding, Verdict
from agent.link.authority import parse_endpoint, reason_of

ASK_S = 3.0
_LIVE = "/inference.GRPCInferenceService/ServerLive"
_YES = b"\x08\x01"  # ServerLiveResponse{live: true}
_RESTART = "look into its log, then restart it"


@dataclass(frozen=True, slots=True)
class Silence:
    """Why a road is no road; `todo` is what helps."""

    text: str
    todo: str


def ask_grpc(address: str, timeout_s: float = ASK_S) -> Silence | None:
    """Ask over gRPC whether the server lives; None: it says so."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            _LIVE, request_serializer=bytes, response_deserializer=bytes
        )
        try:
            return None if ask(b"", timeout=timeout_s) == _YES else _other(address, "gRPC")
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            details = (error.details() if isinstance(error, grpc.Call) else "") or ""
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return _stuck(address, timeout_s)
            if code is grpc.StatusCode.UNAVAILABLE and "refused" in details.lower():
                return Silence(f"nothing listens on {address}", _RESTART)
            return _other(address, "gRPC")


def ask_http(address: str, timeout_s: float = ASK_S) -> Silence | None:
    """The same over HTTP."""
    place = parse_endpoint(address)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=timeout_s)
    try:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        body = json.loads(answer.read(4096))
    except TimeoutError:
        return _stuck(address, timeout_s)
    except ConnectionRefusedError:
        return Silence(f"nothing listens on {address}", _RESTART)
    except OSError as error:
        return Silence(f"{address} does not answer ({reason_of(error)})", _RESTART)
    except (http.client.HTTPException, ValueError):
        return _other(address, "HTTP")
    finally:
        connection.close()
    return None if answer.status == 200 and body == {"live": True} else _other(address, "HTTP")


def look_at_http(address: str) -> Finding:
    """The HTTP road of a running agent; empty `address`: it does not serve it."""
    if not address:
        return Finding(
            "http", Verdict.NOTE, "not served: switched off, or its address was taken",
            "its log says which; the address is serve.http",
        )  # fmt: skip
    silence = ask_http(address)
    if silence is None:
        return Finding("http", Verdict.OK, f"answers on {address}")
    return Finding("http", Verdict.PROBLEM, silence.text, silence.todo)


def _stuck(address: str, timeout_s: float) -> Silence:
    return Silence(
        f"{address} takes connections and gives no answer in {timeout_s:.0f} s", _RESTART
    )


def _other(address: str, road: str) -> Silence:
    return Silence(
        f"another program than the agent answers on {address}, or it speaks no {road}",
        "stop that one, or give the agent another address, then restart it",
    )
