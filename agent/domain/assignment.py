"""One model on one device: its state, the events that may come, the instructions that follow.

Holds the one table of legal transitions. Refuses to decide: `update.step` does.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from agent.domain.desired import DesiredModel, Target
from agent.domain.probation import Cause, Commit, RollBack, Wait


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

# What may follow within one assignment. A new order starts anew at OFFERED from anywhere.
LEGAL: dict[Phase, frozenset[Phase]] = {
    _P.IDLE: frozenset({_P.OFFERED, _P.COMMITTED}),
    _P.OFFERED: frozenset(
        {_P.DOWNLOADING, _P.REFUSED, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED, _P.COMMITTED}
    ),
    _P.DOWNLOADING: frozenset({_P.VERIFIED, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.VERIFIED: frozenset({_P.STAGED, _P.DOWNLOADING, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.STAGED: frozenset({_P.ACTIVATED, _P.DOWNLOADING, _P.FAILED, _P.WITHDRAWN, _P.SUPERSEDED}),
    _P.ACTIVATED: frozenset({_P.PROBATION, _P.ROLLING_BACK, _P.FAILED, _P.SUPERSEDED}),
    _P.PROBATION: frozenset({_P.COMMITTED, _P.ROLLING_BACK, _P.SUPERSEDED}),
    _P.COMMITTED: frozenset({_P.ROLLING_BACK, _P.IDLE}),
    _P.ROLLING_BACK: frozenset({_P.ROLLED_BACK, _P.FAILED}),
    _P.ROLLED_BACK: frozenset({_P.IDLE}),
    _P.FAILED: frozenset({_P.IDLE}),
    _P.WITHDRAWN: frozenset({_P.IDLE}),
    _P.REFUSED: frozenset({_P.IDLE}),
    _P.SUPERSEDED: frozenset(),
}
WORKING = frozenset({_P.OFFERED, _P.DOWNLOADING, _P.VERIFIED, _P.STAGED})
LIVE = frozenset({_P.ACTIVATED, _P.PROBATION, _P.COMMITTED})
CLOSED = frozenset({_P.ROLLED_BACK, _P.FAILED, _P.WITHDRAWN, _P.REFUSED, _P.SUPERSEDED})


class Ending(StrEnum):
    """How the last run of the agent ended: POWER_LOST when the machine itself started anew."""

    CLEAN = "clean"
    CRASHED = "crashed"
    POWER_LOST = "power_lost"


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
    pending: "NewDesired | None" = None


# -- events ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewDesired:
    """The verified desired state names `order` for this model, or (None) no longer names it."""

    order: DesiredModel | None
    generation: int


@dataclass(frozen=True, slots=True)
class PreflightOk:
    """There is room and a runtime for the order."""

    ticket: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The order does not fit on this device; `reason` has the figures."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class Downloaded:
    """All bytes of the order are on disk, not verified yet."""

    ticket: int


@dataclass(frozen=True, slots=True)
class DownloadFailed:
    """The download ended without all bytes."""

    ticket: int
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """Every file of the order was hashed again from disk and is what was signed."""

    ticket: int


@dataclass(frozen=True, slots=True)
class VerifyFailed:
    """Some file is not what was signed; it was removed."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class Staged:
    """The staged pointer is durable."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The order is loaded and warm beside the running version."""

    ticket: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The runtime refused the slot `slot_id`: the staged one, or the one that should serve."""

    ticket: int
    slot_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Activated:
    """The order answers requests now."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters of the probation, to survive a restart. Feed it now and then, not per inference."""

    ticket: int
    counted: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ProbationVerdict:
    """What the rollback rule said of `slot_id` (the host may have swapped back already)."""

    slot_id: str
    verdict: Commit | RollBack | Wait


@dataclass(frozen=True, slots=True)
class RollBackRequested:
    """Somebody on the device orders the way back."""

    reason: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The previous version answers requests again."""

    ticket: int


@dataclass(frozen=True, slots=True)
class RollBackFailed:
    """The previous version could not be loaded either."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class Booted:
    """The agent started; `present` are slot ids whose files were all hashed and are right."""

    ending: Ending
    present: frozenset[str]


Event = (
    NewDesired
    | PreflightOk
    | NoRoom
    | Downloaded
    | DownloadFailed
    | Verified
    | VerifyFailed
    | Staged
    | Loaded
    | LoadFailed
    | Activated
    | Progress
    | ProbationVerdict
    | RollBackRequested
    | RolledBack
    | RollBackFailed
    | Booted
)


# -- instructions: carried out in order, WriteJournal always first ---------------------------------


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Make the new state durable before anything else is done."""

    state: ModelState


@dataclass(frozen=True, slots=True)
class SetSlots:
    """Write the pointers of this model in one atomic step, then (if it is staging) say Staged."""

    current: Slot | None
    previous: Slot | None
    staged: Slot | None


@dataclass(frozen=True, slots=True)
class Preflight:
    """Check room on disk for N and N−1, memory and runtimes → PreflightOk | NoRoom."""

    ticket: int
    release: DesiredModel


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get the files that are missing, resuming → Downloaded | DownloadFailed."""

    ticket: int
    targets: tuple[Target, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Hash every file again from disk → Verified | VerifyFailed."""

    ticket: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class LoadAndWarm:
    """Load beside the running version and warm → Loaded | LoadFailed."""

    ticket: int
    release: DesiredModel


@dataclass(frozen=True, slots=True)
class Swap:
    """Let `release` answer from now on (loading it first after a restart) → Activated | LoadFailed.

    For Activation.HANDOVER: switch the application's `current/` folder.
    """

    ticket: int
    release: DesiredModel


@dataclass(frozen=True, slots=True)
class Serve:
    """After a start: load and serve `release`; keep `standby` loaded beside it when there is one.

    A load failure is fed back as LoadFailed.
    """

    ticket: int
    release: DesiredModel
    standby: DesiredModel | None


@dataclass(frozen=True, slots=True)
class SwapBack:
    """Let `release` answer again, a no-op where the host did so already
    → RolledBack | RollBackFailed."""

    ticket: int
    release: DesiredModel


@dataclass(frozen=True, slots=True)
class Unload:
    """Drain and free a version that no longer answers; its files stay."""

    slot_id: str


@dataclass(frozen=True, slots=True)
class MarkGood:
    """The version is committed here: tell the host to judge it so."""

    slot_id: str


@dataclass(frozen=True, slots=True)
class MarkBad:
    """The version was left; not to be tried again for this rollout."""

    slot_id: str
    rollout: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Same files, other policy or parameters: take them over without a load."""

    release: DesiredModel


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Remove files that no slot and no journal record names."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the controller, by the spool. `generation` is the one being applied."""

    rollout: str
    version: str
    phase: Phase
    reason: str
    generation: int
    serving_version: str
    starved: bool = False


Instruction = (
    WriteJournal
    | SetSlots
    | Preflight
    | Fetch
    | Verify
    | LoadAndWarm
    | Swap
    | Serve
    | SwapBack
    | Unload
    | MarkGood
    | MarkBad
    | Reconfigure
    | CollectGarbage
    | Report
)
