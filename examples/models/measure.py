"""The two figures that the versions promise, through ONNX Runtime on the exported file.

Judges nothing: `make` compares.
"""

import logging
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.intake.models import parse_model
from controller.optimize.build_onnxruntime import OnnxSession
from controller.optimize.export_onnx import export_onnx
from controller.optimize.import_torch import TorchModel
from controller.optimize.stopwatch import Stopwatch
from examples.models.photos import SIDE, Crops

MAX_MODEL_BYTES = 512 * 1024**2
BATCH = 8
TIMING_S, MIN_CALLS = 3.0, 9


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
    session = OnnxSession(onnx_file, signature)
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


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians of single calls on one thread, batch 1."""

    median_ms: float
    cpu_median_ms: float  # what the call computed; other programs do not make it longer


def time_calls(onnx_file: Path, model: Path) -> Speed:
    """Time the exported file through ONNX Runtime; ``model`` is its source."""
    session = OnnxSession(onnx_file, parse_model(model, _Limits()).signature)
    picture = np.random.default_rng(0).uniform(0, 255, (1, 3, SIDE, SIDE)).astype(np.float32)
    session.run([picture])
    times: list[tuple[float, float]] = []
    whole = Stopwatch()
    while len(times) < MIN_CALLS or whole.elapsed_s() < TIMING_S:
        one, cpu_before = Stopwatch(), _cpu_s()
        session.run([picture])
        times.append((one.elapsed_s(), _cpu_s() - cpu_before))
    wall, cpu = np.median(np.array(times) * 1000.0, axis=0)
    return Speed(float(wall), float(cpu))


def _cpu_s() -> float:
    """CPU seconds of this thread; a session with one thread computes in the caller's."""
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_utime + usage.ru_stime
