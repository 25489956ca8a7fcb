"""TorchScript sources: loaded and run in the job process only, exported to ONNX by PyTorch's older
exporter, which is the one that reads them. Refuses passes: they work on programs of torch.export.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.domain.model import Signature
from controller.domain.preparation import Preparation
from controller.errors import InvalidError
from controller.optimize.export_errors import of_script
from controller.optimize.export_onnx import OPSET, finish
from controller.optimize.import_torch import TorchModel
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import sample_inputs

if TYPE_CHECKING:
    import torch


class ScriptModel(TorchModel):
    """A loaded archive; see `TorchModel`."""

    def __init__(self, path: Path, signature: Signature, preparation: Preparation) -> None:
        """Load the file. Raises InvalidError when it does not load, or gives other outputs."""
        import torch

        try:
            with warnings.catch_warnings(), path.open("rb") as stream:
                warnings.simplefilter("ignore")
                self._module: Any = torch.jit.load(stream, map_location="cpu").eval()
        except Exception as error:
            keep_raw(error)
            said = f"PyTorch cannot load the TorchScript{first_words(str(error))}"
            raise InvalidError(said) from error
        torch.set_num_threads(1)
        self.signature = signature
        self._around = preparation

    @property
    def program(self) -> Any:  # type: ignore[override]  # never written
        """Not there: InvalidError says what passes need."""
        raise InvalidError(
            "the source is TorchScript, and passes work on programs of torch.export",
            "push the .pt2 of torch.export.save, or build it without passes",
        )

    @property
    def module(self) -> Any:
        """The archive's outermost module."""
        return self._module

    def _called_with(
        self, tensors: list["torch.Tensor"]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return tuple(tensors), {}


def export_script(model: ScriptModel, target: Path) -> None:
    """Write the ONNX file. InvalidError names the operator and its line."""
    import torch

    signature = model.signature
    samples = sample_inputs(signature, batch=2, seed=0)
    args = tuple(torch.from_numpy(one) for one in samples)
    specs = (*signature.inputs, *signature.outputs)
    axes = {
        spec.name: {p: axis for p, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in specs
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.module,
                args,
                str(target),
                dynamo=False,
                opset_version=OPSET,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                dynamic_axes=axes,
            )
    except Exception as error:
        keep_raw(error)
        said = of_script(str(error), model.module) or first_words(str(error))
        raise InvalidError(f"PyTorch cannot export the TorchScript to ONNX{said}") from error
    finish(target, signature)
