"""scikit-learn's 1797 labelled digits, split once and for all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 20


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures [n, 1, 8, 8], 0–16, and their digits; nothing of ``test`` is in ``train``."""

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


def load(held_out: int) -> Digits:
    """The digits; ``held_out`` of them, mixed, are kept from training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = found.images.astype(np.float32)[:, None]
    y = found.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(x))
    test, train = order[:held_out], order[held_out:]
    return Digits(x[train], y[train], x[test], y[test])
