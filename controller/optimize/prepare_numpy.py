"""What goes around a file's graph, in NumPy: what the folded forms are held against.

The answers of an ONNX source as pushed come through here, so a fold that is wrong shows in the gate
as a float build that answers otherwise. Also what training sees of a dataset.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from controller.domain.preparation import InputStep, OutputStep, Preparation
from controller.optimize.builder import Runner
from controller.optimize.rows import NUMPY_TYPES, Array


class PreparedRunner:
    """A file's runner that takes and gives what the version does."""

    def __init__(self, core: Runner, preparation: Preparation) -> None:
        self._core, self._preparation = core, preparation

    def run(self, inputs: list[Array]) -> list[Array]:
        """See `builder.Runner`."""
        steps = self._preparation
        given = [enter(step, one) for step, one in zip(steps.inputs, inputs, strict=True)]
        return leave(steps.outputs, self._core.run(given))


class PreparedRows:
    """Rows of a dataset as the file takes them, made when they are looked at: floats take four
    times the room of bytes.
    """

    def __init__(self, x: Array, step: InputStep) -> None:
        self._x, self._step = x, step

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, some: Any) -> Array:
        return enter(self._step, np.asarray(self._x[some]))


def enter(step: InputStep, sent: Array) -> Array:
    """From what applications send to what the file takes."""
    if step.is_plain:
        return sent
    kind = NUMPY_TYPES[step.core.dtype]
    value = sent.transpose(0, 3, 1, 2) if step.channels_last else sent
    made: Any = value.astype(np.float64 if kind == "float64" else np.float32)
    if step.resize_to is not None:
        made = resize(made, step.resize_to, step.resize)
    if step.mean:
        made = made - per_channel(step.mean, made.dtype)
    if step.scale:
        made = made * per_channel(step.scale, made.dtype)
    return np.ascontiguousarray(made.astype(kind))


def leave(steps: Sequence[OutputStep], found: list[Array]) -> list[Array]:
    """From what the file gives to what devices answer."""
    answers: list[Array] = []
    for step, one in zip(steps, found, strict=True):
        scores = _softmax(one) if step.softmax else one
        if not step.top_k:
            answers.append(scores)
            continue
        order = np.argsort(-scores.astype(np.float64), axis=-1, kind="stable")
        best = order[..., : step.top_k].astype(np.int64)
        answers += [np.take_along_axis(scores, best, axis=-1), best]
    return answers


def per_channel(numbers: tuple[float, ...], kind: Any) -> Array:
    """Numbers of channels as they meet a picture ``[batch, channels, height, width]``."""
    return np.asarray(numbers, kind).reshape(1, -1, 1, 1)


def resize(value: Array, to: tuple[int, int], how: str) -> Array:
    """To ``to`` (height, width); bilinear by pixel centres, as PyTorch and ONNX have it."""
    for axis, size in zip((2, 3), to, strict=True):
        have = value.shape[axis]
        if how == "nearest":
            places = (np.arange(size) * (have / size)).astype(np.int64)
            value = value.take(np.minimum(places, have - 1), axis=axis)
            continue
        at = np.clip((np.arange(size) + 0.5) * (have / size) - 0.5, 0, have - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, have - 1)
        share = (at - low).astype(value.dtype).reshape([-1 if a == axis else 1 for a in range(4)])
        value = value.take(low, axis=axis) * (1 - share) + value.take(high, axis=axis) * share
    return value


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), scores.dtype)
