"""How long something takes. The optimise room's only reader of a clock; tells no time of day."""

# Durations of measurements; no decision reads them.
from time import perf_counter, process_time  # noqa: TID251


class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._begun = perf_counter()
        self._cpu_begun = process_time()

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._begun

    def cpu_s(self) -> float:
        """CPU seconds of this process, all threads together, since the start."""
        return process_time() - self._cpu_begun
