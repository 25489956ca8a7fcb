"""What every road does alike: find the version, infer, count; readiness, index, statistics.

Refuses to know any wire: roads bring tensors and take results.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from agent.domain.ports import Clock, InferResult, ModelCard, Served
from agent.domain.tensor import Tensor
from agent.errors import AgentError, UnavailableError, UnknownModelError
from agent.serve.errors import RefusedError, outcome_of
from agent.serve.ledger import Ledger, Statistics

SERVER_NAME = "lighterman-agent"
# A float32 image of 1,024 x 1,024 is 12 MB; batches of it still fit.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference as a road understood it; `since_s` is when it came, monotonic."""

    model: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[str]
    since_s: float


@dataclass(frozen=True, slots=True)
class Indexed:
    """One model of the repository index; `reason` says why it cannot infer."""

    model: str
    version: str
    ready: bool
    reason: str


class Desk:
    """One for all roads of an agent."""

    def __init__(self, served: Served, clock: Clock, version: str) -> None:
        self.version = version
        self.served = served
        self.clock = clock
        self.ledger = Ledger(clock)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """From now on new requests are turned away."""
        self._stopping.set()

    @property
    def extensions(self) -> tuple[str, ...]:
        """Extensions of the protocol, by the names that Triton gave them."""
        return ("binary_tensor_data", "statistics", "model_repository")

    # -- inferring ---------------------------------------------------------------------------------

    def infer(self, asked: Asked, waited_s: float) -> InferResult:
        """Infer on what serves now; `waited_s` of the wait lie behind. See `Infer.infer`."""
        self._check(asked)
        return self._counted(
            asked, self.served.infer(asked.model, asked.inputs, asked.outputs, waited_s)
        )

    def infer_now(self, asked: Asked) -> InferResult | None:
        """`infer` where that is quick; None: nothing was done."""
        self._check(asked)
        result = self.served.infer_now(asked.model, asked.inputs, asked.outputs)
        return None if result is None else self._counted(asked, result)

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

    def _counted(self, asked: Asked, result: InferResult) -> InferResult:
        self.ledger.answered(asked.model, result, asked.since_s)
        return result

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

    def change_repository(self, model: str) -> None:
        """Always RefusedError."""
        raise RefusedError(
            f"model {model!r} is neither loaded nor unloaded by clients",
            "what a device runs is decided by signed rollouts: fleetctl rollout start",
        )
