"""Paths of the Open Inference Protocol v2 over HTTP, and all answers but those of inferences.

Refuses to read bodies of inferences: `http_infer` does, where it does not hold up the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from agent.domain.ports import ModelCard
from agent.domain.tensor import Buffer, TensorSpec, wire_shape
from agent.errors import RequestError
from agent.serve.desk import SERVER_NAME, Desk
from agent.serve.errors import WireError
from agent.serve.http_answer import Answer, tell
from agent.serve.http_convert import load_json
from agent.serve.http_head import Head
from agent.serve.ledger import Statistics
from agent.serve.shared_memory import Region


@dataclass(frozen=True, slots=True)
class Infer:
    """An inference is asked for; the version may be empty."""

    model: str
    version: str


class Routes:
    """Where a request goes."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def find(self, head: Head, body: Buffer) -> Answer | Infer:
        """The answer, or which inference is asked for. AgentError with the status that fits."""
        match _segments(head.target):
            case ["v2", "models", model, "infer"]:
                _must_be(head, "POST")
                return Infer(model, "")
            case ["v2", "models", model, "versions", version, "infer"]:
                _must_be(head, "POST")
                return Infer(model, version)
            case ["v2", "models", *rest] if rest:
                _must_be(head, "GET")
                return self._model(head, rest)
            case ["v2", "repository", *rest]:
                _must_be(head, "POST")
                return self._repository(head, rest, body)
            case ["v2", "systemsharedmemory", *rest]:
                return self._shared(head, rest, body)
            case segments:
                return self._server(head, segments)

    def _server(self, head: Head, segments: Sequence[str]) -> Answer:
        desk = self._desk
        match segments:
            case ["v2"]:
                about = {
                    "name": SERVER_NAME, "version": desk.version, "extensions": desk.extensions,
                }  # fmt: skip
                answer = tell(about)
            case ["v2", "health", "live"]:
                answer = tell({"live": True})
            case ["v2", "health", "ready"]:
                ready = desk.is_ready()
                answer = tell({"ready": ready}, 200 if ready else 503)
            case _:
                raise _nowhere(head)
        _must_be(head, "GET")
        return answer

    def _model(self, head: Head, rest: Sequence[str]) -> Answer:
        desk = self._desk
        match rest:
            case [model] | [model, "versions", _] if model != "stats" or len(rest) > 1:
                return tell(_metadata(desk.card(model, _version(rest))))
            case ["stats"]:
                return tell({"model_stats": [_statistics(one) for one in desk.statistics()]})
            case [model, "ready"] | [model, "versions", _, "ready"]:
                reason = desk.not_ready(model, _version(rest))
                if reason:
                    return tell({"name": model, "ready": False, "error": reason}, 503)
                return tell({"name": model, "ready": True})
            case [model, "stats"] | [model, "versions", _, "stats"]:
                found = desk.statistics(model, _version(rest))
                return tell({"model_stats": [_statistics(one) for one in found]})
            case _:
                raise _nowhere(head)

    def _repository(self, head: Head, rest: Sequence[str], body: Buffer) -> Answer:
        match rest:
            case ["index"]:
                asked: Any = load_json(body) if len(body) else {}
                if not isinstance(asked, dict):
                    raise RequestError("the request must be a JSON object")
                return tell(
                    [
                        {
                            "name": entry.model,
                            "version": entry.version,
                            "state": "READY" if entry.ready else "UNAVAILABLE",
                            "reason": entry.reason,
                        }
                        for entry in self._desk.index()
                        if entry.ready or asked.get("ready") is not True
                    ]
                )
            case ["models", model, "load" | "unload"]:
                self._desk.change_repository(model)
        raise _nowhere(head)

    def _shared(self, head: Head, rest: Sequence[str], body: Buffer) -> Answer:
        regions = self._desk.regions
        match rest:
            case ["status"] | ["region", _, "status"]:
                _must_be(head, "GET")
                return tell([_region(one) for one in regions.status(_region_name(rest))])
            case ["unregister"] | ["region", _, "unregister"]:
                _must_be(head, "POST")
                regions.unregister(_region_name(rest))
                return tell({})
            case ["region", name, "register"]:
                _must_be(head, "POST")
                asked = load_json(body)
                if not isinstance(asked, dict):
                    raise RequestError("the request must be a JSON object")
                key, offset, size = (asked.get(k) for k in ("key", "offset", "byte_size"))
                if not isinstance(key, str) or type(offset or 0) is not int:
                    raise RequestError("a region needs a key, a byte_size and, if any, an offset")
                if type(size) is not int:
                    raise RequestError("a region needs a byte_size")
                regions.register(name, key, offset or 0, size)
                return tell({})
        raise _nowhere(head)


def _region_name(rest: Sequence[str]) -> str:
    return rest[1] if len(rest) > 1 else ""


def _segments(target: str) -> list[str]:
    if target.startswith("http://"):
        target = "/" + target[7:].partition("/")[2]
    path = target.partition("?")[0].rstrip("/")
    found = path.split("/")[1:]
    return [unquote(one) for one in found] if "%" in path else found


def _version(rest: Sequence[str]) -> str:
    return rest[2] if len(rest) > 2 else ""


def _must_be(head: Head, method: str) -> None:
    if head.method != method and (head.method, method) != ("HEAD", "GET"):
        raise WireError(405, f"{head.method} is not for {_short(head.target)}", f"use {method}")


def _nowhere(head: Head) -> WireError:
    return WireError(
        404,
        f"there is nothing at {_short(head.target)}",
        "this is the Open Inference Protocol v2: /v2, /v2/models/MODEL/infer …",
    )


def _short(target: str) -> str:
    return target if len(target) <= 200 else target[:199] + "…"


def _metadata(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.model,
        "versions": [card.version],
        "platform": card.platform,
        "inputs": [_spec(spec) for spec in card.signature.inputs],
        "outputs": [_spec(spec) for spec in card.signature.outputs],
        "properties": {"labels_count": str(len(card.labels)), "lighterman_rung": card.rung},
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype.value, "shape": wire_shape(spec)}


def _statistics(one: Statistics) -> dict[str, Any]:
    """As Triton's statistics extension has it."""
    return {
        "name": one.model,
        "version": one.version,
        "last_inference": int(one.last_at * 1000),
        "inference_count": one.inferences,
        "execution_count": one.executions,
        "inference_stats": {
            name: {"count": count, "ns": ns} for name, (count, ns) in one.durations().items()
        },
        "batch_stats": [],
    }


def _region(one: Region) -> dict[str, Any]:
    return {"name": one.name, "key": one.key, "offset": one.offset, "byte_size": one.size}
