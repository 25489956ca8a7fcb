"""The project's own source files, parsed, for tests about the sources. Follows no import."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PRODUCT = ("controller", "agent", "proto/lighterman")
STANDARD_LIBRARY = frozenset(sys.stdlib_module_names)


def is_generated(path: Path) -> bool:
    """Whether a generator wrote the file, so that no rule of ours applies to it."""
    return "_pb2" in path.name


@functools.cache
def python_files(*folders: str) -> tuple[Path, ...]:
    """Our Python files under the folders, relative to the root, without the generated ones."""
    found: list[Path] = []
    for folder in folders:
        found += [
            path.relative_to(ROOT)
            for path in sorted((ROOT / folder).rglob("*.py"))
            if not is_generated(path)
        ]
    return tuple(found)


@functools.cache
def tree(path: Path) -> ast.Module:
    """The parsed file; `path` is relative to the root."""
    return ast.parse((ROOT / path).read_text(), filename=str(path))


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that the file imports, at any depth of it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def tracked_files() -> list[Path]:
    """What git tracks, or every file outside .venv and caches where this is no checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return [Path(name) for name in listed.stdout.split("\0") if name]
    return [
        path.relative_to(ROOT)
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
