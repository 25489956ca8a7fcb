"""The update machine of one model: offered, fetched, verified, staged, activated, proven, or back.

Refuses to act: it returns the next state and instructions; the loop journals, then does.
"""

from agent.domain.assignment import Event, Instruction, ModelState
from agent.domain.desired import DesiredState


def step(state: ModelState, event: Event, now: float) -> tuple[ModelState, tuple[Instruction, ...]]:
    """Take one event. IllegalTransitionError when the event has no room in this state."""
    raise NotImplementedError


def orders_of(desired: DesiredState, known: frozenset[str]) -> dict[str, Event]:
    """One NewDesired per model: for those named, and (None) for those known but not named."""
    raise NotImplementedError
