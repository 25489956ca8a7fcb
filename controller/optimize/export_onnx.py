"""From a loaded PyTorch program to an ONNX file with the signature's names. Measures nothing."""

import warnings
from pathlib import Path

import onnx
from onnx import ModelProto, ValueInfoProto

from controller.domain.model import Signature, TensorSpec
from controller.errors import InvalidError
from controller.intake.models import check_one_signature
from controller.intake.onnx_model import parse_onnx
from controller.optimize.export_errors import of_program
from controller.optimize.import_torch import TorchModel
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import sample_inputs

OPSET = 18
MAX_BYTES = 2 * 1024**3


def export_onnx(model: TorchModel, target: Path) -> None:
    """Write the ONNX file. Raises InvalidError when PyTorch cannot express the model in ONNX."""
    import torch

    signature = model.signature
    args, kwargs = model.arguments(sample_inputs(signature, batch=2, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model.program,
                args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in signature.inputs],
                output_names=[spec.name for spec in signature.outputs],
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            keep_raw(error)
            raw = str(error)
            said = of_program(raw, str(model.program.graph_module.code)) or first_words(raw)
            raise InvalidError(f"PyTorch cannot export the model to ONNX{said}") from error
    if program is None:
        raise InvalidError("PyTorch's ONNX exporter returned nothing")
    program.save(str(target), external_data=False)
    finish(target, signature)


def check_exported(path: Path, signature: Signature) -> None:
    """The file that ships has the version's signature and nothing that a device would refuse."""
    check_one_signature({"version": signature, "build": parse_onnx(path, MAX_BYTES, "the build")})


def drop_unused_domains(model: ModelProto) -> None:
    """ONNX Runtime's tools import every domain they know; a file names what it uses."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def finish(path: Path, signature: Signature) -> None:
    """Give axes the signature's names and drop the exporter's notes about the author's code."""
    model = onnx.load(path)
    graph = model.graph
    for values, specs in ((graph.input, signature.inputs), (graph.output, signature.outputs)):
        for value, spec in zip(values, specs, strict=True):
            _name_axes(value, spec)
            del value.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    # The exporter's own axis names stand in here; shape inference makes it again.
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    drop_unused_domains(model)
    onnx.save(model, path)
    check_exported(path, signature)


def _name_axes(value: ValueInfoProto, spec: TensorSpec) -> None:
    for axis, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
        if isinstance(size, str):
            axis.dim_param = size
        else:
            axis.dim_value = size
