"""Identifiers the agent makes up: the only user of randomness for names.

Refuses to make secrets: keys and tokens belong to `agent.link`.
"""

import re
import secrets

_BOOT_ID = re.compile(r"([0-9]{10})-([0-9a-f]{8})")


def new_boot_id(counter: int) -> str:
    """Name the start number `counter`: ordered as text by the counter, made unique by chance.

    The random half keeps two clones of one disk apart, which share the counter.
    """
    return f"{counter:010d}-{secrets.token_hex(4)}"


def boot_counter(boot_id: str) -> int:
    """The start counter inside a boot id; ValueError when it is none."""
    match = _BOOT_ID.fullmatch(boot_id)
    if match is None:
        raise ValueError(f"not a boot id: {boot_id!r}")
    return int(match.group(1))
