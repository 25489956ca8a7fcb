"""Reads and writes the manifest: the JSON form of a desired state. Fails closed.

Refuses what it does not understand (protocol, types, digests, ladders that cannot serve), and to
judge signatures: the bytes were verified before. Keys it does not know are left alone: what
changes a meaning changes `protocol`.
"""

import re

from agent.domain import strict
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
from agent.domain.strict import MAX_MANIFEST_BYTES, Object
from agent.domain.tensor import AxisRange, DType, Signature, TensorSpec
from agent.errors import ManifestError

__all__ = ["MAX_MANIFEST_BYTES", "parse_manifest", "parse_model", "parse_policy"]

MAX_TARGET_BYTES = 1 << 40

_DEVICE = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_manifest(data: bytes) -> DesiredState:
    """Read a manifest; ManifestError names the place of the first thing that is wrong."""
    body = strict.as_object(strict.load(data), "manifest")
    for key, known in (("schema", SCHEMA), ("protocol", PROTOCOL)):
        value = strict.whole(body, key, "manifest")
        if value != known:
            raise ManifestError(
                f"manifest.{key} is {value}, this agent speaks {known}",
                "update the agent, or the controller",
            )
    device = strict.text(body, "device", "manifest")
    if not _DEVICE.fullmatch(device):
        raise ManifestError(f"manifest.device {device!r} is not a device id")
    models = tuple(
        parse_model(item, f"models[{i}]")
        for i, item in enumerate(strict.as_list(body, "models", "manifest"))
    )
    names = [m.model for m in models]
    if len(set(names)) != len(names):
        raise ManifestError("manifest.models names a model twice")
    return DesiredState(
        generation=strict.whole(body, "generation", "manifest"),
        protocol=PROTOCOL,
        device=device,
        project=strict.text(body, "project", "manifest"),
        issued_at=strict.moment(body, "issued_at", "manifest"),
        models=models,
    )


def parse_model(value: JsonValue, where: str = "model") -> DesiredModel:
    """Read one entry of `models`; also the form in which slots and journal keep a release."""
    body = strict.as_object(value, where)
    rungs = tuple(
        _rung(item, f"{where}.ladder[{i}]")
        for i, item in enumerate(strict.as_list(body, "ladder", where))
    )
    _check_ladder(rungs, where)
    signature = strict.as_object(strict.get(body, "signature", where), f"{where}.signature")
    return DesiredModel(
        model=strict.name(body, "model", where),
        version=strict.name(body, "version", where),
        rollout=strict.name(body, "rollout", where),
        activation=strict.as_enum(
            Activation, strict.text(body, "activation", where), f"{where}.activation"
        ),
        signature=Signature(
            inputs=parse_specs(signature, "inputs", f"{where}.signature"),
            outputs=parse_specs(signature, "outputs", f"{where}.signature"),
            axes=parse_axes(signature, f"{where}.signature"),
        ),
        labels=strict.texts(body, "labels", where),
        params=strict.as_object(strict.get(body, "params", where), f"{where}.params"),
        rungs=rungs,
        policy=parse_policy(strict.get(body, "policy", where), f"{where}.policy"),
    )


def parse_policy(value: JsonValue, where: str = "policy") -> Policy:
    """Read a policy; `_ms` become seconds. Thresholds have to leave room for hysteresis."""
    body = strict.as_object(value, where)
    proving = strict.as_object(strict.get(body, "probation", where), f"{where}.probation")
    policy = Policy(
        name=strict.text(body, "name", where),
        slow_threshold_s=strict.positive(body, "slow_threshold_ms", where) / 1000,
        slow_count=strict.whole(body, "slow_count", where, least=1),
        idle_gap_s=strict.number(body, "idle_gap_s", where),
        probation=ProbationPolicy(
            min_inferences=strict.whole(proving, "min_inferences", f"{where}.probation", least=1),
            min_s=strict.number(proving, "min_s", f"{where}.probation"),
            max_s=strict.number(proving, "max_s", f"{where}.probation"),
        ),
        ladder=_ladder_policy(strict.get(body, "ladder", where), f"{where}.ladder"),
    )
    if policy.probation.max_s < policy.probation.min_s:
        raise ManifestError(f"{where}.probation: max_s is below min_s")
    return policy


