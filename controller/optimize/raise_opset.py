"""Raises a pushed ONNX file to the opset that the passes and runtimes here work with.

The converter of the onnx package does it, in the job process: it is native code over foreign bytes.
It is known to be wrong about some operators, so the raised graph is asked beside the pushed one and
kept only where both answer alike. Lowers nothing, and leaves what is new enough as it is.
"""

from pathlib import Path

import onnx
from onnx import ModelProto, version_converter

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.export_onnx import OPSET, check_exported
from controller.optimize.outputs import differing
from controller.optimize.raw import keep_raw
from controller.optimize.rows import rows_of, sample_feeds

MIN_IR = 8  # older ones list every weight as an input
PROBES = 4
AS_PUSHED = "kept at opset {0} as pushed: {1}"


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model imports."""
    return max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))


def raise_opset(pushed: Path, target: Path, signature: Signature) -> str:
    """Write the raised file; returns what to note, empty where there was nothing to raise.

    Where the converter cannot do it, or the result answers otherwise, ``target`` is the pushed file
    and the note says why.
    """
    data = pushed.read_bytes()
    model = onnx.load_from_string(data)
    opset = opset_of(model)
    if opset >= OPSET:
        target.write_bytes(data)
        return ""
    try:
        raised = version_converter.convert_version(model, OPSET)
        raised.ir_version = max(raised.ir_version, MIN_IR)
        target.write_bytes(raised.SerializeToString())
        check_exported(target, signature)
        wrong = _differs(pushed, target, signature)
    # The converter is native: its errors have no common base below Exception.
    except Exception as error:  # noqa: BLE001
        keep_raw(error)
        wrong = f"onnx {onnx.__version__} cannot raise it"
    if not wrong:
        return f"raised from opset {opset} to {OPSET}, answers compared"
    target.write_bytes(data)
    return AS_PUSHED.format(opset, wrong)


def _differs(pushed: Path, raised: Path, signature: Signature) -> str:
    """Why the raised file is not the pushed one; empty where it is."""
    try:
        before, after = OnnxSession(pushed, signature), OnnxSession(raised, signature)
        for inputs, _ in sample_feeds(signature, PROBES, seed=0):
            wanted, found = before.run(inputs), after.run(inputs)
            if differing(found, wanted, rows_of(inputs)).any():
                return f"raised to {OPSET} it answers otherwise"
    except InvalidError as error:
        return error.message
    return ""
