"""ExecuTorch on the build side: PyTorch's program lowered to XNNPACK, float or INT8 by PT2E.

The library is imported only inside the functions. Refuses sources that are no program of PyTorch.
"""

import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from controller.domain.build import Precision
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import Order, Source
from controller.optimize.packed import pack, unpack
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array, sample_inputs

KIND = "executorch"
MEDIA_TYPE = "application/vnd.lighterman.executorch"
EXTRA = "executorch"
NEEDS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP32: ("executorch",),
    Precision.INT8: ("executorch", "torchao"),
}
MAX_BATCH = 8  # memory is planned for it; devices cut what is larger


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the container that ships. InvalidError in plain words."""
    import torch

    model, signature = source.torch(), source.signature
    sample = tuple(torch.from_numpy(x) for x in sample_inputs(signature, batch=2, seed=0))
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = tuple(_axes(spec.shape, batch) for spec in signature.inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.flat(), sample, dynamic_shapes=(shapes,))
            if order.recipe.precision is Precision.INT8:
                quantised = _quantise(program.module(), order)
                program = torch.export.export(quantised, sample, dynamic_shapes=shapes)
            payload = _lower(program)
    except InvalidError:
        raise
    except Exception as error:
        keep_raw(error)
        said = f"ExecuTorch cannot lower the model{first_words(str(error))}"
        raise InvalidError(said) from error
    target.write_bytes(pack(KIND, signature, {"max_batch": MAX_BATCH}, payload))


def _axes(shape: tuple[int | str, ...], batch: Any) -> dict[int, Any]:
    if any(isinstance(axis, str) for axis in shape[1:]):
        raise InvalidError("ExecuTorch's builds have a dynamic first axis alone")
    return {0: batch} if isinstance(shape[0], str) else {}


def _quantise(module: Any, order: Order) -> Any:
    import torch
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    how = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    prepared = prepare_pt2e(module, xnnpack.XNNPACKQuantizer().set_global(how))
    wanted, done = order.recipe.quantization.get("calibration_rows", 100), 0
    for rows, real in order.rows().batches(1):
        if done >= int(str(wanted)) or not order.go_on(done):
            break
        prepared(torch.from_numpy(rows))
        done += real
    return convert_pt2e(prepared)


def _lower(program: Any) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def open_build(path: Path, signature: Signature) -> "ExecuTorchSession":
    """Load a container as a device would. InvalidError in plain words."""
    return ExecuTorchSession(path)


def versions() -> Mapping[str, str]:
    """What was used."""
    return {name: metadata.version(name) for name in ("executorch", "torch", "torchao")}


class ExecuTorchSession:
    """A method per call that runs beside others."""

    def __init__(self, path: Path) -> None:
        from executorch.runtime import Runtime

        _, payload = unpack(path, KIND)
        self._program = Runtime.get().load_program(payload)
        self._idle: list[Any] = []

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call. Raises InvalidError when the runtime does."""
        import torch

        method = self._idle.pop() if self._idle else self._program.load_method("forward")
        try:
            found = method.execute([torch.from_numpy(one.copy()) for one in inputs])
        except Exception as error:
            keep_raw(error)
            raise InvalidError(f"ExecuTorch fails{first_words(str(error))}") from error
        answers = [one.numpy().copy() for one in found]
        self._idle.append(method)
        return answers
