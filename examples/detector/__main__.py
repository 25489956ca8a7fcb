"""`python -m examples.detector --out DIR`: writes the detector, its pages, labels and facts."""

import argparse
import shutil
from pathlib import Path

from examples.detector import DetectorError, generate

CACHE = Path(".cache") / "detector"


def main() -> int:
    """Generate, or copy from the cache."""
    parser = argparse.ArgumentParser(prog="python -m examples.detector", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    try:
        files = generate(CACHE)
    except DetectorError as error:
        raise SystemExit(f"error: {error}") from None
    shutil.copytree(files, options.out, dirs_exist_ok=True)
    print((files / "facts.json").read_text(encoding="utf-8") + f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
