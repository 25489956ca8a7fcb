"""`.pt2` files for tests: real ones from PyTorch, and copies of them with something changed."""

import copy
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = "model"
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLE = "data/sample_inputs/model.pt"

Json = dict[str, Any]


class Touch:
    """Unpickling it makes a file: that is how a test sees that somebody did."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (open, (str(self._path), "w"))


def pickled(path: Path) -> bytes:
    """A pickle that makes a file when it is read."""
    return pickle.dumps(Touch(path), protocol=2)


class Run:
    """Unpickling it runs code."""

    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> Any:
        return (exec, (self._code, {}))


def hostile_sample(source: Path, target: Path, code: str) -> Path:
    """A copy whose sample runs code when PyTorch loads it. Intake never stores such a file."""
    return write(target, entries(source) | {SAMPLE: pickle.dumps(Run(code), protocol=2)})


class Small(nn.Module):
    """Of all that exporters write a little: weights, buffers, a constant, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 10)
        self.scale = torch.full((1,), 2.0)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores and what they come from."""
        found = torch.relu(self.norm(self.conv(image))).flatten(1)
        return {"scores": self.head(found) * self.scale, "features": found[:, ::2]}


def save_model(module: nn.Module, target: Path, *inputs: torch.Tensor, **shapes: Any) -> Path:
    """Export with ``dynamic_shapes`` by input name and save."""
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes or None)
    torch.export.save(program, target)
    return target


def small_model(target: Path) -> Path:
    """`image[batch,1,8,8]` to `scores[batch,10]` and `features[batch,72]`."""
    return save_model(
        Small(), target, torch.zeros(2, 1, 8, 8), image={0: torch.export.Dim("batch")}
    )


def entries(source: Path) -> dict[str, bytes]:
    """Names without the root folder, and bytes, in order."""
    with zipfile.ZipFile(source) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(target: Path, content: Mapping[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    """Write entries under one root folder."""
    with zipfile.ZipFile(target, "w", packing) as archive:
        for name, data in content.items():
            archive.writestr(f"{ROOT}/{name}", data)
    return target


def with_json(source: Path, target: Path, name: str, change: Callable[[Json], None]) -> Path:
    """A copy whose JSON entry went through ``change``."""
    content = entries(source)
    document = copy.deepcopy(json.loads(content[name]))
    change(document)
    content[name] = json.dumps(document).encode()
    return write(target, content)


def nodes(document: Json) -> list[Json]:
    """The operators of a graph."""
    found: list[Json] = document["graph_module"]["graph"]["nodes"]
    return found
