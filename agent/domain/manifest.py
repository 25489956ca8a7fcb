"""Reads and writes the manifest: the JSON form of a desired state. Fails closed.

Refuses what it does not understand (protocol, types, digests, ladders that cannot serve), and to
judge signatures: the bytes were verified before. Keys it does not know are left alone: what
changes a meaning changes `protocol`.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from agent.domain.desired import (
    PROTOCOL,
    SCHEMA,
    Activation,
    DesiredModel,
    DesiredState,
    JsonValue,
    RungKind,
    RungSpec,
    Target,
)
from agent.domain.policy import LadderPolicy, Policy, ProbationPolicy
from agent.domain.tensor import DType, Signature, TensorSpec
from agent.errors import ManifestError

MAX_MANIFEST_BYTES = 8 * 1024 * 1024
MAX_TARGET_BYTES = 1 << 40

T = TypeVar("T")
Object = dict[str, JsonValue]

# Names become parts of file names and topics: no separators, no leading dot.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_DEVICE = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_manifest(data: bytes) -> DesiredState:
    """Read a manifest; ManifestError names the place of the first thing that is wrong."""
    body = _object(_load(data), "manifest")
    for key, known in (("schema", SCHEMA), ("protocol", PROTOCOL)):
        value = _int(body, key, "manifest")
        if value != known:
            raise ManifestError(
                f"manifest.{key} is {value}, this agent speaks {known}",
                "update the agent, or the controller",
            )
    device = _str(body, "device", "manifest")
    if not _DEVICE.fullmatch(device):
        raise ManifestError(f"manifest.device {device!r} is not a device id")
    models = tuple(
        parse_model(item, f"models[{i}]")
        for i, item in enumerate(_list(body, "models", "manifest"))
    )
    names = [m.model for m in models]
    if len(set(names)) != len(names):
        raise ManifestError("manifest.models names a model twice")
    return DesiredState(
        generation=_int(body, "generation", "manifest"),
        protocol=PROTOCOL,
        device=device,
        project=_str(body, "project", "manifest"),
        issued_at=_time(body, "issued_at", "manifest"),
        models=models,
    )


def parse_model(value: JsonValue, where: str = "model") -> DesiredModel:
    """Read one entry of `models`; also the form in which slots and journal keep a release."""
    body = _object(value, where)
    rungs = tuple(
        _rung(item, f"{where}.ladder[{i}]") for i, item in enumerate(_list(body, "ladder", where))
    )
    _check_ladder(rungs, where)
    signature = _object(_get(body, "signature", where), f"{where}.signature")
    return DesiredModel(
        model=_name(body, "model", where),
        version=_name(body, "version", where),
        rollout=_name(body, "rollout", where),
        activation=_enum(Activation, _str(body, "activation", where), f"{where}.activation"),
        signature=Signature(
            inputs=_specs(signature, "inputs", f"{where}.signature"),
            outputs=_specs(signature, "outputs", f"{where}.signature"),
        ),
        labels=_strings(body, "labels", where),
        params=_object(_get(body, "params", where), f"{where}.params"),
        rungs=rungs,
        policy=parse_policy(_get(body, "policy", where), f"{where}.policy"),
    )


def parse_policy(value: JsonValue, where: str = "policy") -> Policy:
    """Read a policy; `_ms` become seconds. Thresholds have to leave room for hysteresis."""
    body = _object(value, where)
    proving = _object(_get(body, "probation", where), f"{where}.probation")
    policy = Policy(
        name=_str(body, "name", where),
        slow_threshold_s=_positive(body, "slow_threshold_ms", where) / 1000,
        slow_count=_int(body, "slow_count", where, least=1),
        idle_gap_s=_number(body, "idle_gap_s", where),
        probation=ProbationPolicy(
            min_inferences=_int(proving, "min_inferences", f"{where}.probation", least=1),
            min_s=_number(proving, "min_s", f"{where}.probation"),
            max_s=_number(proving, "max_s", f"{where}.probation"),
        ),
        ladder=_ladder_policy(_get(body, "ladder", where), f"{where}.ladder"),
    )
    if policy.probation.max_s < policy.probation.min_s:
        raise ManifestError(f"{where}.probation: max_s is below min_s")
    return policy


def _ladder_policy(value: JsonValue, where: str) -> LadderPolicy:
    body = _object(value, where)
    policy = LadderPolicy(
        p95_budget_s=_positive(body, "p95_budget_ms", where) / 1000,
        p95_recover_pct=_positive(body, "p95_recover_pct", where),
        queue_age_s=_positive(body, "queue_age_ms", where) / 1000,
        temperature_down_c=_number(body, "temperature_down_c", where),
        temperature_up_c=_number(body, "temperature_up_c", where),
        memory_down_pct=_positive(body, "memory_down_pct", where),
        memory_up_pct=_positive(body, "memory_up_pct", where),
        cpu_down_pct=_positive(body, "cpu_down_pct", where),
        cpu_up_pct=_positive(body, "cpu_up_pct", where),
        link_down_s=_positive(body, "link_down_ms", where) / 1000,
        link_up_s=_positive(body, "link_up_ms", where) / 1000,
        link_loss_pct=_positive(body, "link_loss_pct", where),
        dwell_down_s=_number(body, "dwell_down_s", where),
        dwell_up_s=_number(body, "dwell_up_s", where),
        window_s=_positive(body, "window_s", where),
    )
    for what, up, down in (
        ("temperature", policy.temperature_up_c, policy.temperature_down_c),
        ("memory", policy.memory_up_pct, policy.memory_down_pct),
        ("cpu", policy.cpu_up_pct, policy.cpu_down_pct),
        ("link", policy.link_up_s, policy.link_down_s),
        ("p95_recover_pct", policy.p95_recover_pct, 100.0),
    ):
        if up > down:
            raise ManifestError(f"{where}: {what} steps up above where it steps down")
    return policy


def _rung(value: JsonValue, where: str) -> RungSpec:
    body = _object(value, where)
    target = _get(body, "target", where)
    rung = RungSpec(
        name=_name(body, "rung", where),
        kind=_enum(RungKind, _str(body, "kind", where), f"{where}.kind"),
        variant=_text_or_none(body, "variant", where),
        runtime=_text_or_none(body, "runtime", where),
        recipe=_text_or_none(body, "recipe", where),
        endpoint=_text_or_none(body, "endpoint", where),
        memory_bytes=None
        if _get(body, "memory_bytes", where) is None
        else _int(body, "memory_bytes", where),
        target=None if target is None else _target(target, f"{where}.target"),
    )
    local = rung.kind is RungKind.LOCAL
    if local != (rung.target is not None):
        raise ManifestError(
            f"{where}: a {rung.kind} rung {'needs a' if local else 'has no'} target"
        )
    if local and (not rung.runtime or not rung.variant):
        raise ManifestError(f"{where}: a local rung needs a runtime and a variant")
    if (rung.kind is RungKind.REMOTE) != bool(rung.endpoint):
        raise ManifestError(f"{where}: an endpoint belongs to remote rungs, and to each of them")
    return rung


def _target(value: JsonValue, where: str) -> Target:
    body = _object(value, where)
    digest = _str(body, "digest", where)
    if not _DIGEST.fullmatch(digest):
        raise ManifestError(f"{where}.digest {digest!r} is not sha256:<64 hex>")
    length = _int(body, "length", where, least=1)
    if length > MAX_TARGET_BYTES:
        raise ManifestError(f"{where}.length {length} is beyond {MAX_TARGET_BYTES} bytes")
    return Target(
        digest=digest,
        length=length,
        media_type=_str(body, "media_type", where),
        custom=_object(_get(body, "custom", where), f"{where}.custom"),
        sources=_strings(body, "sources", where),
    )


def _check_ladder(rungs: tuple[RungSpec, ...], where: str) -> None:
    names = [r.name for r in rungs]
    if len(set(names)) != len(names):
        raise ManifestError(f"{where}.ladder names a rung twice")
    if not any(r.kind is RungKind.LOCAL for r in rungs):
        raise ManifestError(
            f"{where}.ladder has no local rung", "a device has to be able to serve by itself"
        )
    if any(r.kind is RungKind.OFF for r in rungs[:-1]):
        raise ManifestError(f"{where}.ladder: the off rung can only be the last")


def _specs(body: Object, key: str, where: str) -> tuple[TensorSpec, ...]:
    specs = []
    for i, item in enumerate(_list(body, key, where)):
        here = f"{where}.{key}[{i}]"
        entry = _object(item, here)
        axes: list[int | str] = []
        for axis in _list(entry, "shape", here):
            if isinstance(axis, bool) or not isinstance(axis, int | str) or axis in ("", 0):
                raise ManifestError(f"{here}.shape has {axis!r}: a size or an axis name is needed")
            if isinstance(axis, int) and axis < 0:
                raise ManifestError(f"{here}.shape has the size {axis}")
            axes.append(axis)
        dtype = _enum(DType, _str(entry, "dtype", here), f"{here}.dtype")
        specs.append(TensorSpec(_str(entry, "name", here), dtype, tuple(axes)))
    if not specs or len({s.name for s in specs}) != len(specs):
        raise ManifestError(f"{where}.{key} is empty or names a tensor twice")
    return tuple(specs)


# -- JSON, strictly --------------------------------------------------------------------------------


def _load(data: bytes) -> JsonValue:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES}")
    try:
        value: JsonValue = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest is not JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> Object:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is no number")


def _get(body: Object, key: str, where: str) -> JsonValue:
    if key not in body:
        raise ManifestError(f"{where}.{key} is missing")
    return body[key]


def _object(value: JsonValue, where: str) -> Object:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is not an object")
    return value


def _list(body: Object, key: str, where: str) -> list[JsonValue]:
    value = _get(body, key, where)
    if not isinstance(value, list):
        raise ManifestError(f"{where}.{key} is not a list")
    return value


def _str(body: Object, key: str, where: str) -> str:
    value = _get(body, key, where)
    if not isinstance(value, str) or not value:
        raise ManifestError(f"{where}.{key} is not text")
    return value


def _text_or_none(body: Object, key: str, where: str) -> str | None:
    return None if _get(body, key, where) in (None, "") else _str(body, key, where)


def _strings(body: Object, key: str, where: str) -> tuple[str, ...]:
    found = []
    for item in _list(body, key, where):
        if not isinstance(item, str):
            raise ManifestError(f"{where}.{key} holds something that is not text")
        found.append(item)
    return tuple(found)


def _name(body: Object, key: str, where: str) -> str:
    value = _str(body, key, where)
    if not _NAME.fullmatch(value):
        raise ManifestError(f"{where}.{key} {value!r} is not a name")
    return value


def _int(body: Object, key: str, where: str, least: int = 0) -> int:
    value = _get(body, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
        raise ManifestError(f"{where}.{key} is {value!r}, a whole number from {least} is needed")
    return value


def _number(body: Object, key: str, where: str) -> float:
    value = _get(body, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ManifestError(f"{where}.{key} is {value!r}, a number from 0 is needed")
    return float(value)


def _positive(body: Object, key: str, where: str) -> float:
    value = _number(body, key, where)
    if value == 0:
        raise ManifestError(f"{where}.{key} is 0, it has to be above")
    return value


def _enum(kind: Callable[[str], T], text: str, where: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ManifestError(f"{where} {text!r} is unknown") from None


def _time(body: Object, key: str, where: str) -> datetime:
    text = _str(body, key, where)
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ManifestError(f"{where}.{key} {text!r} is not a time") from None
    if value.tzinfo is None:
        raise ManifestError(f"{where}.{key} {text!r} has no time zone")
    return value
