"""Rollouts: phases, intents, assignment states, and the one table of what may follow what.

Refuses to decide when a step is taken: ``planner`` and ``health`` do. Times in seconds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from controller.domain.model import parse_name, parse_version
from controller.domain.selector import parse_selector
from controller.domain.spec import Spec
from controller.domain.wave import DEFAULT_WAVES
from controller.errors import InvariantError

DEFAULT_MIN_SAMPLES = 50
DEFAULT_DEADLINE_S = 3600.0
CALLED_BACK = "called back: "  # before the reason of what left by order, not by itself
# What devices say when they left a version because they were told to, and found no fault with it.
BY_ORDER = frozenset(
    {
        "the controller orders the previous version",
        "the controller no longer orders this model here",
        "the controller no longer orders this model here; no version to return to,"
        " it goes on answering",
    }
)


class Phase(StrEnum):
    """Where a rollout stands. Only the planner writes it."""

    PENDING = "PENDING"
    PROGRESSING = "PROGRESSING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    FAILED = "FAILED"
    ABORTED = "ABORTED"


class Intent(StrEnum):
    """What people want of a rollout. Only people write it."""

    RUN = "RUN"
    PAUSE = "PAUSE"
    ABORT = "ABORT"
    ROLL_BACK = "ROLL_BACK"


class Verdict(StrEnum):
    """What the judge says of a wave."""

    PENDING = "PENDING"
    PASSED = "PASSED"
    FAILED = "FAILED"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


class AssignmentState(StrEnum):
    """Where one device stands in one rollout."""

    PLANNED = "PLANNED"
    OFFERED = "OFFERED"
    DOWNLOADING = "DOWNLOADING"
    VERIFIED = "VERIFIED"
    STAGED = "STAGED"
    ACTIVATED = "ACTIVATED"
    PROBATION = "PROBATION"
    COMMITTED = "COMMITTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    WITHDRAWN = "WITHDRAWN"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    SUPERSEDED = "SUPERSEDED"


_P = Phase
_A = AssignmentState

PHASE_LEGAL: Mapping[Phase, frozenset[Phase]] = {
    _P.PENDING: frozenset({_P.PROGRESSING, _P.ABORTED}),
    # FAILED without a way back: no device took it.
    _P.PROGRESSING: frozenset({_P.PAUSED, _P.SUCCEEDED, _P.ROLLING_BACK, _P.FAILED, _P.ABORTED}),
    _P.PAUSED: frozenset({_P.PROGRESSING, _P.ROLLING_BACK, _P.FAILED, _P.ABORTED}),
    _P.ROLLING_BACK: frozenset({_P.ROLLED_BACK, _P.FAILED, _P.ABORTED}),
    _P.SUCCEEDED: frozenset(),
    _P.ROLLED_BACK: frozenset(),
    _P.FAILED: frozenset(),
    _P.ABORTED: frozenset(),
}
TERMINAL = frozenset(phase for phase, after in PHASE_LEGAL.items() if not after)

# On its way to a device, not yet answering requests: can be withdrawn without a rollback.
UNDERWAY = frozenset({_A.OFFERED, _A.DOWNLOADING, _A.VERIFIED, _A.STAGED})
# The new version answers requests.
LIVE = frozenset({_A.ACTIVATED, _A.PROBATION, _A.COMMITTED})
OPEN = frozenset({_A.PLANNED, *UNDERWAY, _A.ACTIVATED, _A.PROBATION, _A.ROLLING_BACK})
CLOSED = frozenset({_A.ROLLED_BACK, _A.WITHDRAWN, _A.REFUSED, _A.FAILED, _A.SUPERSEDED})

# What a device may make of it, step by step; a report may stand for several steps.
_DEVICE_LEGAL: Mapping[AssignmentState, frozenset[AssignmentState]] = {
    _A.PLANNED: frozenset(),
    _A.OFFERED: frozenset({_A.DOWNLOADING, _A.REFUSED, _A.FAILED}),
    _A.DOWNLOADING: frozenset({_A.VERIFIED, _A.FAILED}),
    _A.VERIFIED: frozenset({_A.STAGED, _A.FAILED}),
    _A.STAGED: frozenset({_A.ACTIVATED, _A.FAILED}),
    _A.ACTIVATED: frozenset({_A.PROBATION, _A.ROLLING_BACK, _A.FAILED}),
    _A.PROBATION: frozenset({_A.COMMITTED, _A.ROLLING_BACK}),
    _A.COMMITTED: frozenset({_A.ROLLING_BACK}),
    _A.ROLLING_BACK: frozenset({_A.ROLLED_BACK, _A.FAILED}),
    **{state: frozenset() for state in CLOSED},
}
# What the controller may make of it.
_CONTROLLER_LEGAL: Mapping[AssignmentState, frozenset[AssignmentState]] = {
    _A.PLANNED: frozenset({_A.OFFERED, _A.REFUSED, _A.WITHDRAWN, _A.SUPERSEDED}),
    **{state: frozenset({_A.WITHDRAWN, _A.SUPERSEDED}) for state in UNDERWAY},
    _A.ACTIVATED: frozenset({_A.ROLLING_BACK, _A.SUPERSEDED}),
    _A.PROBATION: frozenset({_A.ROLLING_BACK, _A.SUPERSEDED}),
    # Superseded: called back while a newer order is open, which is what counts there.
    _A.COMMITTED: frozenset({_A.ROLLING_BACK, _A.SUPERSEDED}),
    # Applied the generation that calls it back, without a word of its own about this version.
    _A.ROLLING_BACK: frozenset({_A.ROLLED_BACK, _A.SUPERSEDED}),
    **{state: frozenset() for state in CLOSED},
}
LEGAL: Mapping[AssignmentState, frozenset[AssignmentState]] = {
    state: _DEVICE_LEGAL[state] | _CONTROLLER_LEGAL[state] for state in AssignmentState
}


class IllegalTransitionError(InvariantError):
    """A step that no table allows; the message tells the story."""


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """What a person asks for. `min_samples`: inferences on the new build per exposed device."""

    model: str
    version: str
    selector: str
    waves: tuple[str, ...] = DEFAULT_WAVES
    soak_s: float = 0.0
    min_samples: int = DEFAULT_MIN_SAMPLES
    override_first_wave_reason: str = ""
    policy: str = ""  # empty: the one that matches model and device
    deadline_s: float = DEFAULT_DEADLINE_S  # without evidence for so long: INCONCLUSIVE
    override_rolled_back_reason: str = ""  # why devices that rolled it back get it again
    override_signature_reason: str = ""  # why it may take or answer otherwise than what runs
    override_missing_rung_reason: str = ""  # why devices get it without a rung that it names
    groups: Mapping[str, str] = field(default_factory=dict)  # what they said when it began

    def to_json(self) -> dict[str, object]:
        """The form stored."""
        return {**asdict(self), "waves": list(self.waves), "groups": dict(self.groups)}


def parse_rollout_spec(value: Mapping[str, object]) -> RolloutSpec:
    """Check what a person asks for; empty waves, 0 samples and 0 deadline mean the defaults."""
    spec = Spec(value, "rollout")
    selector = spec.text("selector", "")
    parse_selector(selector)
    return RolloutSpec(
        model=parse_name(spec.text("model")),
        version=parse_version(spec.text("version")),
        selector=selector,
        waves=spec.texts("waves", ()) or DEFAULT_WAVES,
        soak_s=spec.number("soak_s", 0.0),
        min_samples=spec.whole("min_samples", 0) or DEFAULT_MIN_SAMPLES,
        override_first_wave_reason=spec.text("override_first_wave_reason", "").strip(),
        policy=spec.text("policy", ""),
        deadline_s=spec.number("deadline_s", 0.0) or DEFAULT_DEADLINE_S,
        override_rolled_back_reason=spec.text("override_rolled_back_reason", "").strip(),
        override_signature_reason=spec.text("override_signature_reason", "").strip(),
        override_missing_rung_reason=spec.text("override_missing_rung_reason", "").strip(),
        groups={name: str(text) for name, text in spec.sub("groups").body.items()},
    )


@dataclass(frozen=True, slots=True)
class Reported:
    """What a report makes of an assignment; ``ignored`` says why it makes nothing of it."""

    state: AssignmentState
    changed: bool
    ignored: str = ""


def check_phase(what: str, before: Phase, after: Phase, reason: str) -> Phase:
    """``after``, or IllegalTransitionError; staying is always legal."""
    if before is not after and after not in PHASE_LEGAL[before]:
        raise IllegalTransitionError(
            f"{what} cannot go from {before} to {after}",
            f"because of: {reason}",
            f"from {before}: {', '.join(sorted(PHASE_LEGAL[before])) or 'nothing, it is over'}",
        )
    return after


def check_state(
    what: str, before: AssignmentState, after: AssignmentState, reason: str
) -> AssignmentState:
    """``after``, or IllegalTransitionError, for steps of the controller."""
    if before is not after and after not in _CONTROLLER_LEGAL[before]:
        raise IllegalTransitionError(
            f"{what} cannot go from {before} to {after}",
            f"because of: {reason}",
            f"from {before}: {', '.join(sorted(LEGAL[before])) or 'nothing, it is over'}",
        )
    return after


def on_report(current: AssignmentState, reported: AssignmentState) -> Reported:
    """What a device's report makes of its assignment. Total: what is illegal is ignored, and why.

    A report may skip steps (bytes that are there already, a crash between two), but only forward.
    """
    if current is reported:
        return Reported(current, changed=False)
    if current is _A.PLANNED:
        return Reported(current, False, "reported before it was offered")
    if current in CLOSED:
        return Reported(current, False, f"reported {reported}, but the order is closed ({current})")
    if reported not in _REACHABLE[current]:
        return Reported(current, False, f"{reported} cannot follow {current}")
    return Reported(reported, changed=True)


def reason_of_report(known: str, reported: str) -> str:
    """The reason that stays on record when a device's report changes its assignment.

    A device that only obeyed says just that: then who called it back, and why, is worth more, and
    it is told apart from one that found the version bad.
    """
    obeyed = known.startswith(CALLED_BACK) and reported in BY_ORDER
    return known if obeyed else reported


def _reach(start: AssignmentState) -> frozenset[AssignmentState]:
    seen: set[AssignmentState] = set()
    edge = set(_DEVICE_LEGAL[start])
    while edge:
        state = edge.pop()
        if state not in seen:
            seen.add(state)
            edge |= _DEVICE_LEGAL[state]
    return frozenset(seen)


_REACHABLE: Mapping[AssignmentState, frozenset[AssignmentState]] = {s: _reach(s) for s in _A}
