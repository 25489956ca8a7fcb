"""What the loop has to do, in order: WriteJournal always comes first, work that answers last.

An arrow names the events that are the answer. Refuses to know how anything is done.
"""

from dataclasses import dataclass

from agent.domain.assignment import ModelState, Phase, Slot
from agent.domain.desired import DesiredModel, Target
from agent.domain.probation import Cause


@dataclass(frozen=True, slots=True)
class WriteJournal:
    """Make the new state durable before anything else is done."""

    state: ModelState


@dataclass(frozen=True, slots=True)
class SetSlots:
    """Write the pointers of this model in one atomic step → Staged if `ticket` is given."""

    current: Slot | None
    previous: Slot | None
    staged: Slot | None
    ticket: int | None = None


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
