"""Static INT8 of an OpenVINO model by NNCF. Imported in the job process only: it is slow to load.

Evaluates nothing. Refuses flavours that it was not asked to offer.
"""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from controller.domain.model import Signature
from controller.errors import InvalidError
from controller.optimize.builder import LackingError, Order, is_installed
from controller.optimize.openvino_ir import import_openvino
from controller.optimize.prepare_onnx import is_folded
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array, Rows

DEFAULT_CALIBRATION_ROWS = 100
PRESETS = ("performance", "mixed")
# Depthwise convolutions have one channel a weight and give INT8 nothing to gain. Measured on
# EfficientNet-Lite0, 220 crops that calibrated nothing, 60 that did: as float they bring agreement
# from 89.5 to 98.6 %, and a call takes 4.5 ms of CPU time instead of 5.0 (6.8 all in float). More
# calibration, other presets, other ranges and bias corrections moved it by 2 points at most. On
# MobileNetV2 INT8 of all is twice as quick. So it is tried first where rows can tell what it loses.
KEPT_FLOAT = ("GroupConvolution",)
_KEYS = frozenset({"kind", "by", "preset", "calibration_rows", "fallback_steps"})


def quantize_nncf(model: Any, signature: Signature, order: Order) -> Any:
    """The INT8 model.

    Raises InvalidError for a flavour that is not offered, and when nothing can be quantised.
    """
    preset, count = _flavour(order)
    if not is_installed("nncf"):
        raise LackingError(
            f"recipe {order.recipe.name} needs nncf, which this worker has not",
            "pip install 'lighterman[optimize-openvino]' there, then build again",
        )
    rows, name = order.rows(), signature.inputs[0].name
    kept = list(KEPT_FLOAT) if order.caution else []
    if any(op.get_type_name() in kept for op in model.get_ops()):
        order.notes.append("depthwise convolutions kept in float")
    import_openvino()  # before NNCF, which would load what reports its use
    try:
        import nncf

        nncf.set_log_level(logging.ERROR)
        made = nncf.quantize(
            model,
            nncf.Dataset(_Feeds(name, rows, count, order)),
            preset=nncf.QuantizationPreset(preset),
            subset_size=count,
            ignored_scope=nncf.IgnoredScope(names=_around(model), types=kept, validate=False),
        )
    except Exception as error:
        keep_raw(error)
        raise InvalidError(
            f"the model cannot be quantised to int8{first_words(str(error))}"
        ) from error
    if not any(op.get_type_name() == "FakeQuantize" for op in made.get_ops()):
        raise InvalidError("nothing in the model can be quantised to int8")
    return made


def _around(model: Any) -> list[str]:
    """What goes around the file's graph: it sees raw ranges and is little work."""
    names = [str(op.get_friendly_name()) for op in model.get_ops()]
    return [name for name in names if is_folded(name)]


class _Feeds:
    """Calibration rows one by one, so that memory stays low; the quantiser reads them repeatedly.

    How many there was time for on the first reading holds for the later ones.
    """

    def __init__(self, name: str, rows: Rows, count: int, order: Order) -> None:
        self._name, self._rows = name, rows
        self._count, self._go_on = count, order.go_on

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for done, (batch, _) in enumerate(itertools.islice(self._rows.batches(1), self._count)):
            if not self._go_on(done):
                self._count = done
                return
            yield {self._name: np.ascontiguousarray(batch)}
        self._go_on = lambda _: True


def _flavour(order: Order) -> tuple[str, int]:
    asked = order.recipe.quantization
    unknown = sorted(set(asked) - _KEYS)
    if unknown:
        raise InvalidError(
            f"quantization.{unknown[0]} is unknown to NNCF's recipes",
            f"known are {', '.join(sorted(_KEYS))}",
        )
    if asked.get("by", "nncf") != "nncf":
        raise InvalidError(
            f"quantization.by is {asked['by']!r}", "offered are 'nncf' and 'onnxruntime'"
        )
    if asked.get("kind", "static") != "static":
        raise InvalidError(f"quantization.kind is {asked['kind']!r}", "offered is 'static'")
    preset, wanted = asked.get("preset", "mixed"), asked.get("calibration_rows", 0)
    if preset not in PRESETS:
        raise InvalidError(f"quantization.preset is {preset!r}", f"offered: {', '.join(PRESETS)}")
    count = wanted if isinstance(wanted, int) and wanted > 0 else DEFAULT_CALIBRATION_ROWS
    return str(preset), count
