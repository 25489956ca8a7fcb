"""Who waits for a model: behind its gate, and outside of it on the roads that lead there."""

from collections.abc import Callable

from agent.runtime.served import ServedModel

Outside = Callable[[str], tuple[int, float]]


class Queues:
    """All queues of all models: how many wait, and the longest wait in seconds."""

    def __init__(self) -> None:
        self._outside: list[Outside] = []

    def add(self, of: Outside) -> None:
        """One more road with a queue of its own by model."""
        self._outside.append(of)

    def of(self, served: ServedModel, now: float) -> tuple[int, float]:
        """Of one model."""
        gate = served.gate()
        waits = [(gate.waiting(), gate.age_s(now)), *(of(served.model) for of in self._outside)]
        return sum(count for count, _ in waits), max(age for _, age in waits)