def _ladder_policy(value: JsonValue, where: str) -> LadderPolicy:
    body = strict.as_object(value, where)
    policy = LadderPolicy(
        p95_budget_s=strict.positive(body, "p95_budget_ms", where) / 1000,
        p95_recover_pct=strict.positive(body, "p95_recover_pct", where),
        queue_age_s=strict.positive(body, "queue_age_ms", where) / 1000,
        temperature_down_c=strict.number(body, "temperature_down_c", where),
        temperature_up_c=strict.number(body, "temperature_up_c", where),
        memory_down_pct=strict.positive(body, "memory_down_pct", where),
        memory_up_pct=strict.positive(body, "memory_up_pct", where),
        cpu_down_pct=strict.positive(body, "cpu_down_pct", where),
        cpu_up_pct=strict.positive(body, "cpu_up_pct", where),
        link_down_s=strict.positive(body, "link_down_ms", where) / 1000,
        link_up_s=strict.positive(body, "link_up_ms", where) / 1000,
        link_loss_pct=strict.positive(body, "link_loss_pct", where),
        dwell_down_s=strict.number(body, "dwell_down_s", where),
        dwell_up_s=strict.number(body, "dwell_up_s", where),
        window_s=strict.positive(body, "window_s", where),
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
    body = strict.as_object(value, where)
    target = strict.get(body, "target", where)
    rung = RungSpec(
        name=strict.name(body, "rung", where),
        kind=strict.as_enum(RungKind, strict.text(body, "kind", where), f"{where}.kind"),
        variant=strict.text_or_none(body, "variant", where),
        runtime=strict.text_or_none(body, "runtime", where),
        recipe=strict.text_or_none(body, "recipe", where),
        endpoint=strict.text_or_none(body, "endpoint", where),
        memory_bytes=None
        if strict.get(body, "memory_bytes", where) is None
        else strict.whole(body, "memory_bytes", where),
        target=None if target is None else parse_target(target, f"{where}.target"),
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


def parse_target(value: JsonValue, where: str) -> Target:
    """Read one signed file."""
    body = strict.as_object(value, where)
    digest = strict.text(body, "digest", where)
    if not _DIGEST.fullmatch(digest):
        raise ManifestError(f"{where}.digest {digest!r} is not sha256:<64 hex>")
    length = strict.whole(body, "length", where, least=1)
    if length > MAX_TARGET_BYTES:
        raise ManifestError(f"{where}.length {length} is beyond {MAX_TARGET_BYTES} bytes")
    return Target(
        digest=digest,
        length=length,
        media_type=strict.text(body, "media_type", where),
        custom=strict.as_object(strict.get(body, "custom", where), f"{where}.custom"),
        sources=strict.texts(body, "sources", where),
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


def parse_specs(body: Object, key: str, where: str) -> tuple[TensorSpec, ...]:
    """Read the tensors of one side of a signature."""
    specs = []
    for i, item in enumerate(strict.as_list(body, key, where)):
        here = f"{where}.{key}[{i}]"
        entry = strict.as_object(item, here)
        axes: list[int | str] = []
        for axis in strict.as_list(entry, "shape", here):
            if isinstance(axis, bool) or not isinstance(axis, int | str) or axis in ("", 0):
                raise ManifestError(f"{here}.shape has {axis!r}: a size or an axis name is needed")
            if isinstance(axis, int) and axis < 0:
                raise ManifestError(f"{here}.shape has the size {axis}")
            axes.append(axis)
        dtype = strict.as_enum(DType, strict.text(entry, "dtype", here), f"{here}.dtype")
        specs.append(TensorSpec(strict.text(entry, "name", here), dtype, tuple(axes)))
    if not specs or len({s.name for s in specs}) != len(specs):
        raise ManifestError(f"{where}.{key} is empty or names a tensor twice")
    return tuple(specs)


def parse_axes(body: Object, where: str) -> tuple[AxisRange, ...]:
    """Bounds of dynamic axes; a signature from before there were any has none."""
    if "axes" not in body:
        return ()
    found = []
    for i, item in enumerate(strict.as_list(body, "axes", where)):
        here = f"{where}.axes[{i}]"
        entry = strict.as_object(item, here)
        sizes = [strict.whole(entry, key, here, least=1) for key in ("least", "typical", "most")]
        if sizes != sorted(sizes):
            raise ManifestError(f"{here}: least, typical and most are {sizes}")
        name = strict.text(entry, "name", here)
        found.append(AxisRange(name, sizes[0], sizes[2], sizes[1]))
    return tuple(found)
