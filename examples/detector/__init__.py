"""A real detector, and pages of which it is known where every word is.

`image[batch,3,320,320]` FP32, 0-255, in; a map of how likely each pixel is text out. The weights
are PP-OCRv4's text detector (Apache-2.0) from the wheel `rapidocr-onnxruntime`; the pages are drawn
here. Refuses to hand out a model that does not find the words.
"""

import hashlib
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

PAGES = 440
LEAST_F1 = 0.93
TASK = {"kind": "detection", "post": "db"}
# Pillow's boxes hug the ink; the default widens them to those that people draw around words.
PARAMS = {"unclip": 1.0}
PACKAGE = "rapidocr_onnxruntime"
WEIGHTS = "models/ch_PP-OCRv4_det_infer.onnx"


class DetectorError(Exception):
    """The files cannot be made, or would not be what they promise."""


def generate(cache: Path) -> Path:
    """The folder with text.onnx, pages.npz, labels.txt and facts.json, made once.

    Raises DetectorError without the package, or where the model finds less than it should.
    """
    weights = find_weights()
    target = cache / _key(weights)
    if (target / "facts.json").exists():
        return target
    partial = cache / f"{target.name}.{os.getpid()}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    _write(partial, weights)
    try:
        partial.rename(target)
    except OSError:  # somebody else was faster with the same files
        shutil.rmtree(partial)
    return target


def find_weights() -> Path:
    """The detector's file in the installed wheel; nothing of the package is run."""
    found = find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        file = Path(folder) / WEIGHTS
        if file.exists():
            return file
    raise DetectorError(
        "the example detector needs the package rapidocr-onnxruntime\n"
        "  pip install --no-deps rapidocr-onnxruntime==1.4.4"
    )


def _key(weights: Path) -> str:
    digest = hashlib.sha256(weights.read_bytes())
    for script in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(script.read_bytes())
    return digest.hexdigest()[:16]


def _write(folder: Path, weights: Path) -> None:
    import numpy as np

    from examples.detector.model import found_words, wrap
    from examples.detector.pages import draw_pages

    wrap(weights, folder / "text.onnx")
    pages = draw_pages(PAGES)
    np.savez_compressed(
        folder / "pages.npz",
        x=pages.pictures,
        boxes=pages.boxes,
        box_class=np.zeros(len(pages.boxes), np.int64),
        box_count=pages.counts,
    )
    (folder / "labels.txt").write_text("text\n", encoding="utf-8")
    f1 = found_words(folder / "text.onnx", folder / "pages.npz", TASK, PARAMS)
    facts = {"pages": PAGES, "words": len(pages.boxes), "f1_pct": round(100 * f1, 2)}
    if f1 < LEAST_F1:
        raise DetectorError(f"the detector finds too little: {facts}")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
