"""Whether applications that talk to one version can talk to another: what differs on the wire.

Compares what a client names and reads: names, types, shapes, order. Knows no weights, no quality.
"""

from dataclasses import dataclass
from enum import StrEnum

from controller.domain.model import Signature, TensorSpec
from controller.domain.words import count_of


class Side(StrEnum):
    """Which half of a signature."""

    INPUTS = "inputs"
    OUTPUTS = "outputs"


@dataclass(frozen=True, slots=True)
class SideChange:
    """One half of a signature that differs: what it was, and what it will be."""

    side: Side
    before: tuple[TensorSpec, ...]
    after: tuple[TensorSpec, ...]

    def sentence(self, after: str, before: str, devices: int) -> str:
        """What ``after`` (a version) does otherwise than ``before``, which so many devices run."""
        verb, who = _WORDS[self.side]
        return (
            f"{after} {verb} {tensors_text(self.after)} where {before},"
            f" on {count_of(devices, 'device')}, {verb} {tensors_text(self.before)}:"
            f" applications that {who} must be ready"
        )


_WORDS = {Side.INPUTS: ("takes", "send it"), Side.OUTPUTS: ("answers with", "read it")}


def signature_changes(before: Signature, after: Signature) -> tuple[SideChange, ...]:
    """The halves that differ; empty where every application can stay as it is.

    Names of dynamic axes do not count: no client sees them, on the wire they are all ``-1``.
    """
    sides = (
        SideChange(Side.INPUTS, before.inputs, after.inputs),
        SideChange(Side.OUTPUTS, before.outputs, after.outputs),
    )
    return tuple(
        side
        for side in sides
        if [_seen(one) for one in side.before] != [_seen(one) for one in side.after]
    )


def tensors_text(tensors: tuple[TensorSpec, ...]) -> str:
    """``scores[batch,10] FP32, boxes[batch,4] FP32``."""
    return ", ".join(one.text() for one in tensors)


def _seen(tensor: TensorSpec) -> tuple[str, str, tuple[int, ...]]:
    """A tensor as a client sees it."""
    return (
        tensor.name,
        tensor.dtype,
        tuple(-1 if isinstance(axis, str) else axis for axis in tensor.shape),
    )
