"""What every road does alike: find the version, infer, count; readiness, index, statistics.

Refuses to know any wire: roads bring tensors and take results.
"""

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from agent.domain.batching import Waiting, first_of
from agent.domain.ports import Clock, InferResult, ModelCard, Request, Served
from agent.domain.tensor import Tensor
from agent.errors import AgentError, UnavailableError, UnknownModelError
from agent.serve.errors import RefusedError, outcome_of
from agent.serve.ledger import Ledger, Statistics
from agent.serve.shared_memory import Place, Regions, SharedInput

SERVER_NAME = "lighterman-agent"
# A float32 image of 1,024 x 1,024 is 12 MB; batches of it still fit.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference as a road understood it; `since_s` is when it came, monotonic.

    `places` are of the outputs that go into shared memory, by name.
    """

    model: str
    version: str
    inputs: Sequence[Tensor | SharedInput]
    outputs: Sequence[str]
    since_s: float
    places: Mapping[str, Place] = field(default_factory=dict)

    @property
    def kind(self) -> Hashable:
        """Equal for requests that differ in their rows alone; None for what is answered alone."""
        if self.is_shared or not self.inputs or not all(self.inputs[0].shape[:1]):
            return None
        rows = self.inputs[0].shape[:1]
        if not rows or any(tensor.shape[:1] != rows for tensor in self.inputs):
            return None
        return (
            self.version,
            tuple(self.outputs),
            tuple((tensor.name, tensor.dtype, tensor.shape[1:]) for tensor in self.inputs),
        )

    @property
    def rows(self) -> int:
        """The first axis of its first input."""
        return self.inputs[0].shape[0]

    @property
    def is_shared(self) -> bool:
        """Whether any of its tensors lies in shared memory."""
        return bool(self.places) or any(isinstance(one, SharedInput) for one in self.inputs)


@dataclass(frozen=True, slots=True)
class Indexed:
    """One model of the repository index; `reason` says why it cannot infer."""

    model: str
    version: str
    ready: bool
    reason: str


class Desk:
    """One for all roads of an agent."""

    def __init__(
        self, served: Served, clock: Clock, version: str, *, shares_memory: bool = False
    ) -> None:
        self.version = version
        self.served = served
        self.clock = clock
        self.ledger = Ledger(clock)
        self.regions = Regions(shares_memory)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """From now on new requests are turned away."""
        self._stopping.set()

    @property
    def extensions(self) -> tuple[str, ...]:
        """Extensions of the protocol, by the names that Triton gave them."""
        shared = ("system_shared_memory",) if self.regions.allowed else ()
        return ("binary_tensor_data", "statistics", "model_repository", *shared)

    # -- inferring ---------------------------------------------------------------------------------

    def infer(self, asked: Asked, waited_s: float) -> InferResult:
        """Infer on what serves now; `waited_s` of the wait lie behind. See `Infer.infer`."""
        self._check(asked)
        inputs = self._inputs(asked)
        result = self.served.infer(asked.model, inputs, asked.outputs, waited_s)
        self._put(asked, result)
        self.ledger.answered(asked.model, result, asked.since_s)
        return result

    def infer_together(self, asked: Sequence[Asked]) -> list[InferResult | AgentError]:
        """`infer` for several of one model and shape, as one batch where that pays."""
        now = self.clock.monotonic()
        found: list[InferResult | AgentError | None] = [None] * len(asked)
        requests, places = [], []
        for at, one in enumerate(asked):
            try:
                self._check(one)
                requests.append(Request(self._inputs(one), one.outputs, now - one.since_s))
                places.append(at)
            except AgentError as error:
                found[at] = error
        answers = self.served.infer_together(asked[0].model, requests)
        for at, answer in zip(places, answers, strict=True):
            found[at] = answer
            if isinstance(answer, InferResult):
                self.ledger.answered(asked[at].model, answer, asked[at].since_s)
        return [one for one in found if one is not None]

    def kind_of(self, asked: Asked) -> Hashable:
        """Equal for requests that may be inferred at once; None where that never pays."""
        try:
            return asked.kind if self.served.curve(asked.model).most > 1 else None
        except UnknownModelError:
            return None

    def together(self, model: str, queue: Sequence[Waiting]) -> int:
        """How many of the first in a queue are to be inferred at once."""
        try:
            return first_of(queue, self.served.curve(model))
        except UnknownModelError:
            return 1

    def infer_now(self, asked: Asked) -> InferResult | None:
        """`infer` where that is quick; None: nothing was done."""
        if asked.is_shared:  # large, or nobody would share it: not for who has others to care for
            return None
        self._check(asked)
        result = self.served.infer_now(asked.model, self._inputs(asked), asked.outputs)
        if result is not None:
            self.ledger.answered(asked.model, result, asked.since_s)
        return result

    def _inputs(self, asked: Asked) -> Sequence[Tensor]:
        """Read those that are shared, now that their turn has come: no queue of copies."""
        for name, place in asked.places.items():
            self.regions.must_have(place, f"output {name!r}")
        return [
            self.regions.read(one) if isinstance(one, SharedInput) else one for one in asked.inputs
        ]

    def _put(self, asked: Asked, result: InferResult) -> None:
        for tensor in result.outputs:
            place = asked.places.get(tensor.name)
            if place is not None:
                self.regions.write(tensor.name, place, tensor.data)

    def failed(self, model: str, error: AgentError, since_s: float) -> None:
        """Count a request that ended in an error."""
        try:
            version = self.served.card(model).version
        except UnknownModelError:
            # What is not served here may be any text: it must not become a series.
            self.ledger.count("", outcome_of(error))
        else:
            self.ledger.failed(model, version, outcome_of(error), since_s)

    def _check(self, asked: Asked) -> None:
        if self._stopping.is_set():
            raise UnavailableError("this agent is shutting down")
        if asked.version:
            self.card(asked.model, asked.version)

    # -- telling -----------------------------------------------------------------------------------

    def card(self, model: str, version: str = "") -> ModelCard:
        """The card of a model in the version that serves; UnknownModelError for any other."""
        card = self.served.card(model)
        if version and version != card.version:
            raise UnknownModelError(
                f"model {model!r} is served in version {card.version}, not {version}",
                "leave the version empty to get whichever serves",
            )
        return card

    def not_ready(self, model: str, version: str = "") -> str:
        """Why a model cannot infer now; empty when it can. UnknownModelError."""
        card = self.card(model, version)
        return "this agent is shutting down" if self._stopping.is_set() else card.not_ready

    def is_ready(self) -> bool:
        """There is a model, and every one of them has a rung that can infer."""
        index = self.index()
        return bool(index) and all(entry.ready for entry in index)

    def index(self) -> list[Indexed]:
        """Every model that has something loaded, in stable order."""
        found = []
        for model in self.served.models():
            try:
                card, reason = self.served.card(model), self.not_ready(model)
            except UnknownModelError:
                continue  # withdrawn between the two looks
            found.append(Indexed(model, card.version, not reason, reason))
        return found

    def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        """Of one model, or of all, in the versions that serve. UnknownModelError."""
        cards = [self.card(model, version)] if model else []
        if not model:
            cards = [self.card(entry.model) for entry in self.index()]
        return [self.ledger.statistics(card.model, card.version) for card in cards]

    def change_repository(self, model: str) -> NoReturn:
        """Always RefusedError."""
        raise RefusedError(
            f"model {model!r} is neither loaded nor unloaded by clients",
            "what a device runs is decided by signed rollouts: fleetctl rollout start",
        )
