"""`python -m examples.models`: writes the files, says where. 1: they are not what they promise."""

import argparse
import shutil
import sys
from pathlib import Path

from examples.models.make import ExampleModelsError, generate

DEFAULT_CACHE = Path(".cache") / "models"


def main() -> int:
    """Exit code 0 where all files are there."""
    parser = argparse.ArgumentParser(prog="python -m examples.models")
    parser.add_argument("--out", type=Path, help="copy the files here as well")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: .cache/models")
    options = parser.parse_args()
    try:
        folder = generate(options.cache)
    except ExampleModelsError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if options.out:
        shutil.copytree(folder, options.out, dirs_exist_ok=True)
        folder = options.out
    sys.stdout.write(f"{folder}\n{(folder / 'facts.json').read_text(encoding='utf-8')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
