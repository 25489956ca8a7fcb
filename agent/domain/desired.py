"""The desired state of a device: its values, and whether one may be applied here.

Refuses to read JSON or check a signature: `manifest` parses, `agent.link` verifies before that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

from agent.domain.policy import Policy
from agent.domain.tensor import Signature
from agent.errors import ManifestError

SCHEMA = 1
PROTOCOL = 1

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]


class RungKind(StrEnum):
    """Where a rung infers."""

    LOCAL = "local"
    REMOTE = "remote"
    OFF = "off"


class Activation(StrEnum):
    """Who infers: the agent, or an application that the agent hands the files to."""

    SERVE = "serve"
    HANDOVER = "handover"


@dataclass(frozen=True, slots=True)
class Target:
    """One signed file: its digest decides what it is, `sources` only where it may be had."""

    digest: str
    length: int
    media_type: str
    custom: Mapping[str, JsonValue] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RungSpec:
    """One step of a ladder; `target` for local rungs, `endpoint` for remote ones."""

    name: str
    kind: RungKind
    variant: str | None = None
    runtime: str | None = None
    recipe: str | None = None
    endpoint: str | None = None
    memory_bytes: int | None = None
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One model as this device should run it in one rollout."""

    model: str
    version: str
    rollout: str
    activation: Activation
    signature: Signature
    labels: tuple[str, ...]
    params: Mapping[str, JsonValue]
    rungs: tuple[RungSpec, ...]
    policy: Policy

    @property
    def targets(self) -> tuple[Target, ...]:
        """The files this release needs on disk, heavy to light, each digest once."""
        seen: dict[str, Target] = {}
        for rung in self.rungs:
            if rung.target is not None:
                seen.setdefault(rung.target.digest, rung.target)
        return tuple(seen.values())

    @property
    def local_rungs(self) -> tuple[RungSpec, ...]:
        """Rungs that infer here, heavy to light; never empty."""
        return tuple(r for r in self.rungs if r.kind is RungKind.LOCAL)

    @property
    def slot_id(self) -> str:
        """Names this content: version and a short hash of its files.

        Two builds of one version differ; the same files in another rollout do not.
        """
        text = "\n".join(f"{r.name} {r.target.digest}" for r in self.rungs if r.target is not None)
        return f"{self.version}@{sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class DesiredState:
    """All models of one device at one generation."""

    generation: int
    protocol: int
    device: str
    project: str
    issued_at: datetime
    models: tuple[DesiredModel, ...]

    @property
    def slot_ids(self) -> dict[str, str]:
        """Slot id per model name."""
        return {m.model: m.slot_id for m in self.models}


def check_fits(state: DesiredState, device: str, highest_generation: int) -> None:
    """Refuse a state for another device or one older than any this device ever saw.

    The same generation again is fine: desired states are level-triggered.
    """
    if state.device != device:
        raise ManifestError(
            f"desired state is for device {state.device!r}, this is {device!r}",
            "the controller or the road to it mixes devices up; nothing was applied",
        )
    if state.generation < highest_generation:
        raise ManifestError(
            f"desired state has generation {state.generation},"
            f" {highest_generation} was seen before",
            "an old state was replayed or the controller lost data; nothing was applied",
        )
