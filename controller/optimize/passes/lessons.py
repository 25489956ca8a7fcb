"""What a network is taught by: labels, and what its teacher says of each row.

For networks whose first output is a row of class scores; others need a step of their own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.errors import InvalidError
from controller.optimize.builder import Runner
from controller.optimize.passes.train import Training
from controller.optimize.rows import Array, Rows

if TYPE_CHECKING:
    import torch

LEAST_ROWS = 20
TEMPERATURE = 2.0  # how much the teacher's second choices count (Hinton et al. 2015)


@dataclass(frozen=True, slots=True)
class Lessons:
    """Rows with what is known of them; ``said`` are the teacher's scores."""

    rows: Rows
    said: "torch.Tensor"
    labels: "torch.Tensor"  # those of the dataset, else the teacher's first class
    share: float  # of the loss that the teacher has, 0 to 1

    def inputs(self, part: "torch.Tensor") -> "torch.Tensor":
        """The rows with these numbers as the network takes them."""
        import torch

        return torch.from_numpy(self.rows.x[part.numpy()].astype(self.rows.dtype))

    def loss(self, module: Any, part: "torch.Tensor") -> "torch.Tensor":
        """The mean loss of these rows."""
        import torch

        scores = scores_of(module, self.inputs(part))
        hard = torch.nn.functional.cross_entropy(scores, self.labels[part])
        mixed: torch.Tensor = (1 - self.share) * hard
        return mixed + self.share * unlike(scores, self.said[part])


def lessons_of(task: Training) -> Lessons:
    """Ask the teacher of every row.

    InvalidError for too few rows, or where the outputs are no class scores.
    """
    import torch

    if len(task.rows) < LEAST_ROWS:
        raise InvalidError(
            f"{len(task.rows)} calibration rows are too few to train on",
            f"push a dataset of which a quarter is at least {LEAST_ROWS} rows",
        )
    said = torch.cat(
        [answers_of(task.teacher, batch)[:real] for batch, real in task.rows.batches()]
    )
    labels = said.argmax(1) if task.rows.y is None else torch.from_numpy(task.rows.y)
    return Lessons(task.rows, said, labels, task.numbers["distill_pct"] / 100)


def answers_of(teacher: Runner, batch: Array) -> "torch.Tensor":
    """The teacher's scores of rows. InvalidError where its first output is none."""
    import torch

    scores = teacher.run([np.ascontiguousarray(batch)])[0]
    if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
        raise InvalidError(
            "the program's first output is no row of class scores",
            "name a training step of your own: train: module:function",
        )
    return torch.from_numpy(scores.astype(np.float32))


def scores_of(module: Any, inputs: "torch.Tensor") -> "torch.Tensor":
    """The network's first output."""
    import torch

    found: torch.Tensor = torch.utils._pytree.tree_leaves(module(inputs))[0]
    return found


def unlike(scores: "torch.Tensor", said: "torch.Tensor") -> "torch.Tensor":
    """How far scores are from the teacher's: divergence at a temperature, times its square."""
    import torch

    functional = torch.nn.functional
    divergence: torch.Tensor = functional.kl_div(
        functional.log_softmax(scores / TEMPERATURE, dim=1),
        functional.log_softmax(said / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return TEMPERATURE**2 * divergence
