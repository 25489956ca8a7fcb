"""What devices go back to when an order is taken back: never to what was called back meanwhile.

A newer order can be given over a version whose own rollout is rolled back before the newer one is.
"""

from typing import Any

from controller.domain.rollout import AssignmentState, Intent, Phase
from controller.store import assignments
from controller.store.reported import list_spoken_of
from controller.store.rollouts import find_rollout
from controller.store.session import Connection

Json = dict[str, Any]
Key = tuple[str, str]  # device, model
_GONE = frozenset({AssignmentState.ROLLING_BACK, AssignmentState.ROLLED_BACK})
_CALLED_BACK = frozenset({Phase.ROLLING_BACK, Phase.ROLLED_BACK})


def ways_back(conn: Connection, entries: dict[Key, Json | None]) -> dict[Key, Json | None]:
    """Each entry, or the one before it where that rollout or device went back already.

    By device and model: a device may leave versions of two models at once.
    """
    found = dict(entries)
    seen: set[str] = set()
    while True:
        named = {str(entry["rollout"]) for entry in found.values() if entry is not None} - seen
        if not named:
            return found
        seen |= named
        called_back = {rollout for rollout in named if _is_called_back(conn, rollout)}
        rows = list_spoken_of(conn, named, {device_id for device_id, _ in found})
        for key, entry in found.items():
            device_id = key[0]
            if entry is None or entry["rollout"] not in named:
                continue
            rollout = str(entry["rollout"])
            row = rows.get((rollout, device_id))
            if rollout in called_back or (row is not None and row.state in _GONE):
                whole = assignments.get_assignment(conn, rollout, device_id)
                found[key] = None if whole is None else whole.previous_entry


def _is_called_back(conn: Connection, rollout_id: str) -> bool:
    rollout = find_rollout(conn, rollout_id)
    return rollout is not None and (
        rollout.phase in _CALLED_BACK or rollout.intent is Intent.ROLL_BACK
    )
