"""The doors of the agent's rooms: what the loop asks of host, store, wire and clock.

Refuses implementations. All calls are synchronous; each says which errors it raises.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.domain.batching import Curve
from agent.domain.desired import DesiredModel, Target
from agent.domain.histogram import Histogram
from agent.domain.ladder import Pressure
from agent.domain.ports_store import Identity as Identity
from agent.domain.ports_store import IdentityStore as IdentityStore
from agent.domain.ports_store import Journal as Journal
from agent.domain.ports_store import SlotStore as SlotStore
from agent.domain.ports_store import Spool as Spool
from agent.domain.ports_store import SpoolEntry as SpoolEntry
from agent.domain.probation import LadderPosition, RollBack, RowState, StepDown, Trial
from agent.domain.tensor import Signature, Tensor
from agent.errors import AgentError


class Clock(Protocol):
    """Reads time."""

    def now(self) -> datetime:
        """Wall time, aware UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


@dataclass(frozen=True, slots=True)
class InferResult:
    """The outputs, and who made them. `service_s` is the runtime call alone, `queue_s` the wait.

    `rows` is the size of the batch that was asked; 1 where the model takes none. `executions` is 1,
    or 0 where the request was inferred together with another one that has it.
    """

    outputs: tuple[Tensor, ...]
    version: str
    rung: str
    service_s: float
    queue_s: float = 0.0
    rows: int = 1
    executions: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """What one client asks of a model; `waited_s` lie behind it."""

    inputs: Sequence[Tensor]
    outputs: Sequence[str] = ()
    waited_s: float = 0.0


class Infer(Protocol):
    """Answers requests; safe to call from many threads."""

    def infer(
        self, model: str, inputs: Sequence[Tensor], outputs: Sequence[str] = ()
    ) -> InferResult:
        """Run one request on whatever serves now.

        Raises RequestError, UnknownModelError, UnavailableError, InferenceError.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a client may know of a model; `not_ready` is the reason when it cannot infer."""

    model: str
    version: str
    platform: str
    signature: Signature
    labels: tuple[str, ...]
    rung: str
    not_ready: str = ""


