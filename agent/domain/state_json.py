"""Writes and reads what is remembered of a model, as the journal and the slot pointers keep it.

Refuses a record it cannot read whole: ManifestError names the place.
"""

from collections.abc import Mapping
from typing import Any, cast

from agent.domain.assignment import ModelState, Phase, Slot
from agent.domain.desired import DesiredModel
from agent.domain.events import NewDesired
from agent.domain.manifest import parse_model
from agent.domain.release_json import model_to_json
from agent.errors import ManifestError

Object = dict[str, Any]
_PLAIN = (
    "model",
    "generation",
    "ticket",
    "latched",
    "starved",
    "attempts",
    "restarts",
    "counted",
    "elapsed_s",
    "reason",
)


def slot_to_json(slot: Slot | None) -> Object | None:
    """A slot, or None."""
    if slot is None:
        return None
    return {"release": model_to_json(slot.release), "committed": slot.committed}


def slot_from_json(value: object) -> Slot | None:
    """The inverse of `slot_to_json`. ManifestError when it is damaged."""
    if value is None:
        return None
    try:
        body = cast(Mapping[str, Any], value)
        committed = body["committed"]
        if not isinstance(committed, bool):
            raise TypeError("committed is not true or false")
        return Slot(parse_model(body["release"], "slot.release"), committed)
    except (KeyError, TypeError) as error:
        raise ManifestError(f"a stored slot is damaged: {error}") from None


def state_to_json(state: ModelState) -> Object:
    """Everything of a state."""
    body: Object = {key: getattr(state, key) for key in _PLAIN}
    body["phase"] = state.phase.value
    body["order"] = _release(state.order)
    body["bad"] = sorted(list(pair) for pair in state.bad)
    for key in ("current", "previous", "staged"):
        body[key] = slot_to_json(getattr(state, key))
    body["pending"] = None
    if state.pending is not None:
        body["pending"] = {
            "order": _release(state.pending.order),
            "generation": state.pending.generation,
        }
    return body


def state_from_json(body: Mapping[str, Any]) -> ModelState:
    """The inverse of `state_to_json`. ManifestError when it is damaged."""
    try:
        pending = body["pending"]
        plain: Object = {key: body[key] for key in _PLAIN}
        return ModelState(
            phase=Phase(body["phase"]),
            order=_parse(body["order"]),
            bad=frozenset((str(rollout), str(slot)) for rollout, slot in body["bad"]),
            current=slot_from_json(body["current"]),
            previous=slot_from_json(body["previous"]),
            staged=slot_from_json(body["staged"]),
            pending=None
            if pending is None
            else NewDesired(_parse(pending["order"]), pending["generation"]),
            **plain,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"a stored state is damaged: {error}") from None


def state_from_slots(
    model: str, current: Slot | None, previous: Slot | None, generation: int
) -> ModelState:
    """What can be known without a journal: an uncommitted current version is still in probation."""
    if current is None:
        return ModelState(model, generation=generation)
    return ModelState(
        model,
        phase=Phase.COMMITTED if current.committed else Phase.PROBATION,
        generation=generation,
        order=current.release,
        current=current,
        previous=previous,
        reason="rebuilt from the slot pointers",
    )


def _release(release: DesiredModel | None) -> Object | None:
    return None if release is None else cast(Object, model_to_json(release))


def _parse(value: object) -> DesiredModel | None:
    return None if value is None else parse_model(cast(Any, value), "state.order")
