"""Which version of a model a device has committed last and not left, on every database."""

from datetime import datetime

from controller.domain.rollout import AssignmentState
from controller.store import assignments
from controller.store.committed import committed_versions
from controller.store.session import Connection, Store
from tests.support.stores import after, seed_assignment, seed_device, seed_rollout, seed_version

A = AssignmentState


def _came(
    conn: Connection, rollout_id: str, device_id: str, version: str, at: datetime, state: A
) -> None:
    """The device was offered the version then, and stands so with it now."""
    seed_assignment(conn, rollout_id, device_id, version)
    row = assignments.get_assignment(conn, rollout_id, device_id)
    assert row is not None
    values = {"state": state.value, "exposed": True, "offered_at": at}
    assignments.put_columns(conn, list(values), [(row, values)])


def test_the_newest_committed_one_counts(store: Store) -> None:
    with store.write() as conn:
        for number, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
            seed_version(conn, version=version)
            seed_rollout(conn, f"r-{number}", version, after(number))
        for device_id in ("pi-1", "pi-2", "pi-3", "pi-4"):
            seed_device(conn, device_id)
        _came(conn, "r-1", "pi-1", "1.1.0", after(5), A.COMMITTED)
        _came(conn, "r-0", "pi-1", "1.0.0", after(9), A.COMMITTED)  # began earlier, came later
        _came(conn, "r-2", "pi-1", "1.2.0", after(10), A.PROBATION)
        _came(conn, "r-0", "pi-2", "1.0.0", after(1), A.COMMITTED)
        _came(conn, "r-1", "pi-2", "1.1.0", after(2), A.ROLLED_BACK)
        _came(conn, "r-0", "pi-3", "1.0.0", after(1), A.FAILED)
        one = {"digits": "1.0.0"}
        assert committed_versions(conn, {"digits"}) == {"pi-1": one, "pi-2": one}
        assert committed_versions(conn, {"digits"}, ["pi-2", "pi-4"]) == {"pi-2": one}
        assert committed_versions(conn, {"digits"}, []) == {}
        assert committed_versions(conn, {"photo"}) == {}
