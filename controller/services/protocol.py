"""Which versions of the wire protocol this controller speaks."""

from controller.errors import RefusedError

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1


class ProtocolError(RefusedError):
    """It is said in a version of the protocol that is not spoken here: nothing of it is read."""


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


def check_protocol(theirs: int) -> None:
    """What every envelope says of itself; ProtocolError for a version that is not spoken here."""
    if not PROTOCOL_MIN <= theirs <= PROTOCOL_MAX:
        newer = "the agent" if theirs < PROTOCOL_MIN else "the controller"
        raise ProtocolError(
            f"an envelope of protocol {theirs}, "
            f"the controller speaks {PROTOCOL_MIN} to {PROTOCOL_MAX}",
            f"update {newer}",
        )
