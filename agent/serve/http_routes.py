"""Paths of the Open Inference Protocol v2 over HTTP, and all answers but those of inferences.

Refuses to read bodies of inferences: `http_infer` does, where it does not hold up the others.
"""

from collections.abc import Mapping, Sequence
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

_NS = 1e9


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


def _segments(target: str) -> list[str]:
    if target.startswith("http://"):
        target = "/" + target[7:].partition("/")[2]
    path = target.partition("?")[0].rstrip("/")
    found = path.split("/")[1:]
    return [unquote(one) for one in found] if "%" in path else found


def _version(rest: Sequence[str]) -> str:
    return rest[2] if len(rest) > 2 else ""


def _must_be(head: Head, method: str) -> None:
    if head.method != method:
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
    """As Triton's statistics extension has it; what is neither queue nor runtime is input."""
    success, rest_s = one.success, max(0.0, one.success_s - one.queue_s - one.infer_s)
    return {
        "name": one.model,
        "version": one.version,
        "last_inference": int(one.last_at * 1000),
        "inference_count": one.inferences,
        "execution_count": success,
        "inference_stats": {
            "success": _duration(success, one.success_s),
            "fail": _duration(one.failed, one.failed_s),
            "queue": _duration(success, one.queue_s),
            "compute_input": _duration(success, rest_s),
            "compute_infer": _duration(success, one.infer_s),
            "compute_output": _duration(success, 0.0),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> Mapping[str, int]:
    return {"count": count, "ns": int(seconds * _NS)}
