"""The door every runtime comes through: buffers in, buffers out.

Refuses shared objects: arrays, sessions and devices of a runtime never leave its own file, so that
a backend can as well stand in another process.

A runtime is one file with `load(path, options) -> Backend`, registered under the entry point group
`lighterman.runtimes` with the name that recipes use.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from agent.domain.tensor import Signature, Tensor

Options = Mapping[str, str | int | float | bool]


class Backend(Protocol):
    """One loaded build, or a remote endpoint. `run` may come from several threads at once."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; every output by name. Any exception is a failed inference."""
        ...

    def signature(self) -> Signature | None:
        """What the file itself says it takes and gives; None when it cannot tell."""
        ...

    def call_off(self, thread: int) -> None:
        """Let the `run` of this thread fail as soon as the runtime can; nothing where it cannot."""
        ...

    def close(self) -> None:
        """Free it. Nothing runs in it any more."""
        ...


@runtime_checkable
class Rests(Protocol):
    """A backend that holds more memory than it needs while nobody asks."""

    def rest(self) -> None:
        """Give that back; the next inference takes it again. May infer once; raises nothing."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """A backend whose work is not done by the thread that asks: by a child, by an accelerator."""

    def spent_s(self, thread: int) -> float:
        """Seconds of work, elsewhere, of the last `run` of this thread; asked once, after it.

        Together with the thread's own CPU time they tell a version that is slow from one that
        was starved: what an accelerator computes is work for as long as it takes.
        """
        ...


@runtime_checkable
class Remarks(Protocol):
    """A backend that runs otherwise than it was asked to: on the CPU for want of an accelerator."""

    def remarks(self) -> tuple[str, ...]:
        """For operators, in plain words; empty where all is as asked."""
        ...
