"""The pass that trains: finds the step that a recipe names, calls it, looks at what it left.

A step is a function marked with `training_step`, in any installed module; what is not marked is not
called, whatever a recipe says. It runs inside the job process, without network or certificates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from controller.errors import InvalidError
from controller.optimize.builder import Runner
from controller.optimize.passes.checkpoint import Checkpoint
from controller.optimize.passes.network import Network
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Rows

_MARK = "__lighterman_training_step__"


@dataclass(frozen=True, slots=True)
class Training:
    """What a step gets: `network` is trained in place, `teacher` is what it learns from.

    ``rows`` are the calibration part of the dataset: no gate judges by them. ``numbers`` are the
    recipe's. ``go_on(share)`` tells progress (0–1) and says False when the step has to stop. ``by``
    is another variant of the version, where the recipe names one. ``quantize``: train with what
    INT8 will round (`aware.trained_module`). ``checkpoint`` outlives the death of the worker.
    """

    network: Network
    rows: Rows
    numbers: Mapping[str, float]
    seed: int
    go_on: Callable[[float], bool]
    by: Runner | None = None
    quantize: bool = False
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @property
    def teacher(self) -> Runner:
        """The other variant, else the pushed program as it was."""
        return self.by or self.network.teacher


Step = Callable[[Training], None]


def training_step(function: Step) -> Step:
    """Mark a function as one that recipes may name under ``train``."""
    setattr(function, _MARK, True)
    return function


def train(task: Training, step: str) -> None:
    """Call the step. InvalidError where there is none, where it fails, or leaves no numbers."""
    import torch

    function = find_step(step)
    for one in task.network.module.parameters():
        one.requires_grad_(True)
    torch.manual_seed(task.seed)
    try:
        function(task)
    except InvalidError:
        raise
    except Exception as error:
        keep_raw(error)
        raise InvalidError(f"the training step {step} fails{first_words(str(error))}") from error
    weights = [*task.network.module.parameters(), *task.network.module.buffers()]
    if not all(bool(torch.isfinite(one).all()) for one in weights if one.is_floating_point()):
        raise InvalidError(
            f"the training step {step} left weights that are no numbers", "set train.rate lower"
        )


def find_step(step: str) -> Step:
    """The function that ``module:function`` names. InvalidError where it is none, or not marked."""
    module, _, name = step.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        keep_raw(error)
        raise InvalidError(
            f"this worker has no training step {step}", "install the module that has it beside it"
        ) from error
    if getattr(found, _MARK, False) is not True:
        raise InvalidError(
            f"{step} is no training step",
            "mark the function with controller.optimize.passes.train.training_step",
        )
    return found  # type: ignore[no-any-return]
