"""`python -m examples.send`: sends rows of an .npz to a device and counts the answers.

Speaks the Open Inference Protocol v2 over gRPC; every Triton or KServe client could do the same.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from examples.fleet.camera import Answer, Camera, Picture
from examples.fleet.clock import monotonic, wait_until

TYPES = {"FP32": "float32", "UINT8": "uint8", "INT64": "int64"}
SAY_EVERY_S = 2.0


def pictures(file: Path, name: str, datatype: str, rows: int) -> list[Picture]:
    """The first rows of ``x``, each as a request of batch 1."""
    with np.load(file, allow_pickle=False) as data:
        images = data["x"][:rows].astype(TYPES[datatype])
    return [Picture(name, datatype, (1, *row.shape), row.tobytes()) for row in images]


def line(answers: list[Answer]) -> str:
    """Who answered, how often, how fast."""
    by = Counter(f"{a.version} {a.rung}" if a.ok else f"failed: {a.error}" for a in answers)
    told = "  ".join(f"{who}: {count}" for who, count in sorted(by.items()))
    slowest = max((a.took_s for a in answers), default=0.0)
    return f"{told or 'the model is not ready yet'}   slowest {slowest * 1000:.0f} ms"


def main() -> int:
    """Send for a while; exit code 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m examples.send", description=__doc__)
    parser.add_argument("--endpoint", default="127.0.0.1:8001", help="the agent's inference port")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--input", default="image", help="name of the model's input")
    parser.add_argument("--datatype", choices=sorted(TYPES), default="FP32")
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    rows = pictures(options.data, options.input, options.datatype, 200)
    camera = Camera(options.endpoint, options.model, rows, options.rate).start()
    end = monotonic() + options.seconds
    try:
        while monotonic() < end:
            since = monotonic()
            wait_until(lambda: monotonic() >= min(end, since + SAY_EVERY_S), 60, "the next line")  # noqa: B023
            print(line(camera.answers(since)), flush=True)
    except KeyboardInterrupt:
        pass
    camera.stop()
    failed = [answer for answer in camera.answers() if not answer.ok]
    print(f"{len(camera.answers())} sent, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
