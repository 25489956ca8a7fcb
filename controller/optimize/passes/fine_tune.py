"""The shipped training step: gives a pruned network back what it knew, from few rows.

Learns from labels where there are any, and from what the pushed program says of each row. Touches
no row that a gate judges by.
"""

from controller.optimize.passes.aware import trained_module
from controller.optimize.passes.lessons import lessons_of
from controller.optimize.passes.loop import Loop
from controller.optimize.passes.train import Training, training_step


@training_step
def fine_tune(task: Training) -> None:
    """Train in place and note what came of it.

    InvalidError for too few rows, or where the outputs are no class scores.
    """
    import torch

    torch.set_num_threads(1)
    lessons = lessons_of(task)
    with trained_module(task) as module:
        loop = Loop(task, module, lambda part, learns: lessons.loss(module, part))
        task.network.notes.append(loop.run())
