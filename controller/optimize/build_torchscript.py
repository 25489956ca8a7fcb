"""TorchScript on the build side: PyTorch's program traced, frozen and checked; run as shipped.

torch is imported only inside the functions. Refuses programs that are no straight line when traced.
"""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

from controller.domain.build import Precision
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize import torchscript_archive as archive
from controller.optimize.builder import Order, Source
from controller.optimize.import_torch import versions as versions
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array, sample_inputs

MEDIA_TYPE = "application/vnd.lighterman.torchscript"
EXTRA = "optimize"
NEEDS: Mapping[Precision, tuple[str, ...]] = {Precision.FP32: ("torch",)}


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the archive that ships. InvalidError in plain words."""
    import torch

    model, signature = source.torch(), source.signature
    inputs = [torch.from_numpy(one) for one in sample_inputs(signature, batch=2, seed=0)]
    saved = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(model.flat(), tuple(inputs), check_trace=False)
            torch.jit.save(torch.jit.freeze(traced), saved)
        except Exception as error:
            keep_raw(error)
            said = f"PyTorch cannot trace the model{first_words(str(error))}"
            raise InvalidError(said) from error
    archive.write(saved.getvalue(), signature, target)
    archive.check(target, "the build")


def open_build(path: Path, signature: Signature) -> "TorchScriptSession":
    """Load an archive as a device would. InvalidError in plain words."""
    return TorchScriptSession(path, signature)


class TorchScriptSession:
    """A loaded archive; a call takes one thread."""

    def __init__(self, path: Path, signature: Signature) -> None:
        if archive.check(path, path.name) != signature:
            raise InvalidError(f"{path.name} is of another signature")
        import torch

        torch.set_num_threads(1)  # of one call; callers run several side by side
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")
            self._module = torch.jit.load(stream, map_location="cpu")

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call. Raises InvalidError when the program fails."""
        import torch

        try:
            tensors = [torch.from_numpy(one) for one in inputs]
            # As traced: optimising anew for each shape takes its time in the middle of serving.
            with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                return [one.numpy() for one in self._module(*tensors)]
        except Exception as error:
            keep_raw(error)
            shapes = ", ".join(str(list(one.shape)) for one in inputs)
            said = f"TorchScript fails on inputs of {shapes}{first_words(str(error))}"
            raise InvalidError(said) from error
