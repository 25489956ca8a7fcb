"""Functions that a version may name: what a build worker would have installed beside it."""

import torch
from torch import nn

from controller.optimize.import_entry import model_entry
from examples.digits.networks import light


class Scaled(nn.Module):
    """The light digits without what is around them: pictures of 16 x 16 from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        network = light()
        self.features = network.get_submodule("features")
        self.head = network.get_submodule("head")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, 10]."""
        scores: torch.Tensor = self.head(self.features(image).mean((2, 3)))
        return scores


@model_entry
def scaled() -> nn.Module:
    """The network for weights of the light digits."""
    return Scaled()


def unmarked() -> nn.Module:
    """Not meant for versions."""
    return Scaled()


@model_entry
def nothing() -> nn.Module:
    """No network."""
    return None  # type: ignore[return-value]


@model_entry
def broken() -> nn.Module:
    """A function that fails."""
    raise RuntimeError("no weights here")


class Growing(nn.Module):
    """One that cannot be exported: what it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Twice the picture where it is bright."""
        if float(image.mean()) > 0.5:
            return image * 2
        return image + self.shift


@model_entry
def growing() -> nn.Module:
    """The network that depends on values."""
    return Growing()
