"""Devices, what they can do, and the profile that fits.

Refuses typed labels: only reported facts match.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from controller.domain.hosting import Hosting, parse_hosting
from controller.domain.spec import Spec, parse_size


class DeviceState(StrEnum):
    """Where a device stands with its controller."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    QUARANTINED = "QUARANTINED"
    RETIRED = "RETIRED"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The facts a profile is matched by. Sizes in bytes; unknown text is empty, never invented."""

    arch: str = ""
    os: str = ""
    cpu_model: str = ""
    device_model: str = ""
    accelerators: tuple[str, ...] = ()
    runtimes: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    disk_bytes: int = 0
    agent_version: str = ""
    python: str = ""
    host_simulated: bool = False

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {
            "arch": self.arch,
            "os": self.os,
            "cpu_model": self.cpu_model,
            "device_model": self.device_model,
            "accelerators": list(self.accelerators),
            "runtimes": dict(self.runtimes),
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "agent_version": self.agent_version,
            "python": self.python,
            "host_simulated": self.host_simulated,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> "Capabilities":
        """Read :meth:`to_json`; InvalidError names what is wrong."""
        spec = Spec(value, "capabilities")
        runtimes = spec.sub("runtimes").body
        return cls(
            arch=spec.text("arch", ""),
            os=spec.text("os", ""),
            cpu_model=spec.text("cpu_model", ""),
            device_model=spec.text("device_model", ""),
            accelerators=spec.texts("accelerators", ()),
            runtimes={str(name): str(version) for name, version in runtimes.items()},
            memory_bytes=spec.whole("memory_bytes", 0),
            disk_bytes=spec.whole("disk_bytes", 0),
            agent_version=spec.text("agent_version", ""),
            python=spec.text("python", ""),
            host_simulated=spec.flag("host_simulated"),
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """A class of devices: how to know them, what to build for them, what they bear."""

    name: str
    description: str = ""
    verified: bool = False
    container_only: bool = False
    arch: str = "*"
    device_model: str = "*"
    cpu_model: str = "*"
    accelerators: tuple[str, ...] = ()
    priority: int = 0
    runtimes: tuple[str, ...] = ("onnxruntime",)
    recipes: tuple[str, ...] = ()
    memory_budget_bytes: int | None = None
    latency_budget_ms: float | None = None
    throttle_c: float | None = None
    hosting: Hosting = field(default_factory=Hosting)


def parse_profile(name: str, spec: Mapping[str, object]) -> Profile:
    """The ``spec`` of ``kind: Profile``; InvalidError names the key that is wrong."""
    top = Spec(spec, f"Profile {name}: spec").only(
        "description", "verified", "container_only", "match", "priority", "runtimes", "recipes",
        "memory_budget_bytes", "latency_budget_ms", "thermal", "runtime_python",
        "model_host", "runtime_options",
    )  # fmt: skip
    match = top.sub("match").only("arch", "device_model", "cpu_model", "accelerators")
    thermal = top.sub("thermal").only("throttle_c")
    budget = spec.get("memory_budget_bytes")
    return Profile(
        name=name,
        description=top.text("description", ""),
        verified=top.flag("verified"),
        container_only=top.flag("container_only"),
        arch=match.text("arch", "*"),
        device_model=match.text("device_model", "*"),
        cpu_model=match.text("cpu_model", "*"),
        accelerators=match.texts("accelerators", ()),
        priority=top.whole("priority", 0),
        runtimes=top.texts("runtimes"),
        recipes=top.texts("recipes"),
        memory_budget_bytes=None
        if budget is None
        else parse_size(budget, f"{top.where}.memory_budget_bytes"),
        latency_budget_ms=top.optional("latency_budget_ms"),
        throttle_c=thermal.optional("throttle_c"),
        hosting=parse_hosting(top),
    )


def fits(capabilities: Capabilities, profile: Profile) -> bool:
    """Whether a device with these capabilities is of this profile. Globs ignore case."""
    globs = (
        (capabilities.arch, profile.arch),
        (capabilities.device_model, profile.device_model),
        (capabilities.cpu_model, profile.cpu_model),
    )
    if not all(_glob(value, pattern) for value, pattern in globs):
        return False
    if not all(
        any(_glob(a, wanted) for a in capabilities.accelerators) for wanted in profile.accelerators
    ):
        return False
    return any(runtime in capabilities.runtimes for runtime in profile.runtimes)


def match_profile(capabilities: Capabilities, profiles: Iterable[Profile]) -> Profile | None:
    """The fitting profile of the highest priority (then the first by name), or None."""
    fitting = [profile for profile in profiles if fits(capabilities, profile)]
    return min(fitting, key=lambda p: (-p.priority, p.name), default=None)


def host_matches(host: Capabilities, profile: Profile) -> bool:
    """Whether figures measured on ``host`` speak for the profile's class.

    A profile that names neither board nor processor is no class of hardware: any host of its
    architecture would match, and a latency measured there says nothing of the devices.
    """
    if profile.device_model == "*" and profile.cpu_model == "*":
        return False
    return fits(host, profile)


def _glob(value: str, pattern: str) -> bool:
    return fnmatchcase(value.casefold(), pattern.casefold())
