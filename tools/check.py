"""Runs every check and prints one line for each. Repairs nothing (`make fix` does).

A check whose tool is missing prints `SKIPPED: package`; with `--strict` that fails too.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("controller", "agent", "proto/lighterman", "migrations", "tests", "examples", "bench")
TYPED = (*(folder for folder in SOURCES if folder != "migrations"), "tools")
# What a failing tool may print, in lines: the rest is seen by running it alone.
SHOWN_LINES = 60


@dataclass(frozen=True, slots=True)
class Check:
    """`run` returns whether all is well and a text; its first line stands beside the name.

    `package` is what it needs to be importable, several by comma.
    """

    name: str
    package: str
    run: Callable[[], tuple[bool, str]]


def _tool(arguments: list[str]) -> tuple[int, str]:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160"}
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    if len(lines) > SHOWN_LINES:
        lines = [*lines[:SHOWN_LINES], f"… {len(lines) - SHOWN_LINES} more lines"]
    return done.returncode, "\n".join(lines)


def _present(folders: tuple[str, ...]) -> list[str]:
    """Those folders that hold a Python file (mypy refuses empty ones)."""
    return [folder for folder in folders if any((ROOT / folder).rglob("*.py"))]


def check_format() -> tuple[bool, str]:
    """Layout, by ruff."""
    code, text = _tool(
        [sys.executable, "-m", "ruff", "format", "--check", "--output-format=concise", "."]
    )
    return code == 0, text


def check_lint() -> tuple[bool, str]:
    """Lint, by ruff."""
    code, text = _tool([sys.executable, "-m", "ruff", "check", "--output-format=concise", "."])
    return code == 0, text


def check_types() -> tuple[bool, str]:
    """Types, by mypy in strict mode."""
    code, text = _tool([sys.executable, "-m", "mypy", "--no-error-summary", *_present(TYPED)])
    return code == 0, text or "strict"


def check_imports() -> tuple[bool, str]:
    """The rules between rooms, by import-linter."""
    script = Path(sys.executable).parent / "lint-imports"
    code, text = _tool([str(script), "--no-logo"])
    if code == 0:
        kept = [line for line in text.splitlines() if line.startswith("Contracts:")]
        return True, kept[-1] if kept else text
    return False, text


def check_stubs() -> tuple[bool, str]:
    """Stubs and golden file against the .proto files."""
    code, text = _tool([sys.executable, "-m", "tools.stubs", "--check"])
    return code == 0, text


def check_migrations() -> tuple[bool, str]:
    """Migrations against the tables."""
    code, text = _tool([sys.executable, "-m", "tools.check_migrations"])
    return code == 0, text


def check_docs() -> tuple[bool, str]:
    """Reference pages and pictures against settings, commands and cores."""
    code, text = _tool([sys.executable, "-m", "tools.check_docs"])
    return code == 0, text


def check_helm() -> tuple[bool, str]:
    """The chart: lint, rendering, schemas of Kubernetes, refusals."""
    code, text = _tool([sys.executable, "-m", "tools.check_helm"])
    return code == 0, text


def check_dashboard() -> tuple[bool, str]:
    """The Grafana dashboard against its description."""
    code, text = _tool([sys.executable, "-m", "tools.dashboard"])
    return code == 0, text


CHECKS = (
    Check("format", "ruff", check_format),
    Check("lint", "ruff", check_lint),
    Check("types", "mypy", check_types),
    Check("imports", "importlinter", check_imports),
    Check("stubs", "grpc_tools", check_stubs),
    Check("migrations", "alembic", check_migrations),
    Check("docs", "click", check_docs),
    Check("dashboard", "grafana_foundation_sdk", check_dashboard),
    Check("helm", "helm_python,kubernetes_validate", check_helm),
)


def main() -> int:
    """Run the checks (or those named); 1 when one failed."""
    parser = argparse.ArgumentParser(prog="tools.check", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(c.name for c in CHECKS)}")
    parser.add_argument("--strict", action="store_true", help="a skipped check fails")
    options = parser.parse_args()
    failed = 0
    for check in CHECKS:
        if options.names and check.name not in options.names:
            continue
        lacking = [p for p in check.package.split(",") if importlib.util.find_spec(p) is None]
        if lacking:
            print(f"{check.name:<11} SKIPPED: {', '.join(lacking)}", flush=True)
            failed += options.strict
            continue
        good, text = check.run()
        first, _, rest = text.partition("\n")
        if good:
            print(f"{check.name:<11} ok  {text.splitlines()[-1] if text else ''}".rstrip())
        else:
            failed += 1
            print(f"{check.name:<11} FAILED  {first}")
            if rest:
                print("  " + rest.replace("\n", "\n  "))
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
