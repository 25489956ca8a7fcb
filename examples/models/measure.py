"""The two figures that the versions promise, through ONNX Runtime on the exported file.

Times nothing in this process and judges nothing: `make` compares.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.intake.models import parse_model
from controller.optimize import evaluate_onnxruntime
from controller.optimize.export_onnx import export_onnx
from controller.optimize.import_torch import TorchModel
from examples.models.photos import Crops

MAX_MODEL_BYTES = 512 * 1024**2
BATCH = 8
TIMING_S = 4.0


@dataclass(frozen=True, slots=True)
class _Limits:
    artifact_bytes: int = MAX_MODEL_BYTES


@dataclass(frozen=True, slots=True)
class Scored:
    """How a model does on labelled crops."""

    cross_entropy: float  # nats, mean over the crops
    per_crop: NDArray[np.float64]
    top1_pct: float


def export(model: Path, target: Path) -> None:
    """From `.pt2` to ONNX, as a build does it."""
    # It would name operators of torchvision, which these models do not use.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    signature = parse_model(model, _Limits()).signature
    export_onnx(TorchModel(model, signature), target)


def score(onnx_file: Path, model: Path, crops: Crops) -> Scored:
    """Cross-entropy and top-1 of the exported file; ``model`` is its source."""
    signature = parse_model(model, _Limits()).signature
    session = evaluate_onnxruntime.OnnxSession(onnx_file, signature)
    found = [
        session.run([crops.x[start : start + BATCH].astype(np.float32)])[0]
        for start in range(0, len(crops), BATCH)
    ]
    scores = np.concatenate(found).astype(np.float64)
    return score_logits(scores, crops.y)


def score_logits(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> Scored:
    """The figures of logits ``[rows, classes]``."""
    highest = scores.max(axis=1, keepdims=True)
    log_sum = highest[:, 0] + np.log(np.exp(scores - highest).sum(axis=1))
    losses = log_sum - scores[np.arange(len(labels)), labels]
    right = scores.argmax(axis=1) == labels
    return Scored(float(losses.mean()), losses, 100.0 * float(right.mean()))


def median_ms(onnx_file: Path) -> float:
    """Median of single calls on one thread, in a fresh process, as a build is timed."""
    return evaluate_onnxruntime.measure_speed([onnx_file], TIMING_S)[0].p50_ms
