"""ResNet-50 and MobileNetV2 as published, with random weights: for size and speed alone."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

SIDE = 224
CLASSES = 1000


class _Sum(nn.Module):
    """A residual connection."""

    def __init__(self, body: nn.Module, short: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.body, self.short, self.last = body, short, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Both ways, added."""
        found: torch.Tensor = self.last(self.body(x) + self.short(x))
        return found


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
    active: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:  # fmt: skip
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([active()] if active is not None else []))


def resnet50() -> nn.Module:
    """He et al. (2016), with the stride in the 3x3 convolution, as libraries have it."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(
                _conv(width, inner, 1),
                _conv(inner, inner, 3, stride),
                _conv(inner, 4 * inner, 1, active=None),
            )
            short = nn.Identity() if block else _conv(width, 4 * inner, 1, stride, active=None)
            layers.append(_Sum(body, short, nn.ReLU()))
            width = 4 * inner
    return _classifier(layers, width)


def mobilenetv2() -> nn.Module:
    """Sandler et al. (2018), width 1."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2, active=nn.ReLU6)]
    width = 32
    for expand, outputs, blocks, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
        (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            stride, inner = (1 if block else first), width * expand
            body = nn.Sequential(
                *([_conv(width, inner, 1, active=nn.ReLU6)] if expand > 1 else []),
                _conv(inner, inner, 3, stride, inner, nn.ReLU6),
                _conv(inner, outputs, 1, active=None),
            )
            layers.append(_Sum(body, nn.Identity(), nn.Identity()) if block else body)
            width = outputs
    return _classifier([*layers, _conv(width, 1280, 1, active=nn.ReLU6)], 1280)


def _classifier(layers: list[nn.Module], width: int) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))
    return nn.Sequential(*layers, *head)


def save(make: Callable[[], nn.Module], target: Path) -> None:
    """Write it as a `.pt2` with a dynamic batch; the same weights every time."""
    torch.manual_seed(0)
    network = make().eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    sample = (torch.zeros(2, 3, SIDE, SIDE),)
    torch.export.save(torch.export.export(network, sample, dynamic_shapes=({0: batch},)), target)
