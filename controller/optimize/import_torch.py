"""PyTorch's side: loads a `.pt2` and runs it eagerly, in the job process only: it is code.

Refuses to be imported by anything that holds a certificate or a database; torch is loaded on use.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controller.domain.model import Signature
from controller.domain.preparation import Preparation
from controller.errors import InvalidError
from controller.optimize.prepare_torch import enter, leave
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


class TorchModel:
    """A loaded program; results are NumPy arrays in the order of the signature's outputs.

    One call takes one thread. ``signature`` is the program's own; `run` and `flat` take and give
    what ``preparation`` makes of it.
    """

    def __init__(
        self, path: Path, signature: Signature, preparation: Preparation | None = None
    ) -> None:
        """Load the file. Raises InvalidError when it does not load."""
        try:
            program = _load(path)
        except Exception as error:
            keep_raw(error)
            raise InvalidError(f"PyTorch cannot load the model{first_words(str(error))}") from error
        self._take(program, signature, preparation)

    @classmethod
    def of(
        cls, program: "ExportedProgram", signature: Signature, preparation: Preparation
    ) -> "TorchModel":
        """A program that was exported in this process."""
        made = cls.__new__(cls)
        made._take(program, signature, preparation)
        return made

    def _take(
        self, program: "ExportedProgram", signature: Signature, preparation: Preparation | None
    ) -> None:
        import torch

        self.program: ExportedProgram = program
        self._module: torch.nn.Module = program.module()
        torch.set_num_threads(1)  # of one call; callers run several side by side
        self.signature = signature
        self._around = preparation or Preparation(signature, signature)

    def core(self) -> "TorchModel":
        """The same program with nothing around it, as passes change it and ONNX exports it."""
        bare = copy.copy(self)
        bare._around = Preparation(self.signature, self.signature)
        return bare

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call without gradients. Raises InvalidError when the program fails."""
        import torch

        try:
            with torch.inference_mode():
                given = [torch.from_numpy(np.ascontiguousarray(one)) for one in inputs]
                args, kwargs = self._called_with(enter(self._around, given))
                result = self._module(*args, **kwargs)
                leaves = leave(self._around, torch.utils._pytree.tree_leaves(result))
        except Exception as error:
            keep_raw(error)
            shapes = ", ".join(str(list(one.shape)) for one in inputs)
            raise InvalidError(
                f"the model itself fails in PyTorch on inputs of {shapes}{first_words(str(error))}"
            ) from error
        return [np.asarray(leaf.numpy()) for leaf in leaves]

    def flat(self) -> "torch.nn.Module":
        """The program with inputs and outputs one after another, as it is traced."""
        import torch

        program, around, called_with = self._module, self._around, self._called_with

        class Build(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.program = program

            def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
                args, kwargs = called_with(enter(around, list(given)))
                found = torch.utils._pytree.tree_leaves(self.program(*args, **kwargs))
                return tuple(leave(around, found))

        # Its name becomes a part of the archive.
        Build.__module__, Build.__qualname__ = "lighterman", "Build"
        made = Build()
        made.training = False  # `eval` would ask the program as well, which refuses to be asked
        return made

    def arguments(self, inputs: list[Array]) -> tuple[tuple[object, ...], dict[str, object]]:
        """The program's own call form of a flat list of its inputs."""
        import torch

        return self._called_with([torch.from_numpy(np.ascontiguousarray(one)) for one in inputs])

    def _called_with(
        self, tensors: list["torch.Tensor"]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        import torch

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
