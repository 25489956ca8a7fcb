"""INT8 by ONNX Runtime's quantiser: QDQ, signed weights, activations as the runtime wants them:
unsigned on processors, signed and symmetric for TensorRT, which takes nothing else; or dynamic.

Dynamic quantisation is for models of matrix products and LSTMs: ranges come from each call, which
costs more than it gains in convolutions. Evaluates nothing. Refuses other flavours.
"""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from controller.domain.build import DYNAMIC
from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import Order
from controller.optimize.export_onnx import drop_unused_domains
from controller.optimize.prepare_onnx import is_folded
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array, Rows
from controller.optimize.sensitivity import LAYERS, rank_layers

DEFAULT_CALIBRATION_ROWS = 100
# A network's first layers see the raw range of the input and have few channels: as float they cost
# little and give back much of what quantising loses. Measured on EfficientNet-Lite2 and Lite0, on
# photos that no gate judged: two layers bring agreement of Lite0 from 96.7 to 98.6 %, a tenth of
# all layers another 8 to 25 % less error of the scores, for 10 to 15 % more time per call. Wider
# ranges cost nothing here: cutting them at a percentile loses accuracy at every setting tried.
# So all is tried in INT8 first where rows can tell what that loses, and this where it is too much.
STEM_SHARE = 10
# Of all layers, those that lose most: what further tries keep in float beside the first ones.
FLOAT_SHARES = (0.1, 0.25, 0.5, 0.75)
STEM_LEAST = 2
STEM_NEEDS_CONVOLUTIONS = 12  # small networks have no such layers to spare
CALIBRATIONS = ("minmax", "entropy", "percentile")
SIGNED = frozenset({"tensorrt", "tensorrt-rtx"})
# What TensorRT computes in INT8 or fuses with it; pairs around anything else only cost it fusions.
_SIGNED_QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool")
# Symmetric as TensorRT wants it, and biases in float: it has no layer that takes a quantised one.
_SIGNED_EXTRA = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
KINDS = ("static", DYNAMIC)
_DYNAMIC = ("MatMul", "Gemm", "LSTM")
_DYNAMICALLY = frozenset({"MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_OTHER_KEYS = ("calibration", "calibration_rows", "fallback_steps")
_QUANTISED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Clip", "Relu", "LeakyRelu"),
    *("Sigmoid", "HardSwish", "GlobalAveragePool", "AveragePool", "MaxPool", "ReduceMean", "Pad"),
    *("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Softmax"),
)


def quantize_onnx(source: Path, target: Path, signature: Signature, order: Order) -> int:
    """Write the INT8 file; returns the number of calibration rows used.

    Raises InvalidError for a flavour that is not offered, and when nothing in the model can be
    quantised.
    """
    quantization = dict(order.recipe.quantization)
    signed = order.recipe.runtime in SIGNED
    _check_flavour(quantization, signed)
    if quantization.get("kind") == DYNAMIC:
        _quantize_dynamic(source, target)
        return 0
    rows, count = order.rows(), _rows_wanted(quantization)
    method = str(quantization.get("calibration", CALIBRATIONS[0]))
    reader = _Reader(signature.inputs[0].name, rows, count, order.go_on)
    prepared = target.with_suffix(".prepared.onnx")
    try:
        _prepare(source, prepared)
        # Symmetric ranges are another scheme than the one that was learned.
        learned = {} if signed else _learned(prepared, order)
        if order.caution > 1 and not order.ranking:
            if not target.exists():  # whoever packs the graph took the try before away
                bolder = _Reader(signature.inputs[0].name, rows, count, order.go_on)
                stem = _stem(prepared) + _around(prepared)
                _quantize(prepared, target, bolder, method, stem, signed, learned)
            order.ranking.extend(rank_layers(prepared, target, rows, signature))
        spared = _spared(order, prepared) + _around(prepared)
        _quantize(prepared, target, reader, method, spared, signed, learned)
    except (AssertionError, ValueError, ArithmeticError) as error:
        # The quantiser asserts that every range is a number: one recipe fails, not the job.
        keep_raw(error)
        raise InvalidError(
            "the model cannot be quantised to int8",
            "calibration gave ranges that are no numbers; look for NaN or infinity in the weights",
        ) from error
    except Exception as error:
        keep_raw(error)
        raise InvalidError(
            f"the model cannot be quantised to int8{first_words(str(error))}"
        ) from error
    prepared.unlink()
    model = onnx.load(target)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise InvalidError("nothing in the model can be quantised to int8")
    drop_unused_domains(model)
    onnx.save(model, target)
    return reader.done


def _rows_wanted(quantization: dict[str, object]) -> int:
    wanted = quantization.get("calibration_rows", DEFAULT_CALIBRATION_ROWS)
    return wanted if isinstance(wanted, int) and wanted > 0 else DEFAULT_CALIBRATION_ROWS


def _quantize_dynamic(source: Path, target: Path) -> None:
    """Weights in 8 bits, ranges of activations from each call. InvalidError where none gains."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = target.with_suffix(".prepared.onnx")
    try:
        _prepare(source, prepared)
        quantize_dynamic(
            prepared,
            target,
            op_types_to_quantize=list(_DYNAMIC),
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    except Exception as error:
        keep_raw(error)
        raise InvalidError(
            f"the model cannot be quantised to int8{first_words(str(error))}"
        ) from error
    prepared.unlink()
    model = onnx.load(target)
    if not any(node.op_type in _DYNAMICALLY for node in model.graph.node):
        raise InvalidError(
            "the model has no matrix product or LSTM of stored weights",
            "quantization.kind: static is for convolutions",
        )
    drop_unused_domains(model)
    onnx.save(model, target)


def _prepare(source: Path, prepared: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # the quantiser warns about its own defaults
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)


def _quantize(
    prepared: Path,
    target: Path,
    reader: "_Reader",
    method: str,
    spared: list[str],
    signed: bool,
    learned: dict[str, list[dict[str, Any]]],
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = dict(
        zip(
            CALIBRATIONS,
            (CalibrationMethod.MinMax, CalibrationMethod.Entropy, CalibrationMethod.Percentile),
            strict=True,
        )
    )
    quantize_static(
        str(prepared),
        str(target),
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[method],
        op_types_to_quantize=list(_SIGNED_QUANTISED if signed else _QUANTISED),
        nodes_to_exclude=spared,
        extra_options={
            **(_SIGNED_EXTRA if signed else {}),
            **({"TensorQuantOverrides": learned} if learned else {}),
        },
    )


class _Reader:
    """Feeds calibration rows one by one: the calibrator keeps results, so memory stays low."""

    def __init__(self, name: str, rows: Rows, count: int, go_on: Callable[[int], bool]) -> None:
        self._name = name
        self._batches: Iterator[tuple[Array, int]] = rows.batches(1)
        self._count = count
        self._go_on = go_on
        self.done = 0

    def get_next(self) -> dict[str, Any] | None:
        """The next row, or None at the end."""
        if self.done >= self._count or not self._go_on(self.done):
            return None
        found = next(self._batches, None)
        if found is None:
            return None
        batch, real = found
        self.done += real
        return {self._name: np.ascontiguousarray(batch)}

    def __iter__(self) -> "_Reader":
        return self

    def __next__(self) -> dict[str, Any]:
        item = self.get_next()
        if item is None:
            raise StopIteration
        return item

    def set_range(self, start_index: int, end_index: int) -> None:
        """Part of the quantiser's interface; strides are not used here."""
        raise InvalidError(f"calibration by strides ({start_index}–{end_index}) is not offered")


def _check_flavour(quantization: dict[str, object], signed: bool) -> None:
    kinds = KINDS[:1] if signed else KINDS
    offered = {"format": "qdq", "activation": "s8" if signed else "u8", "weight": "s8"}
    unknown = sorted(set(quantization) - {"kind", "by", *offered, *_OTHER_KEYS})
    if unknown:
        raise InvalidError(
            f"quantization.{unknown[0]} is unknown to ONNX Runtime's recipes",
            f"known are {', '.join(sorted({'kind', *offered, *_OTHER_KEYS}))}",
        )
    kind = quantization.get("kind", KINDS[0])
    if kind not in kinds:
        raise InvalidError(f"quantization.kind is {kind!r}", f"offered: {', '.join(kinds)}")
    if quantization.get("calibration", CALIBRATIONS[0]) not in CALIBRATIONS:
        raise InvalidError(
            f"quantization.calibration is {quantization['calibration']!r}",
            f"offered: {', '.join(CALIBRATIONS)}",
        )
    for key, value in offered.items():
        if quantization.get(key, value) != value:
            raise InvalidError(
                f"quantization.{key} is {quantization[key]!r}", f"offered is {value!r}"
            )


def _spared(order: Order, prepared: Path) -> list[str]:
    """Names of the layers that stay float."""
    stem = _stem(prepared) if order.caution else []
    share = (0.0, 0.0, *FLOAT_SHARES)[order.caution]
    worst = order.ranking[: math.ceil(share * len(order.ranking))]
    spared = [*stem, *(name for name in worst if name not in stem)]
    if spared:
        how = f"{len(stem)} first layers" + (f" and {len(worst)} that lose most" if worst else "")
        order.notes.append(f"{how} kept in float")
    return spared


def _learned(prepared: Path, order: Order) -> dict[str, list[dict[str, Any]]]:
    """By tensor the range that training learned for it, as the quantiser takes it.

    Layers are known again by their place and the shape of their weights; where those differ, all
    ranges come from calibration.
    """
    from onnxruntime.quantization import QuantType

    graph = onnx.load(prepared).graph
    shapes = {one.name: sorted(one.dims) for one in graph.initializer}
    layers = [node for node in graph.node if node.op_type in LAYERS and node.input[1] in shapes]
    if not order.ranges:
        return {}
    if [shapes[node.input[1]] for node in layers] != [sorted(r.weights) for r in order.ranges]:
        order.notes.append("the learned ranges do not fit the exported layers: calibrated instead")
        return {}
    stored = QuantType.QUInt8
    return {
        node.input[0]: [
            {"quant_type": stored, "rmin": np.float32(r.low), "rmax": np.float32(r.high)}
        ]
        for node, r in zip(layers, order.ranges, strict=True)
    }


def _around(path: Path) -> list[str]:
    """What goes around the file's graph: it sees raw ranges and is little work."""
    return [node.name for node in onnx.load(path).graph.node if is_folded(node.name)]


def _stem(path: Path) -> list[str]:
    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    if len(names) < STEM_NEEDS_CONVOLUTIONS:
        return []
    return names[: max(STEM_LEAST, len(names) // STEM_SHARE)]
