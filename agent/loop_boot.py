"""What is known of every model when the agent starts: journal first, slot pointers where it fails.

Refuses to die of a damaged record: what cannot be read is rebuilt or told, and the rest goes on.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.domain.assignment import ModelState
from agent.domain.desired import Target
from agent.domain.ports import Journal, SlotStore
from agent.domain.state_json import state_from_json, state_from_slots
from agent.errors import AgentError, ManifestError, StoreError

log = logging.getLogger("agent")

MODEL = "model"
GENERATION = "generation"
SEEN, TAKEN, APPLIED = "seen", "taken", "applied"
GENERATIONS = (SEEN, TAKEN, APPLIED)


@dataclass(slots=True)
class Remembered:
    """States by model, the slots whose files are all right, generations, and what was repaired."""

    states: dict[str, ModelState] = field(default_factory=dict)
    present: dict[str, frozenset[str]] = field(default_factory=dict)
    seen: int = 0
    taken: int = 0
    applied: int = 0
    troubles: list[str] = field(default_factory=list)


def remember(journal: Journal, store: SlotStore) -> Remembered:
    """Read all that was known and hash every file that a slot names."""
    found = Remembered()
    _read_generations(found, journal.latest(GENERATION))
    taken = found.taken
    records = journal.latest(MODEL)
    for model in sorted({*records, *store.models()}):
        state = _state_of(found, model, records.get(model), store)
        if state is not None:
            found.states[model] = state
            found.seen = max(found.seen, state.generation)
    sound: dict[str, bool] = {}
    for model, state in found.states.items():
        found.present[model] = _present(found, state, store, sound)
    if found.taken < taken:
        _forget_taken(journal)
    return found


def _forget_taken(journal: Journal) -> None:
    """Durable before any repair is: the start after this one sees the repaired state alone, and
    would wait for a newer order while an older version answers."""
    try:
        journal.append(GENERATION, TAKEN, {"value": 0})
    except StoreError as error:
        log.error("that the controller is asked anew is not recorded: %s", error)


def _read_generations(found: Remembered, records: Mapping[str, Mapping[str, object]]) -> None:
    values: dict[str, int] = {}
    for key in GENERATIONS:
        value = records.get(key, {}).get("value", 0)
        values[key] = value if isinstance(value, int) and value >= 0 else 0
    found.seen, found.taken, found.applied = values[SEEN], values[TAKEN], values[APPLIED]


def _state_of(
    found: Remembered, model: str, record: Mapping[str, object] | None, store: SlotStore
) -> ModelState | None:
    if record is not None:
        try:
            state = state_from_json(record)
        except ManifestError as error:
            found.troubles.append(f"{model}: {error.message}; going by the slot pointers")
        else:
            if not _is_behind(state, store):
                return state
            found.troubles.append(f"{model}: the journal lost its end; going by the slot pointers")
    else:
        found.troubles.append(f"{model}: the journal knows nothing; going by the slot pointers")
    try:
        current, previous, _ = store.slots(model)
    except AgentError as error:
        found.troubles.append(f"{model}: {error.message}; it will be fetched again")
        return None
    # The controller is asked for everything again: what was taken of it is not known any more.
    found.taken = 0
    return state_from_slots(model, current, previous, 0)


def _is_behind(state: ModelState, store: SlotStore) -> bool:
    """Whether the pointers know a proven version where the journal knows none that runs.

    The journal is always written first, so then its end is missing; without this a device would
    wait for the network with a good version on its disk.
    """
    if state.current is not None:
        return False
    try:
        current, _, _ = store.slots(state.model)
    except AgentError:
        return False
    if current is None or not current.committed:
        return False
    return (current.release.rollout, current.slot_id) not in state.bad


def _present(
    found: Remembered, state: ModelState, store: SlotStore, sound: dict[str, bool]
) -> frozenset[str]:
    present = set()
    for slot in (state.current, state.previous, state.staged):
        if slot is None:
            continue
        for target in slot.release.targets:
            if target.digest not in sound:
                sound[target.digest] = _verified(found, state.model, target, store)
        if all(sound[t.digest] for t in slot.release.targets):
            present.add(slot.slot_id)
    if state.current is not None and state.current.slot_id not in present:
        # The order is given up with its files: the controller has to tell it again.
        found.taken = 0
    return frozenset(present)


def _verified(found: Remembered, model: str, target: Target, store: SlotStore) -> bool:
    try:
        good = store.has(target.digest) and store.verify(target)
    except AgentError as error:
        found.troubles.append(f"{model}: {error.message}")
        return False
    if not good:
        found.troubles.append(f"{model}: {target.digest[:19]}… is missing or damaged")
    return good
