"""Writes a release back as JSON, for slots and journal: the inverse of `manifest.parse_model`.

Refuses to be used for signing: what is signed is made and kept as bytes by the controller.
"""

from dataclasses import asdict

from agent.domain.desired import DesiredModel, JsonValue, RungSpec
from agent.domain.policy import Policy
from agent.domain.tensor import Signature, TensorSpec

Object = dict[str, JsonValue]


def model_to_json(release: DesiredModel) -> Object:
    """The manifest entry of a release; parsing it gives an equal value."""
    return {
        "model": release.model,
        "version": release.version,
        "rollout": release.rollout,
        "activation": release.activation.value,
        "signature": {
            "inputs": [_spec(s) for s in release.signature.inputs],
            "outputs": [_spec(s) for s in release.signature.outputs],
            **_bounds(release.signature),
        },
        "labels": list(release.labels),
        "params": dict(release.params),
        "ladder": [_rung(r) for r in release.rungs],
        "policy": policy_to_json(release.policy),
    }


def policy_to_json(policy: Policy) -> Object:
    """The manifest form of a policy: milliseconds where the key says so."""
    body: Object = {
        "name": policy.name,
        "slow_threshold_ms": _ms(policy.slow_threshold_s),
        "slow_count": policy.slow_count,
        "idle_gap_s": policy.idle_gap_s,
        "probation": asdict(policy.probation),
    }
    ladder: Object = {}
    for key, value in asdict(policy.ladder).items():
        if key in ("p95_budget_s", "queue_age_s", "link_down_s", "link_up_s"):
            ladder[key.removesuffix("_s") + "_ms"] = _ms(value)
        else:
            ladder[key] = value
    body["ladder"] = ladder
    return body


def _ms(seconds: float) -> float:
    # Nearest value that comes back as the same seconds: 0.1 is 100.0, not 100.00000000000001.
    rounded = round(seconds * 1000, 6)
    return rounded if rounded / 1000 == seconds else seconds * 1000


def _spec(spec: TensorSpec) -> Object:
    return {"name": spec.name, "dtype": spec.dtype.value, "shape": list(spec.shape)}


def _bounds(signature: Signature) -> Object:
    """Only where there are any, so that what was kept before stays as it was."""
    axes: list[JsonValue] = [asdict(one) for one in signature.axes]
    return {"axes": axes} if axes else {}


def _rung(rung: RungSpec) -> Object:
    target: Object | None = None
    if rung.target is not None:
        target = {
            "digest": rung.target.digest,
            "length": rung.target.length,
            "media_type": rung.target.media_type,
            "custom": dict(rung.target.custom),
            "sources": list(rung.target.sources),
        }
    return {
        "rung": rung.name,
        "kind": rung.kind.value,
        "variant": rung.variant,
        "runtime": rung.runtime,
        "recipe": rung.recipe,
        "endpoint": rung.endpoint,
        "memory_bytes": rung.memory_bytes,
        "target": target,
    }
