"""PyTorch's side: loads a `.pt2` and runs it eagerly, in the job process only: it is code.

Refuses to be imported by anything that holds a certificate or a database; torch is loaded on use.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


class TorchModel:
    """A loaded program; results are NumPy arrays in the order of the signature's outputs.

    One call takes one thread.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        """Load the file. Raises InvalidError when it does not load."""
        import torch

        try:
            self.program: ExportedProgram = _load(path)
        except Exception as error:
            keep_raw(error)
            raise InvalidError(f"PyTorch cannot load the model{first_words(str(error))}") from error
        self._module = self.program.module()
        torch.set_num_threads(1)  # of one call; callers run several side by side
        self.signature = signature

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call without gradients. Raises InvalidError when the program fails."""
        import torch

        try:
            with torch.inference_mode():
                args, kwargs = self.arguments(inputs)
                result = self._module(*args, **kwargs)
        except Exception as error:
            keep_raw(error)
            shapes = ", ".join(str(list(one.shape)) for one in inputs)
            raise InvalidError(
                f"the model itself fails in PyTorch on inputs of {shapes}{first_words(str(error))}"
            ) from error
        leaves = torch.utils._pytree.tree_leaves(result)
        return [np.asarray(leaf.numpy()) for leaf in leaves]

    def flat(self) -> "torch.nn.Module":
        """The program with inputs and outputs one after another, as it is traced."""
        import torch

        program, call_spec = self._module, self.program.call_spec.in_spec

        class Build(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.program = program

            def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
                args, kwargs = given, {}
                if call_spec is not None:
                    args, kwargs = torch.utils._pytree.tree_unflatten(list(given), call_spec)
                return tuple(torch.utils._pytree.tree_leaves(self.program(*args, **kwargs)))

        # Its name becomes a part of the archive.
        Build.__module__, Build.__qualname__ = "lighterman", "Build"
        made = Build()
        made.training = False  # `eval` would ask the program as well, which refuses to be asked
        return made

    def arguments(self, inputs: list[Array]) -> tuple[tuple[object, ...], dict[str, object]]:
        """The program's own call form of a flat list of inputs."""
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        spec = self.program.call_spec.in_spec
        if spec is None:
            return tuple(tensors), {}
        args, kwargs = torch.utils._pytree.tree_unflatten(tensors, spec)
        return tuple(args), dict(kwargs)


def _load(path: Path) -> "ExportedProgram":
    import torch

    with path.open("rb") as stream:
        return torch.export.load(stream)


def versions() -> dict[str, str]:
    """What was used."""
    import torch

    return {"torch": str(torch.__version__)}
