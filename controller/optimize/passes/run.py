"""Runs a recipe's passes over a loaded program, in their order. Compiles and judges nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from controller.domain.passes import Pass, PassName
from controller.errors import InvalidError
from controller.optimize.builder import Runner
from controller.optimize.import_torch import TorchModel
from controller.optimize.passes.aware import LearnedRange
from controller.optimize.passes.checkpoint import Checkpoint
from controller.optimize.passes.fold import fold
from controller.optimize.passes.network import Network, network_of, save_network
from controller.optimize.passes.prune import prune
from controller.optimize.passes.resolution import lower_resolution
from controller.optimize.passes.train import Training, train
from controller.optimize.rows import Rows


@dataclass(frozen=True, slots=True)
class Material:
    """What passes work with. ``checkpoints``: a file name without its end; None: none are kept.

    ``go_on(share, step)`` tells progress.
    """

    rows: Rows | None
    seed: int
    go_on: Callable[[float, str], bool]
    teacher: Runner | None = None
    checkpoints: Path | None = None


def run_passes(
    model: TorchModel, passes: tuple[Pass, ...], target: Path, given: Material
) -> tuple[tuple[str, ...], tuple[LearnedRange, ...]]:
    """Write the program that the passes make; returns their notes, and ranges that were learned.

    InvalidError in plain words.
    """
    network = network_of(model)
    for place, one in enumerate(passes):
        given.go_on(0.0, f"pass {one.name}")
        match one.name:
            case PassName.FOLD:
                fold(network)
            case PassName.PRUNE:
                prune(network, one.number("share_pct"), int(one.number("round_to")))
            case PassName.RESOLUTION:
                height, width = int(one.number("height")), int(one.number("width"))
                lower_resolution(network, one.number("share_pct"), height, width)
            case PassName.TRAIN:
                train(_training(network, passes, place, given), one.step)
            case _:
                assert_never(one.name)
    save_network(network, target)
    return tuple(network.notes), network.ranges


def _training(network: Network, passes: tuple[Pass, ...], place: int, given: Material) -> Training:
    one = passes[place]
    if given.rows is None:
        raise InvalidError("training needs rows", "push a dataset first")

    def told(share: float) -> bool:
        return given.go_on(share, f"training, {share:.0%}")

    checkpoint = Checkpoint()
    if given.checkpoints is not None:
        shapes = [tuple(each.shape) for each in network.module.parameters()]
        path = given.checkpoints.with_name(f"{given.checkpoints.name}-{place}.pt")
        checkpoint = Checkpoint(path, repr((given.seed, passes[: place + 1], shapes)))
    return Training(
        network,
        given.rows,
        dict(one.numbers),
        given.seed,
        told,
        given.teacher if one.teacher else None,
        one.quantize,
        checkpoint,
    )
