"""What batches gain: by each build's curve, and asked again whether the chosen one loses."""

from statistics import median
from typing import Any

from bench.builds.jobs import Built, Ran
from controller.domain.batch import choose_batch, rows_per_s
from controller.domain.model import Signature
from controller.optimize.builder import find_builder
from controller.optimize.rows import sample_inputs
from examples.fleet.clock import monotonic

AGAIN = 15  # calls of both batches, in turn


def measure(part: str, jobs: list[Ran]) -> dict[str, Any]:
    """Best gain of a curve, the batches chosen, and how many of them lose when asked again."""
    gains: dict[str, float] = {}
    losses, chosen_of = 0, dict[int, int]()
    for number, job in enumerate(jobs):
        for name, built in job.built.items():
            curve = built.evidence.batch_p50_ms
            chosen = choose_batch(curve)
            chosen_of[chosen] = chosen_of.get(chosen, 0) + 1
            if chosen > 1:
                key = f"{part} {number}, {name}, batch {chosen}"
                gains[key] = _again(built, job.signature, chosen)
    losses = sum(gain < 1 for gain in gains.values())
    best = max(gains, key=lambda key: gains[key], default="")
    return {
        "batch_gain_best": round(gains[best], 2) if best else 1.0,
        "batch_gain_of": best,
        "batch_losses": losses,
        "batches_chosen": {str(batch): count for batch, count in sorted(chosen_of.items())},
    }


def _again(built: Built, signature: Signature, batch: int) -> float:
    """Rows a second by the batch over those one by one, not from the calls that chose it."""
    runner = find_builder(built.recipe.runtime).open_build(built.file, signature)
    inputs = {size: sample_inputs(signature, batch=size, seed=1) for size in (1, batch)}
    times: dict[int, list[float]] = {size: [] for size in inputs}
    for _ in range(AGAIN):
        for size, rows in inputs.items():
            runner.run(rows)
            before = monotonic()
            runner.run(rows)
            times[size].append(1000 * (monotonic() - before))
    return rows_per_s(batch, median(times[batch])) / rows_per_s(1, median(times[1]))
