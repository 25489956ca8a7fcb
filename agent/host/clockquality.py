"""Whether the device's wall clock can be believed. Refuses to set it, and to tell the time.

is_synchronized() -> bool | None      # None: this system cannot tell
"""

import ctypes

# adjtimex(2): the return value when the kernel's clock is not disciplined by anything.
_TIME_ERROR = 5
# Larger than struct timex on every Linux; zeroed means "only read".
_TIMEX_BYTES = 512


def is_synchronized() -> bool | None:
    """Ask the kernel whether NTP, PTP or a hypervisor keeps its clock."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    state = adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _TIME_ERROR
