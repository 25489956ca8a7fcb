"""Runs a recipe's passes over a loaded program, in their order. Compiles and judges nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from controller.domain.passes import Pass, PassName
from controller.errors import InvalidError
from controller.optimize.import_torch import TorchModel
from controller.optimize.passes.fold import fold
from controller.optimize.passes.network import network_of, save_network
from controller.optimize.passes.prune import prune
from controller.optimize.passes.train import Training, train
from controller.optimize.rows import Rows


def run_passes(
    model: TorchModel,
    passes: tuple[Pass, ...],
    rows: Rows | None,
    target: Path,
    seed: int,
    go_on: Callable[[float, str], bool],
) -> tuple[str, ...]:
    """Write the program that the passes make; returns their notes.

    ``rows`` are for training. ``go_on(share, step)`` tells progress. InvalidError in plain words.
    """
    network = network_of(model)
    for one in passes:
        go_on(0.0, f"pass {one.name}")
        match one.name:
            case PassName.FOLD:
                fold(network)
            case PassName.PRUNE:
                prune(network, one.number("share_pct"), int(one.number("round_to")))
            case PassName.TRAIN:
                if rows is None:
                    raise InvalidError("training needs rows", "push a dataset first")

                def told(share: float) -> bool:
                    return go_on(share, "training")

                train(Training(network, rows, dict(one.numbers), seed, told), one.step)
            case _:
                assert_never(one.name)
    save_network(network, target)
    return tuple(network.notes)
