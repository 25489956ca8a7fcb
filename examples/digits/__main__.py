"""`python -m examples.digits --out DIR`: writes the digits models, their dataset and facts."""

import argparse
import shutil
from pathlib import Path

from examples.digits import generate

CACHE = Path(".cache") / "digits"


def main() -> int:
    """Generate, or copy from the cache."""
    parser = argparse.ArgumentParser(prog="python -m examples.digits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    files = generate(CACHE)
    shutil.copytree(files, options.out, dirs_exist_ok=True)
    print((files / "facts.json").read_text(encoding="utf-8") + f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
