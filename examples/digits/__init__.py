"""Small models of handwritten digits, trained here in seconds: heavy and light, one signature.

`image[batch,1,8,8]` FP32, 0–16, as scikit-learn has them. The dataset is the 500 digits that no
training saw; each is its own source. Refuses to hand out models that learned nothing.
"""

import hashlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path

HELD_OUT = 500
LEAST_ACCURACY = 0.95


def generate(cache: Path) -> Path:
    """The folder with heavy.pt2, light.pt2, digits.npz, labels.txt and facts.json, made once.

    Raises RuntimeError when a model learned less than it should.
    """
    target = cache / _key()
    if (target / "facts.json").exists():
        return target
    partial = cache / f"{target.name}.{os.getpid()}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    _write(partial)
    try:
        partial.rename(target)
    except OSError:  # somebody else was faster with the same files
        shutil.rmtree(partial)
    return target


def _key() -> str:
    digest = hashlib.sha256(metadata.version("torch").encode())
    for script in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(script.read_bytes())
    return digest.hexdigest()[:16]


def _write(folder: Path) -> None:
    import numpy as np

    from examples.digits.data import load
    from examples.digits.networks import heavy, light, save
    from examples.digits.training import accuracy, train

    data = load(HELD_OUT)
    facts = {}
    for name, network, epochs in (("heavy", heavy(), 8), ("light", light(), 24)):
        train(network, data.train_x, data.train_y, epochs)
        facts[name] = {
            "accuracy": round(accuracy(network, data.test_x, data.test_y), 4),
            "n": HELD_OUT,
            "parameters": sum(weight.numel() for weight in network.parameters()),
        }
        if facts[name]["accuracy"] < LEAST_ACCURACY:
            raise RuntimeError(f"{name} learned too little: {facts[name]}")
        save(network, folder / f"{name}.pt2")
    np.savez(folder / "digits.npz", x=data.test_x, y=data.test_y, source=np.arange(HELD_OUT))
    (folder / "labels.txt").write_text("".join(f"{n}\n" for n in range(10)), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
