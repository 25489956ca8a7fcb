"""Which profile the reported capabilities fit, inside the transaction of another verb."""

from controller.domain.device import Capabilities, match_profile, parse_profile
from controller.store import objects
from controller.store.session import Connection


def match(conn: Connection, project: str, capabilities: Capabilities) -> str | None:
    """Name of the profile of the highest priority that fits, or None."""
    rows = objects.list_objects(conn, project, "Profile")
    found = match_profile(capabilities, (parse_profile(row.name, row.spec) for row in rows))
    return found.name if found is not None else None
