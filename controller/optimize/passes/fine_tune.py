"""The shipped training step: gives a pruned network back what it knew, from few rows.

Learns from labels where there are any, and from what the pushed program says of each row. A fifth
of the rows is held back: the weights that did best on them are kept, and training ends when they
have not been beaten for a while. The same rows and seed give the same weights on one machine.
Touches no row that a gate judges by.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.errors import InvalidError
from controller.optimize.passes.train import Training, training_step
from controller.optimize.rows import Rows

if TYPE_CHECKING:
    import torch

HELD_BACK = 5  # one row in five
LEAST_ROWS = 20
TEMPERATURE = 2.0  # how much the teacher's second choices count


@dataclass(frozen=True, slots=True)
class _Data:
    rows: Rows
    said: "torch.Tensor"  # the teacher's scores
    labels: "torch.Tensor"  # those of the dataset, else the teacher's first class


@training_step
def fine_tune(task: Training) -> None:
    """Train in place and note what came of it.

    InvalidError for too few rows, or where the outputs are no class scores.
    """
    import torch

    torch.set_num_threads(1)
    data, network = _data(task), task.network
    order = torch.randperm(len(data.rows))
    held, kept = order[: len(order) // HELD_BACK], order[len(order) // HELD_BACK :]
    epochs, size = int(task.numbers["epochs"]), int(task.numbers["batch"])
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=task.numbers["rate"])
    steps = epochs * -(-len(kept) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.numbers["rate"], steps)
    best, state, at, done = _loss_on(task, data, held), _state(network.module), 0, 0
    first = best
    for epoch in range(1, epochs + 1):
        if epoch - at > task.numbers["patience"] or not task.go_on(epoch / epochs):
            break
        network.module.train()
        for part in torch.split(kept[torch.randperm(len(kept))], size):
            if len(part) < 2:  # a normalisation cannot count one row
                continue
            optimizer.zero_grad()
            _loss(task, data, part).backward()
            optimizer.step()
            schedule.step()
        done, now = epoch, _loss_on(task, data, held)
        if now < best:
            best, state, at = now, _state(network.module), epoch
    network.module.load_state_dict(state)
    network.notes.append(
        f"trained {done} epochs on {len(kept)} rows, best after {at}:"
        f" loss on {len(held)} rows held back {first:.3f} → {best:.3f}"
    )


def _data(task: Training) -> _Data:
    import torch

    if len(task.rows) < LEAST_ROWS:
        raise InvalidError(
            f"{len(task.rows)} calibration rows are too few to train on",
            f"push a dataset of which a quarter is at least {LEAST_ROWS} rows",
        )
    said = []
    for batch, real in task.rows.batches():
        scores = task.network.teacher.run([np.ascontiguousarray(batch)])[0][:real]
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            raise InvalidError(
                "the program's first output is no row of class scores",
                "name a training step of your own: train: module:function",
            )
        said.append(torch.from_numpy(scores.astype(np.float32)))
    scores_of = torch.cat(said)
    labels = scores_of.argmax(1) if task.rows.y is None else torch.from_numpy(task.rows.y)
    return _Data(task.rows, scores_of, labels)


def _loss(task: Training, data: _Data, part: "torch.Tensor") -> "torch.Tensor":
    import torch

    functional = torch.nn.functional
    x = torch.from_numpy(data.rows.x[part.numpy()].astype(data.rows.dtype))
    scores = torch.utils._pytree.tree_leaves(task.network.module(x))[0]
    share = task.numbers["distill_pct"] / 100
    hard = functional.cross_entropy(scores, data.labels[part])
    soft = functional.kl_div(
        functional.log_softmax(scores / TEMPERATURE, dim=1),
        functional.log_softmax(data.said[part] / TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    mixed: torch.Tensor = (1 - share) * hard + share * TEMPERATURE**2 * soft
    return mixed


def _loss_on(task: Training, data: _Data, rows: "torch.Tensor") -> float:
    import torch

    task.network.module.eval()
    with torch.no_grad():
        parts = torch.split(rows, 64)
        return sum(_loss(task, data, part).item() * len(part) for part in parts) / len(rows)


def _state(module: Any) -> Any:
    return copy.deepcopy(module.state_dict())
