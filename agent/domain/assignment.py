"""One model on one device: its phases, the one table of legal transitions, all that is remembered.

Refuses to decide: `update.step` does.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from agent.domain.desired import DesiredModel
from agent.domain.events import NewDesired


class Phase(StrEnum):
    """State of an assignment as the device sees it; IDLE is the device's own and not reported."""

    IDLE = "IDLE"
    OFFERED = "OFFERED"
    DOWNLOADING = "DOWNLOADING"
    VERIFIED = "VERIFIED"
    STAGED = "STAGED"
    ACTIVATED = "ACTIVATED"
    PROBATION = "PROBATION"
    COMMITTED = "COMMITTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"
    WITHDRAWN = "WITHDRAWN"
    REFUSED = "REFUSED"
    SUPERSEDED = "SUPERSEDED"


_P = Phase

# What may follow within one assignment; BEGINS is where another one may start, from any phase.
LEGAL: dict[Phase, frozenset[Phase]] = {
    _P.IDLE: frozenset(),
    _P.OFFERED: frozenset({_P.DOWNLOADING, _P.REFUSED, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.DOWNLOADING: frozenset({_P.VERIFIED, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.VERIFIED: frozenset({_P.STAGED, _P.DOWNLOADING, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.STAGED: frozenset({_P.ACTIVATED, _P.DOWNLOADING, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.ACTIVATED: frozenset({_P.PROBATION, _P.ROLLING_BACK, _P.FAILED, _P.SUPERSEDED}),
    _P.PROBATION: frozenset({_P.COMMITTED, _P.ROLLING_BACK, _P.SUPERSEDED}),
    _P.COMMITTED: frozenset({_P.ROLLING_BACK}),
    _P.ROLLING_BACK: frozenset({_P.ROLLED_BACK, _P.FAILED}),
    _P.ROLLED_BACK: frozenset(),
    _P.FAILED: frozenset(),
    _P.WITHDRAWN: frozenset(),
    _P.REFUSED: frozenset(),
    _P.SUPERSEDED: frozenset(),
}
# IDLE: the files of what was running are damaged, so nothing is under way until the next order.
BEGINS = frozenset({_P.IDLE, _P.OFFERED, _P.ACTIVATED, _P.COMMITTED, _P.ROLLING_BACK})
WORKING = frozenset({_P.OFFERED, _P.DOWNLOADING, _P.VERIFIED, _P.STAGED})
LIVE = frozenset({_P.ACTIVATED, _P.PROBATION, _P.COMMITTED})
CLOSED = frozenset({_P.ROLLED_BACK, _P.FAILED, _P.WITHDRAWN, _P.REFUSED, _P.SUPERSEDED})


@dataclass(frozen=True, slots=True)
class Slot:
    """A release on this device; `committed` once it passed its probation here."""

    release: DesiredModel
    committed: bool = False

    @property
    def slot_id(self) -> str:
        """The content's name, see `DesiredModel.slot_id`."""
        return self.release.slot_id


@dataclass(frozen=True, slots=True)
class ModelState:
    """All the agent remembers of one model; written to the journal whole after every change.

    `order` is what `phase` speaks of. `ticket` numbers the work on it, so that late results of
    older work are known. `bad` holds (rollout, slot id): another rollout may try a slot again.
    `previous` is the only place to roll back to: committed here, or None.
    """

    model: str
    phase: Phase = Phase.IDLE
    generation: int = 0
    ticket: int = 0
    order: DesiredModel | None = None
    current: Slot | None = None
    previous: Slot | None = None
    staged: Slot | None = None
    bad: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    latched: bool = False
    starved: bool = False
    attempts: int = 0
    restarts: int = 0
    counted: int = 0
    elapsed_s: float = 0.0
    reason: str = ""
    pending: NewDesired | None = None


def keep_of(states: Iterable[ModelState]) -> frozenset[str]:
    """Digests that any slot or order of these states names: never garbage."""
    digests: set[str] = set()
    for state in states:
        for slot in (state.current, state.previous, state.staged):
            if slot is not None:
                digests.update(t.digest for t in slot.release.targets)
        orders = [state.pending.order if state.pending else None]
        if state.phase not in CLOSED:
            orders.append(state.order)
        for order in orders:
            if order is not None:
                digests.update(t.digest for t in order.targets)
    return frozenset(digests)
