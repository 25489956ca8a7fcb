"""What a device can do, as its agent found out.

Refuses labels and guesses: only what was read from the host or from an installed runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The facts a profile is matched by. Sizes in bytes; unknown text is empty, never invented."""

    arch: str
    os: str
    cpu_model: str
    device_model: str
    accelerators: tuple[str, ...]
    runtimes: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    disk_bytes: int = 0
    agent_version: str = ""
    python: str = ""
    host_simulated: bool = False
