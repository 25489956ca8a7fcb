"""Whether what a device feels is worth telling again. Nothing of it is decided by: heat matters
when it moved, and a load that comes and goes is the device's own affair.
"""

from agent.domain.ladder import Pressure

# What moved less is noise of the sensor.
_TEMPERATURE_C = 2.0
_MEMORY_POINTS = 5.0
_LINK_TIMES = 2.0


def is_felt_anew(before: Pressure, after: Pressure) -> bool:
    """Whether heat, memory, throttling or the link moved since it was told."""
    return (
        before.throttled is not after.throttled
        or _moved(before.temperature_c, after.temperature_c, _TEMPERATURE_C)
        or _moved(before.memory_pct, after.memory_pct, _MEMORY_POINTS)
        or _grew(before.link_rtt_s, after.link_rtt_s)
    )


def _moved(before: float | None, after: float | None, by: float) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) >= by


def _grew(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is not after
    return not before / _LINK_TIMES < after < before * _LINK_TIMES
