"""The loop of the shipped training steps: epochs over rows, the best weights kept, checkpoints.

A fifth of the rows is held back: the weights that did best on them are kept, and training ends when
they have not been beaten for a while. What a killed worker had is taken up where it was kept. The
same rows and seed give the same weights on one machine, interrupted or not. Touches no row that a
gate judges by.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controller.optimize.passes.aware import set_mode
from controller.optimize.passes.train import Training
from controller.optimize.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch

HELD_BACK = 5  # one row in five
CHECKPOINT_S = 10.0
_ROWS_A_CALL = 64


@dataclass(slots=True)
class _State:
    """What a checkpoint holds beside the weights and the optimiser."""

    done: int = 0
    at: int = 0  # the epoch of the best weights
    first: float = 0.0
    best: float = 0.0
    kept: dict[str, Any] = field(default_factory=dict)


class Loop:
    """One training of ``network.module``, or of what `aware` made of it.

    ``loss(part, learns)`` is the mean loss of the rows with these numbers; ``learns`` is False for
    rows held back.
    """

    def __init__(
        self,
        task: Training,
        module: "torch.nn.Module",
        loss: Callable[["torch.Tensor", bool], "torch.Tensor"],
    ) -> None:
        import torch

        self._task, self._module, self._loss = task, module, loss
        order = torch.randperm(len(task.rows))
        self._held = order[: len(order) // HELD_BACK]
        self._rows = order[len(order) // HELD_BACK :]
        numbers = task.numbers
        self._epochs, self._size = int(numbers["epochs"]), int(numbers["batch"])
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=numbers["rate"])
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, numbers["rate"], self._epochs * -(-len(self._rows) // self._size)
        )
        self._state = _State()

    def run(self) -> str:
        """Train in place, keep the best; returns what came of it in words."""
        resumed = self._resume()
        state = self._state
        if not resumed:
            state.first = state.best = self._loss_held()
            state.kept = self._weights()
        watch = Stopwatch()
        for epoch in range(state.done + 1, self._epochs + 1):
            if epoch - state.at > self._task.numbers["patience"]:
                break
            if not self._task.go_on(epoch / self._epochs):
                break
            self._epoch()
            state.done, now = epoch, self._loss_held()
            if now < state.best:
                state.best, state.kept, state.at = now, self._weights(), epoch
            if watch.elapsed_s() > CHECKPOINT_S:
                self._keep()
                watch = Stopwatch()
        self._module.load_state_dict(state.kept)
        said = f", went on after epoch {resumed}" if resumed else ""
        return (
            f"trained {state.done} epochs on {len(self._rows)} rows, best after {state.at}:"
            f" loss on {len(self._held)} rows held back {state.first:.3f} → {state.best:.3f}{said}"
        )

    def _epoch(self) -> None:
        import torch

        set_mode(self._module, learns=True)
        for part in torch.split(self._rows[torch.randperm(len(self._rows))], self._size):
            if len(part) < 2:  # a normalisation cannot count one row
                continue
            self._optimizer.zero_grad()
            self._loss(part, True).backward()
            self._optimizer.step()
            self._schedule.step()

    def _loss_held(self) -> float:
        import torch

        set_mode(self._module, learns=False)
        with torch.no_grad():
            parts = torch.split(self._held, _ROWS_A_CALL)
            losses = [self._loss(part, False).item() * len(part) for part in parts]
            return sum(losses) / len(self._held)

    def _weights(self) -> dict[str, Any]:
        return copy.deepcopy(self._module.state_dict())

    def _keep(self) -> None:
        import torch

        state = self._state
        self._task.checkpoint.save(
            {
                "done": state.done, "at": state.at, "first": state.first, "best": state.best,
                "kept": state.kept, "weights": self._module.state_dict(),
                "optimizer": self._optimizer.state_dict(), "random": torch.get_rng_state(),
                "schedule": self._schedule.state_dict(),
            }
        )  # fmt: skip

    def _resume(self) -> int:
        """The epoch after which it goes on; 0: from the beginning."""
        import torch

        found = self._task.checkpoint.load()
        if found is None:
            return 0
        try:
            self._module.load_state_dict(found["weights"])
            self._optimizer.load_state_dict(found["optimizer"])
            self._schedule.load_state_dict(found["schedule"])
            torch.set_rng_state(found["random"])
            self._state = _State(
                found["done"], found["at"], found["first"], found["best"], found["kept"]
            )
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"its checkpoint does not fit: {error}") from error
        return self._state.done
