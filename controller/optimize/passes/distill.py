"""The shipped training step for a light network that learns from a heavy one of its version.

The teacher says of each row how sure it is of every class, which labels do not. It can also be
asked about pictures that nobody labelled: a share of the batches is mixed from pairs of rows, and
both see the same mixture (Beyer et al. 2022, "a good teacher is patient and consistent"). So few
rows teach more. Touches no row that a gate judges by.
"""

from typing import TYPE_CHECKING

from controller.errors import InvalidError
from controller.optimize.passes.aware import trained_module
from controller.optimize.passes.lessons import answers_of, lessons_of, scores_of, unlike
from controller.optimize.passes.loop import Loop
from controller.optimize.passes.train import Training, training_step

if TYPE_CHECKING:
    import torch


@training_step
def distill(task: Training) -> None:
    """Train in place and note what came of it.

    InvalidError without a teacher of its own, for too few rows, or where the outputs are no class
    scores.
    """
    import torch

    if task.by is None:
        raise InvalidError("distilling needs a teacher", "train: {teacher: VARIANT} names it")
    torch.set_num_threads(1)
    lessons = lessons_of(task)
    floats = lessons.rows.x.dtype.kind == "f" and not lessons.rows.fixed
    mixed = task.numbers["mix_pct"] / 100 if floats else 0.0
    with trained_module(task) as module:

        def loss(part: "torch.Tensor", learns: bool) -> "torch.Tensor":
            if not learns or float(torch.rand(())) >= mixed:
                return lessons.loss(module, part)
            x, weight = (
                lessons.inputs(part),
                torch.rand(len(part), *[1] * (lessons.rows.x.ndim - 1)),
            )
            mixture = weight * x + (1 - weight) * x[torch.randperm(len(part))]
            said = answers_of(task.teacher, mixture.numpy())
            return unlike(scores_of(module, mixture), said)

        task.network.notes.append(Loop(task, module, loss).run())
