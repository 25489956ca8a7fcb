"""ONNX Runtime on the build side: float as exported or halved, INT8 by its own quantiser.

The library is imported only inside the functions. Refuses GPUs and more than one thread a call.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from controller.domain.build import Precision
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import Order, Source
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array

MEDIA_TYPE = "application/onnx"
EXTRA = "optimize"
CAUTION_MOST = 5  # see `quantize_onnx`
NEEDS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP32: ("onnxruntime",),
    Precision.FP16: ("onnxruntime",),
    Precision.INT8: ("onnxruntime",),
}


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the ONNX file that ships. InvalidError in plain words."""
    from controller.optimize.export_onnx import check_exported
    from controller.optimize.quantize_onnx import quantize_onnx

    match order.recipe.precision:
        case Precision.INT8:
            quantize_onnx(source.onnx(), target, source.signature, order)
        case Precision.FP16:
            _halve(source.onnx(), target)
        case _:
            shutil.copyfile(source.onnx(), target)
    check_exported(target, source.signature)


def _halve(source: Path, target: Path) -> None:
    """Weights and arithmetic in 16 bits; inputs and outputs stay as the signature has them."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from controller.optimize.export_onnx import drop_unused_domains

    try:
        halved = ONNXModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
        halved.topological_sort()
    except Exception as error:
        keep_raw(error)
        raise InvalidError(f"the model cannot be made fp16{first_words(str(error))}") from error
    drop_unused_domains(halved.model)
    onnx.save(halved.model, target)


def open_build(path: Path, signature: Signature) -> "OnnxSession":
    """Load an ONNX file as a device would. InvalidError in plain words."""
    return OnnxSession(path, signature)


def versions() -> Mapping[str, str]:
    """What was used."""
    import onnx
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


class OnnxSession:
    """A session of ONNX Runtime on one file; a call takes one thread."""

    def __init__(self, path: Path, signature: Signature) -> None:
        """Load it. Raises InvalidError with the runtime's own words."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A build host does other things too: spinning threads starve each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            keep_raw(error)
            raise InvalidError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load the model"
                f"{first_words(str(error))}"
            ) from error
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call. Raises InvalidError when the runtime does."""
        feed = dict(zip(self._inputs, inputs, strict=True))
        try:
            return list(self._session.run(self._outputs, feed))
        except Exception as error:
            keep_raw(error)
            shapes = ", ".join(str(list(one.shape)) for one in inputs)
            raise InvalidError(
                f"ONNX Runtime fails on inputs of {shapes}{first_words(str(error))}"
            ) from error
