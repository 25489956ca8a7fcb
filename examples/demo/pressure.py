"""How much load is too much for a device, from what its heavy rung takes. Sends nothing.

Sized so that a threshold is passed by far on any machine: neither a fast model, which answers four
times the requests without a queue, nor a busy host, which is slow to send them, decides the step.
"""

import math
from dataclasses import dataclass

LEAST_QUEUE_MS = 30.0  # below this a busy host's scheduler alone would look like load
LEAST_REQUEST_MS = 20.0  # so that waiting is for inference, not for the transport
MOST_PICTURES = 16  # in one request
TIMES_THE_THRESHOLD = 8.0  # the last one of a burst waits; a build host at work measures too slow
BURST_EVERY_S = 0.5  # a device remembers a wait for a second


@dataclass(frozen=True, slots=True)
class Burst:
    """Cameras that fire at once, each with some pictures in one request."""

    cameras: int
    pictures: int
    every_s: float = BURST_EVERY_S

    def longest_wait_ms(self, heavy_ms: float) -> float:
        """How long the last request waits for the ones before it."""
        return (self.cameras - 1) * self.pictures * heavy_ms


def queue_threshold_ms(heavy_ms: float) -> float:
    """Waiting that one camera never causes: its requests never meet each other."""
    return max(LEAST_QUEUE_MS, heavy_ms)


def burst_for(heavy_ms: float) -> Burst:
    """The burst whose last request waits `TIMES_THE_THRESHOLD` as long as is allowed."""
    pictures = min(MOST_PICTURES, max(1, math.ceil(LEAST_REQUEST_MS / heavy_ms)))
    wait_ms = TIMES_THE_THRESHOLD * queue_threshold_ms(heavy_ms)
    return Burst(1 + math.ceil(wait_ms / (pictures * heavy_ms)), pictures)
