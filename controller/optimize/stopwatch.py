"""How long something takes. The optimise room's only reader of a clock; tells no time of day."""

from time import perf_counter  # noqa: TID251 - durations of measurements, no decision reads it


class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._begun = perf_counter()

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._begun
