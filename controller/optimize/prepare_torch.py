"""What goes around a file's graph, in PyTorch: run eagerly, and traced into TorchScript builds.

torch is imported only inside the functions.
"""

from typing import TYPE_CHECKING

from controller.domain.preparation import InputStep, OutputStep, Preparation
from controller.optimize.rows import NUMPY_TYPES

if TYPE_CHECKING:
    import torch


def enter(preparation: Preparation, sent: list["torch.Tensor"]) -> list["torch.Tensor"]:
    """From what applications send to what the program takes."""
    steps = preparation.inputs
    return [_enter(*pair) for pair in zip(steps, sent, strict=True)] if steps else sent


def leave(preparation: Preparation, found: list["torch.Tensor"]) -> list["torch.Tensor"]:
    """From what the program gives to what devices answer."""
    steps = preparation.outputs
    if not steps:
        return found
    return [one for pair in zip(steps, found, strict=True) for one in _leave(*pair)]


def _enter(step: InputStep, sent: "torch.Tensor") -> "torch.Tensor":
    import torch

    if step.is_plain:
        return sent
    kind: torch.dtype = getattr(torch, NUMPY_TYPES[step.core.dtype])
    value = (sent.permute(0, 3, 1, 2) if step.channels_last else sent).to(kind).contiguous()
    if step.resize_to is not None:
        how = {"align_corners": False} if step.resize == "bilinear" else {}
        value = torch.nn.functional.interpolate(
            value, size=list(step.resize_to), mode=step.resize, **how
        )
    if step.mean:
        value = value - torch.tensor(step.mean, dtype=kind).reshape(1, -1, 1, 1)
    if step.scale:
        value = value * torch.tensor(step.scale, dtype=kind).reshape(1, -1, 1, 1)
    return value


def _leave(step: OutputStep, found: "torch.Tensor") -> tuple["torch.Tensor", ...]:
    import torch

    scores = torch.softmax(found, -1) if step.softmax else found
    if not step.top_k:
        return (scores,)
    best, places = torch.topk(scores, step.top_k, -1)
    return best, places
