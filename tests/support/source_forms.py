"""The trained light digits as each kind of source, with the scaling around the file's graph.

The network as it is trained scales bytes up and down inside; here the file is only what lies
between, and the version's spec says the rest: both have to answer the same.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from controller.intake.models import parse_model
from controller.services.context import Limits
from tests.support.digits import digits, job_spec
from tests.support.model_entries import Scaled

Json = dict[str, Any]
SIGNATURE: Json = {
    "inputs": [{"name": "image", "dtype": "FP32", "shape": ["batch", 1, 16, 16]}],
    "outputs": [{"name": "output", "dtype": "FP32", "shape": ["batch", 10]}],
}
FRAMES: Json = {
    "inputs": {"image": {"dtype": "UINT8", "layout": "NHWC", "size": [8, 8], "scale": 0.0625}}
}
ENTRY = "tests.support.model_entries:scaled"


def trained() -> Scaled:
    """The network between, with the weights of the trained light digits."""
    program = torch.export.load(digits() / "light.pt2")
    network = Scaled()
    network.load_state_dict(program.state_dict)
    return network.eval()


def safetensors(state: dict[str, torch.Tensor]) -> bytes:
    """Weights as the format has them."""
    names = {torch.float32: "F32", torch.int64: "I64"}
    header: Json = {}
    data = io.BytesIO()
    for name, tensor in state.items():
        begin = data.tell()
        data.write(tensor.contiguous().numpy().tobytes())
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, data.tell()],
        }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data.getvalue()


def write_form(form: str, folder: Path) -> tuple[Path, Json]:
    """The file of a form, and the version's spec for it."""
    network, path = trained(), folder / f"source.{form}"
    picture = torch.zeros(2, 1, 16, 16)
    match form:
        case "pt2":
            batch = torch.export.Dim("batch")
            shapes = {"image": {0: batch}}
            torch.export.save(torch.export.export(network, (picture,), dynamic_shapes=shapes), path)
            return path, FRAMES
        case "traced":
            torch.jit.save(torch.jit.trace(network, picture), path)
        case "scripted":
            torch.jit.save(torch.jit.script(network), path)
        case _:
            path.write_bytes(safetensors(network.state_dict()))
            return path, FRAMES | {"signature": SIGNATURE, "entry": ENTRY}
    return path, FRAMES | {"signature": SIGNATURE}


def frames(folder: Path) -> Path:
    """The digits as a camera would send them."""
    with np.load(digits() / "digits.npz") as found:
        arrays = dict(found)
    arrays["x"] = arrays["x"].astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(folder / "frames.npz", **arrays)
    return folder / "frames.npz"


def spec_of(path: Path, around: Json, recipes: tuple[str, ...], **more: Any) -> Json:
    """A job on such a file, as the controller would write it."""
    from controller.domain.preparation import prepare
    from controller.domain.version_spec import parse_variant

    asked = parse_variant(around)
    parsed = parse_model(path, Limits(), "", asked.signature)
    spec = job_spec(digits() / "light.pt2", recipes, **more)
    spec["schema"] = 2
    spec["source"] = {"role": "source", "format": parsed.format.value, "spec": around}
    spec["signature"] = prepare(parsed.signature, asked.wishes).outer.to_json()
    return spec
