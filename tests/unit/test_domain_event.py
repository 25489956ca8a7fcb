"""Every kind of event that the sources store or tell is known by name."""

import ast
import re

from controller.domain.event import KINDS
from tests.support.sources import python_files, tree

# Who is given a kind of event, and at which place.
CALLS = {
    "append": 3, "NewEvent": 2, "_event": 2, "tell": 0, "event": 0, "Happening": 0,
}  # fmt: skip
KIND = re.compile(r"[a-z]+(_[a-z]+)*")


def told() -> set[str]:
    """Kinds that stand in the sources as they are."""
    found: set[str] = set()
    for path in python_files("controller/services", "controller/mqtt", "agent"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                found |= _kinds(node)
    return found


def _kinds(call: ast.Call) -> set[str]:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    place = CALLS.get(name)
    if place is None or (name == "append" and owner != "events"):
        return set()
    named = [one.value for one in call.keywords if one.arg == "kind"]
    given = [*call.args[place : place + 1], *named]
    return {
        one.value
        for one in given
        if isinstance(one, ast.Constant)
        and isinstance(one.value, str)
        and KIND.fullmatch(one.value)
    }


def test_every_kind_that_is_stored_is_known() -> None:
    found = told()
    assert {"build_overridden", "signature_override", "rung_changed", "boot"} <= found
    assert found - KINDS == set()


def test_assignments_and_gates_are_told_by_their_states() -> None:
    assert {"assignment_committed", "assignment_rolled_back", "build_refused"} <= KINDS
