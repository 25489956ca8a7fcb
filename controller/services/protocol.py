"""Which versions of the wire protocol this controller speaks."""

from controller.errors import RefusedError

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1


def negotiate(theirs_min: int, theirs_max: int) -> int:
    """The highest version both speak; RefusedError names both ranges."""
    chosen = min(PROTOCOL_MAX, theirs_max)
    if chosen < max(PROTOCOL_MIN, theirs_min):
        newer = "the agent" if theirs_max < PROTOCOL_MIN else "the controller"
        raise RefusedError(
            f"no common protocol: the agent speaks {theirs_min} to {theirs_max}, "
            f"the controller {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            f"update {newer}",
        )
    return chosen
