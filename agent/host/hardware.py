"""A name of the hardware that outlives a new disk image, where the maker left one.

    hardware_id(root: Path) -> str        # empty where there is none

Refuses to be a secret: anybody on the device can read it.
"""

from pathlib import Path

from agent.host.files import read_text

_PLACES = (
    "proc/device-tree/serial-number",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/board_serial",
    "etc/machine-id",
)


def hardware_id(root: Path) -> str:
    """The first serial number that can be read, lower case."""
    for place in _PLACES:
        text = (read_text(root / place) or "").strip("\0 \n").lower()
        if text and len(text) <= 64 and text.isprintable():
            return text
    return ""
