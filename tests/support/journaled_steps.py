"""The steps after which an agent can die: every kind of record that its journal can take.

Found by walking the update machine and by reading the sources for what else is journaled, so that
a new phase, generation or kind of record is a new step. Lists nothing by hand.
"""

import ast
import functools

from agent.domain.assignment import ModelState
from agent.domain.events import Event
from agent.domain.instructions import Instruction, WriteJournal
from agent.domain.update import step
from agent.loop_boot import GENERATION, GENERATIONS, MODEL
from tests.support.sources import python_files, tree
from tests.support.update_walk import walk
from tests.support.update_world import Stepper, reports

KEPT = f"{MODEL} in the same phase"


def steps_of(
    before: ModelState, after: ModelState, instructions: tuple[Instruction, ...]
) -> frozenset[str]:
    """What one record of a model stands for: every phase that was entered or passed by it.

    An order that supersedes another one is one record: the step is SUPERSEDED and OFFERED.
    """
    told = {phase for _, phase in reports(instructions)} - {before.phase.value}
    if after.phase is not before.phase:
        told.add(after.phase.value)
    return frozenset(f"{MODEL} {phase}" for phase in told) or frozenset({KEPT})


@functools.cache
def journaled_steps(stepper: Stepper = step) -> frozenset[str]:
    """All of them."""
    found = {f"{GENERATION} {key}" for key in GENERATIONS}
    # A kind of record that nobody here knows is a step that nobody can have killed at.
    found |= {f"{name} ?" for name in _kinds_in_sources() - {"MODEL", "GENERATION"}}

    def visit(
        before: ModelState,
        _: Event,
        after: ModelState | None,
        instructions: tuple[Instruction, ...],
    ) -> None:
        if after is not None and any(isinstance(i, WriteJournal) for i in instructions):
            found.update(steps_of(before, after, instructions))

    walk(visit, stepper)
    return frozenset(found)


def _kinds_in_sources() -> set[str]:
    """First arguments of every `….journal.append(…)` in the agent, as they are written there."""
    found = set()
    for path in python_files("agent"):
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "append"
                and ast.unparse(node.func.value).endswith("journal")
            ):
                found.add(ast.unparse(node.args[0]))
    assert found, "nothing is journaled?"
    return found
