"""A committed version that the rule would leave, on a device that has nowhere to go: said once.

And once more when it is over, so that who reads the events knows how it stands. Refuses to judge:
whether the row is full is `probation`'s, whether there is a way back is `transition`'s.
"""

from dataclasses import dataclass

from agent.domain.words import span

# The kinds of the two events.
CANNOT_RETURN, RECOVERED = "cannot_return", "recovered"
CALM_S = 60.0


@dataclass(frozen=True, slots=True)
class Staying:
    """It was said of this slot; `calm_since` (monotonic): from when on the row was not full."""

    slot_id: str
    calm_since: float | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """An event that is due: its kind, and the reason for people."""

    kind: str
    reason: str


def look(
    known: Staying | None, slot_id: str, full: bool, reason: str, now: float
) -> tuple[Staying | None, Said | None]:
    """What to remember and what to say. `full`: the row is; `reason`: why that version stays.

    An empty reason says that a full row is no fault of the version, or that it can be left.
    """
    if known is not None and known.slot_id != slot_id:
        known = None
    if full:
        if known is None and reason:
            return Staying(slot_id), Said(CANNOT_RETURN, reason)
        return None if known is None else Staying(slot_id), None
    if known is None:
        return None, None
    since = now if known.calm_since is None else known.calm_since
    if now - since < CALM_S:
        return Staying(slot_id, since), None
    return None, Said(RECOVERED, f"no row of slow or bad inferences for {span(CALM_S)}")