class Served(Infer, Protocol):
    """What the inference API serves. `waited_s` is how long a request waited before."""

    def infer(
        self,
        model: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[str] = (),
        waited_s: float = 0.0,
    ) -> InferResult:
        """See `Infer.infer`."""
        ...

    def infer_now(
        self, model: str, inputs: Sequence[Tensor], outputs: Sequence[str] = ()
    ) -> InferResult | None:
        """`infer`, if that neither waits nor takes long; else None, and nothing was done.

        For who has others to care for: at most some milliseconds, if the model stays what it was.
        """
        ...

    def infer_together(
        self, model: str, requests: Sequence[Request]
    ) -> list[InferResult | AgentError]:
        """Several of one shape but for their rows, as one batch where that pays; in their order.

        Each has an answer or an error of its own. UnknownModelError, UnavailableError for all.
        """
        ...

    def curve(self, model: str) -> Curve:
        """What batches of the rung that answers were measured to take. UnknownModelError."""
        ...

    def width(self, model: str) -> int:
        """How many requests of a model are worth having under way. UnknownModelError."""
        ...

    def add_queue(self, of: Callable[[str], tuple[int, float]]) -> None:
        """Requests that wait outside: `of` a model how many, and the longest wait in seconds."""
        ...

    def models(self) -> tuple[str, ...]:
        """Names of the models that have something loaded, in stable order."""
        ...

    def card(self, model: str) -> ModelCard:
        """What the model is and whether it can infer now. UnknownModelError."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What the host did inline after an inference, or that `verdict` is due from the loop.

    `swapped_to` is what answers since: a slot id after a RollBack, a rung after a StepDown; None
    when the host could not (nothing loaded to go to) and the loop has to. `seen` counts the slot's
    inferences in this trial, the deciding one included.
    """

    model: str
    slot_id: str
    verdict: RollBack | StepDown
    swapped_to: str | None
    at_s: float
    done_in_s: float
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves one model now; `row` are the counters of the running trial.

    `resident` rungs answer at once; `usable` ones also count those that `set_rung` would load
    first, remote ones and off: they are the rungs to choose from, heavy to light. `remarks` say
    what runs otherwise than its profile asks, as on the CPU for want of an accelerator.
    """

    model: str
    version: str
    slot_id: str
    rung: str
    trial: Trial
    row: RowState
    resident: tuple[str, ...]
    position: LadderPosition
    p95_s: float | None = None
    usable: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RungWindow:
    """What one build did on one rung since it was last taken; `digest` is empty when remote."""

    model: str
    version: str
    rung: str
    digest: str
    service: Histogram
    errors: int = 0
    non_finite: int = 0
    queue_age_max_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """How the current rung does: p95 of its last `window_s`, age of the oldest waiting request."""

    p95_s: float | None
    queue_age_s: float | None


class ModelHost(Infer, Protocol):
    """Holds loaded models. Slots are named by `DesiredModel.slot_id`."""

    def load(self, release: DesiredModel, paths: Mapping[str, str]) -> None:
        """Load a release beside what serves; `paths` gives the file of every target digest.

        Heavy to light as memory allows, at least one local rung. LoadError; then nothing is kept.
        """
        ...

    def warm(self, model: str, slot_id: str) -> None:
        """Run every loaded rung once. LoadError when one fails or gives wrong shapes."""
        ...

    def swap(
        self, model: str, slot_id: str, trial: Trial, row: RowState, fallback: str | None
    ) -> str | None:
        """Let a loaded slot answer from now on; gives the slot id it replaced.

        `fallback` is the loaded slot that an inline RollBack swaps back to (None: only tell).
        No request in flight fails. LoadError when the slot is not loaded.
        """
        ...

    def settle(self, model: str, slot_id: str, *, latched: bool) -> None:
        """From now on the slot is judged as committed."""
        ...

    def reconfigure(self, release: DesiredModel) -> None:
        """Take over policy, params, labels and remote endpoints of a loaded slot."""
        ...

    def set_rung(self, model: str, rung: str) -> None:
        """Answer with this rung from now on, loading it first where memory kept it out.

        UnavailableError when there is no such rung; LoadError when it cannot be loaded. Nothing
        changed then.
        """
        ...

    def unload(self, model: str, slot_id: str) -> None:
        """Drain and free a slot that does not answer any more; unknown slots are fine."""
        ...

    def signature(self, model: str) -> Signature:
        """What the serving version takes and gives. UnknownModelError."""
        ...

    def serving(self, model: str) -> Serving | None:
        """What answers now. `p95_s` is of the service times since the swap."""
        ...

    def measure(self, model: str) -> Measured:
        """Readings for the ladder, of the current rung alone. UnknownModelError."""
        ...

    def feel(self, pressure: Pressure) -> None:
        """The newest readings of the host: they set the pressure mark of the next inferences."""
        ...

    def take_windows(self) -> tuple[RungWindow, ...]:
        """Everything inferred since the last call, per build and rung, for telemetry."""
        ...

    def close(self) -> None:
        """Let requests in flight end, then free every model."""
        ...


class Sensors(Protocol):
    """Reads the host."""

    def read(self) -> Pressure:
        """Temperature, memory, CPU, throttling; None for what this host cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class LinkReading:
    """The link to a remote rung: round trip of the last answers, share of probes without one.

    `why` is set when the server lives but cannot answer for the version: then all counts as lost.
    """

    rtt_s: float | None
    loss_pct: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a remote rung needs at the other end: an endpoint that serves this very version."""

    endpoint: str
    model: str
    version: str


class LinkProbe(Protocol):
    """Looks at the links of remote rungs by itself, in a thread of its own."""

    def watch(self, remotes: frozenset[RemoteModel]) -> None:
        """Look at exactly these from now on."""
        ...

    def read(self, remote: RemoteModel) -> LinkReading | None:
        """The newest reading; None before the first probe ended."""
        ...


class Fetcher(Protocol):
    """Brings the bytes of a target."""

    def fetch(self, target: Target, offset: int) -> Iterator[bytes]:
        """Chunks from `offset` on. FetchError says whether trying again can help."""
        ...


class Engines(Protocol):
    """What devices of one kind compile for each other; a key holds all that it depends on."""

    def fetch(self, key: Mapping[str, str]) -> bytes | None:
        """Bytes that were verified for exactly this key; None: compile it here. Raises nothing."""
        ...

    def offer(self, key: Mapping[str, str], data: bytes) -> None:
        """Give what was compiled here to others; AgentError where nobody takes it."""
        ...
