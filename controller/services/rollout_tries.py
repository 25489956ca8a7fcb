"""What is known of a version on devices from rollouts before: who left it, where it failed.

Reads rows that it is given; decides only what a plan says of them.
"""

from collections.abc import Mapping, Sequence

from controller.domain.rollout import CALLED_BACK, AssignmentState, RolloutSpec
from controller.domain.words import count_of
from controller.store.assignments import AssignmentRow

SHOWN = 3


def left_by_itself(row: AssignmentRow) -> bool:
    """Whether the device found the version bad and left it, or could not even go back."""
    if row.reason.startswith(CALLED_BACK):
        return False
    if row.state is AssignmentState.FAILED:
        return row.activated_at is not None
    return row.state in (AssignmentState.ROLLING_BACK, AssignmentState.ROLLED_BACK)


def again(spec: RolloutSpec) -> bool:
    """Whether devices that left this version get it once more, because a person says why."""
    return bool(spec.override_rolled_back_reason)


def left_text(row: AssignmentRow) -> str:
    """Why the device does not get this version again."""
    why = f": {row.reason}" if row.reason else ""
    return f"rolled {row.version} back in {row.rollout_id}{why}"


def tried_before(
    spec: RolloutSpec, device_ids: Sequence[str], tried: Mapping[str, AssignmentRow]
) -> list[str]:
    """What is known of this version on the selected devices from rollouts before."""
    rows = [tried[device_id] for device_id in device_ids if device_id in tried]
    left = [row for row in rows if left_by_itself(row)]
    failed = [r for r in rows if r.state is AssignmentState.FAILED and not left_by_itself(r)]
    notes = []
    if left:
        who = named([row.device_id for row in left])
        done = (
            f"it comes there again: {spec.override_rolled_back_reason}"
            if again(spec)
            else "left out; to try it there too: --override rolled-back --reason TEXT"
        )
        notes.append(f"{who} rolled {spec.version} back before: {done}")
    if failed:
        who = named([row.device_id for row in failed])
        notes.append(f"{who} failed on {spec.version} before: {failed[0].reason}")
    return notes


def named(device_ids: Sequence[str]) -> str:
    """How many devices, and the first of them."""
    names = ", ".join(device_ids[:SHOWN])
    more = " …" if len(device_ids) > SHOWN else ""
    return f"{count_of(len(device_ids), 'device')} ({names}{more})"
