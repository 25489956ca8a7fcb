"""A network made by a Python function of this worker, with the pushed weights in it.

The function is one marked with `model_entry` in any installed module; what is not marked is not
called, whatever a version names. It runs in the job process, without network or certificates.
Refuses weights that are not exactly those of the network.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.intake.safetensors import parse_safetensors
from controller.optimize.export_onnx import MAX_BYTES
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import sample_inputs

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_MARK = "__lighterman_model_entry__"
_DIM_MOST = 4096  # of a dynamic axis without bounds, for the exporter; devices never see it
_NAMED = 3  # keys that a message lists

Entry = Callable[[], "torch.nn.Module"]


def model_entry(function: Entry) -> Entry:
    """Mark a function without arguments as one that versions may name under ``entry``."""
    setattr(function, _MARK, True)
    return function


def make_by_entry(entry: str, weights: Path, signature: Signature) -> "ExportedProgram":
    """The network as a program of this signature. InvalidError in plain words."""
    import torch

    function = find_entry(entry)
    try:
        module = function()
    except Exception as error:
        keep_raw(error)
        raise InvalidError(f"{entry} fails{first_words(str(error))}") from error
    if not isinstance(module, torch.nn.Module):
        raise InvalidError(f"{entry} gives {type(module).__name__}, not a torch.nn.Module")
    _fill(module, weights, entry)
    module.eval()
    args = tuple(torch.from_numpy(one) for one in sample_inputs(signature, batch=2, seed=0))
    try:
        return torch.export.export(module, args, dynamic_shapes=dynamic_shapes(signature))
    except Exception as error:
        keep_raw(error)
        raise InvalidError(
            f"PyTorch cannot export what {entry} made, called with"
            f" {', '.join(spec.text() for spec in signature.inputs)}{first_words(str(error))}"
        ) from error


def find_entry(entry: str) -> Entry:
    """The function that ``module:function`` names. InvalidError for none, or one not marked."""
    module, _, name = entry.partition(":")
    try:
        found = getattr(import_module(module), name)
    # Importing runs foreign code, which may raise anything.
    except Exception as error:
        keep_raw(error)
        raise InvalidError(
            f"this worker has no function {entry}", "install the module that has it beside it"
        ) from error
    if getattr(found, _MARK, False) is not True:
        raise InvalidError(
            f"{entry} is not meant to make a model",
            "mark the function with controller.optimize.import_entry.model_entry",
        )
    return found  # type: ignore[no-any-return]


def dynamic_shapes(signature: Signature) -> tuple[dict[int, Any], ...]:
    """Dynamic axes as `torch.export` takes them, by input and place."""
    import torch

    bounds = {one.name: (one.least, one.most) for one in signature.axes}
    dims: dict[str, Any] = {}
    for spec in signature.inputs:
        for axis in spec.shape:
            if isinstance(axis, str):
                least, most = bounds.get(axis, (1, _DIM_MOST))
                dims.setdefault(axis, torch.export.Dim(axis, min=least, max=most))
    return tuple(
        {place: dims[axis] for place, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in signature.inputs
    )


def _fill(module: "torch.nn.Module", weights: Path, entry: str) -> None:
    import torch

    stored = parse_safetensors(weights, MAX_BYTES, "the weights")
    state: dict[str, torch.Tensor] = {}
    with weights.open("rb") as stream:
        for one in stored:
            stream.seek(one.begin)
            kind: torch.dtype = getattr(torch, one.dtype)
            data = bytearray(stream.read(one.end - one.begin))
            tensor = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
            state[one.name] = tensor.reshape(one.shape)
    wanted = module.state_dict()
    odd = sorted(wanted.keys() ^ state.keys())
    odd += [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    if odd:
        raise InvalidError(
            f"the weights are not those of the network that {entry} makes: {len(odd)} differ",
            "only one of them has, or with another shape: " + ", ".join(odd[:_NAMED]),
        )
    module.load_state_dict(state)
