"""What can happen to one model on one device. `ticket` says which work a result belongs to.

Refuses to know what follows: `update.step` does.
"""

from dataclasses import dataclass
from enum import StrEnum

from agent.domain.desired import DesiredModel
from agent.domain.probation import Commit, RollBack, Wait


class Ending(StrEnum):
    """How the last run of the agent ended: POWER_LOST when the machine itself started anew."""

    CLEAN = "clean"
    CRASHED = "crashed"
    POWER_LOST = "power_lost"


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
