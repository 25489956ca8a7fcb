"""EfficientNet-Lite0 at its own 224 pixels: `image[batch,3,224,224]` FP32 in, 602 KB a picture.

The demo's Lite0 takes the pictures of Lite2; here nothing is scaled in the graph.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 224
INPUT = "image"
SHAPE = (1, 3, SIDE, SIDE)
PICTURE_BYTES = 4 * 3 * SIDE * SIDE


def files(cache: Path) -> Path:
    """A folder with lite0.pt2, photos.npz and labels.txt, made once from the example models.

    Raises ExampleModelsError where their packages are missing.
    """
    from examples.models import generate

    models = generate(cache)
    target = models.with_name(f"{models.name}-lite0-{SIDE}")
    if target.exists():
        return target
    partial = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
    try:
        _export(partial / "lite0.pt2")
        with np.load(models / "photos.npz", allow_pickle=False) as data:
            edge = (data["x"].shape[-1] - SIDE) // 2
            middle = data["x"][:, :, edge : edge + SIDE, edge : edge + SIDE]
            np.savez(partial / "photos.npz", x=middle, y=data["y"], source=data["source"])
        shutil.copy(models / "labels.txt", partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _export(target: Path) -> None:
    import torch

    from examples.models.networks import _network

    network: Any = _network("light", SIDE)

    class Scored(torch.nn.Module):
        """Normalise and classify."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            """Logits of a batch of pictures, RGB 0-255."""
            return {"scores": self.network((image - 127.0) / 128.0)}

    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            Scored().eval(), (torch.zeros(2, *SHAPE[1:]),), dynamic_shapes=({0: batch},),
            strict=False,
        )  # fmt: skip
    torch.export.save(program, target)
