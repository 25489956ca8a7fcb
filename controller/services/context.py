"""What every service call is given: the dependencies of the process and the context of the call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from controller.ids import Ids
from controller.services.agenda import Agenda
from controller.services.totals import LatencyTotals

if TYPE_CHECKING:
    from controller.blobs.blobs import Blobs
    from controller.services.samples import SampleWindow
    from controller.store.session import Store
    from controller.trust.authority import Authority
    from controller.trust.signing import Signer


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is taken in, in bytes and counts, and what is taken at all."""

    artifact_bytes: int = 2 * 1024**3
    dataset_bytes: int = 2 * 1024**3
    job_memory_bytes: int = 6 * 1024**3
    job_time_s: float = 1800.0
    job_lease_s: float = 30.0
    device_certificate_s: float = 30 * 86400.0  # never more than 30 days, whatever stands here
    python_entry_points: bool = False  # whether versions may name code that build workers run


@dataclass(frozen=True, slots=True)
class Deps:
    """Built once by the composition root."""

    store: "Store"
    blobs: "Blobs"
    authority: "Authority"
    signer: "Signer"
    samples: "SampleWindow"
    limits: Limits = field(default_factory=Limits)
    totals: LatencyTotals = field(default_factory=LatencyTotals)
    agenda: Agenda = field(default_factory=Agenda)  # of the tick: news of single rollouts
    engines: "Signer | None" = (
        None  # what builders compiled is signed by it; None: nothing is shared
    )
    wake: Callable[[], None] = lambda: None  # a stored fact may change any decision: tick soon


@dataclass(frozen=True, slots=True)
class Ctx:
    """One call: when, by whom, in which project, with which source of ids."""

    now: datetime
    ids: Ids
    actor: str
    project: str = "default"
