"""Builds manifests and releases for tests of the agent, through the real parser. Nothing else."""

import hashlib
import json
from typing import Any

from agent.domain.desired import DesiredModel
from agent.domain.manifest import parse_model

POLICY: dict[str, Any] = {
    "name": "default",
    "slow_threshold_ms": 100,
    "slow_count": 5,
    "idle_gap_s": 2,
    "probation": {"min_inferences": 200, "min_s": 60, "max_s": 1800},
    "ladder": {
        "p95_budget_ms": 100,
        "p95_recover_pct": 70,
        "queue_age_ms": 500,
        "temperature_down_c": 80,
        "temperature_up_c": 74,
        "memory_down_pct": 92,
        "memory_up_pct": 85,
        "cpu_down_pct": 95,
        "cpu_up_pct": 80,
        "link_down_ms": 150,
        "link_up_ms": 80,
        "link_loss_pct": 20,
        "dwell_down_s": 3,
        "dwell_up_s": 30,
        "window_s": 10,
    },
}


def content_of(text: str) -> bytes:
    """The bytes of a made-up model file."""
    return f"model file of {text}\n".encode() * 50


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def local_rung(name: str, content: bytes) -> dict[str, Any]:
    """A ladder entry that infers here."""
    return {
        "rung": name,
        "kind": "local",
        "variant": name,
        "runtime": "onnxruntime",
        "recipe": "onnxruntime-int8",
        "endpoint": None,
        "memory_bytes": 50_000_000,
        "target": {
            "digest": digest_of(content),
            "length": len(content),
            "media_type": "application/onnx",
            "custom": {"profile": "intel-n100", "build": "b-1"},
            "sources": [],
        },
    }


def other_rung(name: str, kind: str, endpoint: str | None = None) -> dict[str, Any]:
    """A remote or off rung."""
    return {
        "rung": name,
        "kind": kind,
        "variant": None,
        "runtime": None,
        "recipe": None,
        "endpoint": endpoint,
        "memory_bytes": None,
        "target": None,
    }


def model_body(
    version: str = "1.0.0", rollout: str = "r-1", model: str = "photo"
) -> dict[str, Any]:
    """The manifest entry of a model with a heavy and a light rung."""
    return {
        "model": model,
        "version": version,
        "rollout": rollout,
        "activation": "serve",
        "signature": {
            "inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 3, 8, 8]}],
            "outputs": [{"name": "scores", "dtype": "FP32", "shape": ["batch", 10]}],
        },
        "labels": ["cat", "dog"],
        "params": {"threshold": 0.5},
        "ladder": [
            local_rung("heavy", content_of(f"{model}:{version}/heavy")),
            local_rung("light", content_of(f"{model}:{version}/light")),
        ],
        "policy": json.loads(json.dumps(POLICY)),
    }


def manifest_body(*models: dict[str, Any], generation: int = 7) -> dict[str, Any]:
    """A whole manifest."""
    return {
        "schema": 1,
        "protocol": 1,
        "project": "default",
        "device": "pi5-0042",
        "generation": generation,
        "issued_at": "2026-11-24T10:00:00Z",
        "models": list(models) or [model_body()],
    }


def canonical(body: object) -> bytes:
    """The bytes that are signed."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def release(version: str = "1.0.0", rollout: str = "r-1", **changes: Any) -> DesiredModel:
    """A release; `changes` replace keys of its manifest entry."""
    return parse_model({**model_body(version, rollout), **changes})
