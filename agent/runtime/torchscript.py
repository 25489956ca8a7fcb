"""TorchScript behind the backend door, on the CPU. Imported library: only inside `load`.

A TorchScript archive is a program: refuses every archive that is not of our builders' one form.
Infers in the thread that asks; such a call cannot be called off. Where a profile asks for it, the
program is also compiled for one row, before it serves, and runs so where that is measured quicker.
"""

import warnings
from collections.abc import Mapping
from typing import Any

from agent.domain.tensor import Signature, Tensor
from agent.errors import InferenceError, LoadError
from agent.runtime.arrays import arrays_of, numpy_type, tensor_of
from agent.runtime.backend import Backend, Options
from agent.runtime.torch_compiled import OneRow
from agent.runtime.torchscript_archive import read_mark


def load(path: str, options: Options) -> Backend:
    """Open a build; LoadError says why not.

    Options: `intra_op_threads` (1), of the whole process; `compile` (false): try `torch.compile`,
    which takes a C++ compiler, up to minutes, and `cache_dir` to keep what it made.
    """
    signature = read_mark(path)
    try:
        import torch
    except ImportError as error:
        hint = "pip install 'lighterman[torch]'"
        raise LoadError(f"runtime 'torch' is not installed ({error})", hint) from error
    torch.set_num_threads(int(options.get("intra_op_threads", 1)))
    try:
        # The library calls its own format deprecated; it reads it all the same.
        with warnings.catch_warnings(), open(path, "rb") as stream:
            warnings.simplefilter("ignore")
            module = torch.jit.load(stream, map_location="cpu")
    # Its exceptions have no common base below Exception.
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise LoadError(f"torch cannot load {path}: {words}") from error
    backend = TorchScriptBackend(torch, module, signature)
    if options.get("compile", False):
        backend.try_compiled(options)
    return backend


class TorchScriptBackend:
    """One loaded program. Outputs are views of its tensors."""

    def __init__(self, library: Any, module: Any, signature: Signature) -> None:
        self._torch, self._module, self._signature = library, module, signature
        self._one_row = OneRow()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; the program itself is safe for many threads."""
        torch, arrays = self._torch, arrays_of(inputs)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            given = [self._tensor(arrays[spec.name]) for spec in self._signature.inputs]
            found = [one.numpy() for one in self._one_row.quickest(given, self._module)(*given)]
        answers: dict[str, Tensor] = {}
        for spec, array in zip(self._signature.outputs, found, strict=True):
            if array.dtype != numpy_type(spec.dtype):
                raise InferenceError(f"output {spec.name!r} is {array.dtype}, not {spec.dtype}")
            answers[spec.name] = tensor_of(spec.name, spec.dtype, array)
        return answers

    def try_compiled(self, options: Options) -> None:
        """Take the compiled program where it says the same and is quicker; else say why not."""
        from torch._export.converter import TS2EPConverter

        self._one_row = OneRow()
        self._one_row.try_it(self._torch, TS2EPConverter, self._module, self._signature, options)

    def remarks(self) -> tuple[str, ...]:
        """Why a program that was to be compiled runs as it is."""
        return self._one_row.remarks

    def _tensor(self, array: Any) -> Any:
        """In place where it can be written: the library warns of every other one."""
        return self._torch.from_numpy(array if array.flags.writeable else array.copy())

    def signature(self) -> Signature:
        """Inputs and outputs as the archive's mark names them."""
        return self._signature

    def call_off(self, thread: int) -> None:
        """Not offered: the library has no such call."""

    def close(self) -> None:
        """Drop the program; its memory goes when the last output is dropped."""
        self._module, self._one_row = None, OneRow()
