"""What all simulated devices share, and what they tell about themselves. Acts on nothing."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.domain.capability import Capabilities
from agent.domain.ports import Clock
from agent.sim.script import Script


@dataclass(frozen=True, slots=True)
class Happened:
    """What the outside may want to know, with the wall clock in seconds since 1970."""

    at: float
    device_id: str
    kind: str  # rung | fetched | polled | reported | acknowledged | busy | failed
    rollout: str = ""
    version: str = ""
    state: str = ""
    generation: int = 0
    applied: bool = False
    detail: str = ""


class Surroundings(Protocol):
    """What all devices share."""

    clock: Clock
    script: Script
    capabilities: Capabilities
    telemetry_s: float
    folder: Path
    connecting: asyncio.Semaphore

    def tell(self, happened: Happened) -> None:
        """Take note."""
        ...
