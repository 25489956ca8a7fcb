"""The networks: heavy, light, and two that go wrong on purpose but honestly. Trains nothing."""

from pathlib import Path

import torch
from torch import nn

INSIDE_PX = 16


class Digits(nn.Module):
    """Scales a digit up, so that a convolution is worth its call, and classifies it."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, 10]."""
        scaled = nn.functional.interpolate(
            image / 16.0, size=(INSIDE_PX, INSIDE_PX), mode="bilinear", align_corners=False
        )
        scores: torch.Tensor = self.head(self.features(scaled).mean((2, 3)))
        return scores


def heavy() -> nn.Module:
    """Plain convolutions."""
    torch.manual_seed(1)
    layers = [_conv(1, 32, 1), _conv(32, 64, 2), _conv(64, 96, 1), _conv(96, 128, 2)]
    return Digits(nn.Sequential(*layers), 128)


def light() -> nn.Module:
    """Depthwise convolutions: some thousand parameters."""
    torch.manual_seed(2)
    layers = [_conv(1, 16, 2), _depthwise(16, 32, 1), _depthwise(32, 48, 2), _depthwise(48, 64, 1)]
    return Digits(nn.Sequential(*layers), 64)


class Slow(nn.Module):
    """The same scores after much more work: big matrix products that end in nothing."""

    def __init__(self, network: nn.Module, products: int, side: int = 768) -> None:
        super().__init__()
        self.network = network
        self.products = products
        torch.manual_seed(3)
        self.work = nn.Parameter(torch.randn(side, side) / side)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Class scores [batch, 10]."""
        matrix = self.work + image.mean() * 1e-6
        for _ in range(self.products):
            matrix = torch.tanh(matrix @ self.work)
        scores: torch.Tensor = self.network(image)
        return scores + matrix.mean() * 1e-6


def with_nan(network: nn.Module) -> nn.Module:
    """One weight is no number, as after a training that diverged."""
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("nan")
    return network


def save(network: nn.Module, target: Path) -> None:
    """Export with a dynamic batch and save as `.pt2`."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        network.eval(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes={"image": {0: batch}}
    )
    torch.export.save(program, target)


def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _depthwise(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
