"""What the loop is made of, and the messages it takes. Refuses behaviour: only values."""

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.domain.desired import DesiredState
from agent.domain.events import Event
from agent.domain.ports import Clock, Decision, Journal, LinkProbe, ModelHost, Sensors, SlotStore
from agent.loop_tell import Teller
from agent.loop_work import Means


@dataclass(frozen=True, slots=True)
class ForModel:
    """Something happened to one model."""

    model: str
    event: Event


@dataclass(frozen=True, slots=True)
class Decided:
    """The host did something by itself after an inference."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Arrived:
    """A verified desired state."""

    state: DesiredState


@dataclass(frozen=True, slots=True)
class Call:
    """Anything small that has to run on the loop's thread."""

    what: str
    job: Callable[[], None]


Message = ForModel | Decided | Arrived | Call


@dataclass(frozen=True, slots=True)
class LoopParts:
    """What the loop is made of. `rss_bytes` is this process's memory."""

    clock: Clock
    journal: Journal
    store: SlotStore
    host: ModelHost
    probe: LinkProbe
    sensors: Sensors
    teller: Teller
    means: Means
    rss_bytes: Callable[[], int]
    connected: Callable[[], bool]
    telemetry_s: float


@dataclass(order=True, slots=True)
class Timer:
    at_s: float
    number: int
    kind: str = field(compare=False)
    job: Callable[[], None] = field(compare=False)
