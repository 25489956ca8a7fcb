"""OpenVINO on the build side: its own form of the graph, INT8 by either quantiser, run as shipped.

The library is imported only inside the functions. Refuses devices other than the CPU, and figures
for a precision that this processor does not have.
"""

from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from controller.domain.build import Precision
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize import openvino_ir as ir
from controller.optimize.builder import LackingError, Order, Source
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array

MEDIA_TYPE = "application/vnd.lighterman.openvino-ir"
EXTRA = "optimize-openvino"
CAUTION_MOST = 5  # see `quantize_onnx`; NNCF has one step
NEEDS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP32: ("openvino",),
    Precision.BF16: ("openvino",),
    Precision.INT8: ("openvino",),  # and nncf, where a recipe says so
}


def compile_build(source: Source, order: Order, target: Path) -> None:
    """Write the container that ships. InvalidError in plain words."""
    file = source.onnx()
    precision, quantised = order.recipe.precision, target.with_suffix(".quantised.onnx")
    if precision is Precision.INT8 and order.recipe.quantization.get("by") == "onnxruntime":
        from controller.optimize.quantize_onnx import quantize_onnx

        quantize_onnx(file, quantised, source.signature, order)
        file = quantised
    core = ir.import_openvino().Core()
    try:
        model = core.read_model(str(file))
    except Exception as error:
        keep_raw(error)
        raise InvalidError(f"OpenVINO cannot read the model{first_words(str(error))}") from error
    quantised.unlink(missing_ok=True)
    if precision is Precision.INT8 and file is not quantised:
        from controller.optimize.quantize_nncf import quantize_nncf

        model = quantize_nncf(model, source.signature, order)
    half = precision is Precision.BF16
    ir.write(ir.tidy(model, source.signature), target, "bf16" if half else "f32", half=half)


def open_build(path: Path, signature: Signature) -> "OpenVinoSession":
    """Load a container as a device would. InvalidError in plain words."""
    return OpenVinoSession(path, signature)


def versions() -> Mapping[str, str]:
    """What is used; NNCF where it is there."""
    found = {name: distributions(name=name) for name in ("openvino", "nncf")}
    return {name: one.version for name, those in found.items() for one in those}


class OpenVinoSession:
    """A compiled model; a call takes one thread."""

    def __init__(self, path: Path, signature: Signature) -> None:
        self._inputs = [spec.name for spec in signature.inputs]
        # The library reads the weights where they lie: they have to live as long as the model.
        precision, xml, self._weights = ir.read(path)
        core = ir.import_openvino().Core()
        try:
            model = core.read_model(model=xml, weights=self._weights)
            self._model = core.compile_model(model, "CPU", ir.properties(precision))
        except Exception as error:
            keep_raw(error)
            raise InvalidError(f"OpenVINO cannot load it{first_words(str(error))}") from error
        ir.check_names(self._model, signature)
        if self._model.get_property("INFERENCE_PRECISION_HINT").to_string() != precision:
            raise LackingError(f"this worker's processor does not compute in {precision}")
        self._idle: list[Any] = []

    def run(self, inputs: list[Array]) -> list[Array]:
        """One call. Raises InvalidError when the runtime does."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._model.create_infer_request()
        feed = dict(zip(self._inputs, inputs, strict=True))
        try:
            found = request.infer(feed, share_inputs=True).to_tuple()
        except Exception as error:
            keep_raw(error)
            shapes = ", ".join(str(list(one.shape)) for one in inputs)
            said = f"OpenVINO fails on inputs of {shapes}{first_words(str(error))}"
            raise InvalidError(said) from error
        self._idle.append(request)
        return list(found)
