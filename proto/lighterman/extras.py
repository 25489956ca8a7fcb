"""Names the extra that a command misses. Imports only the standard library."""

import importlib.util
import sys


def missing_modules(*modules: str) -> list[str]:
    """Those of the dotted names that are not installed. Imports no module but their parents."""
    absent: list[str] = []
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            absent.append(module)
    return absent


def require_extra(extra: str, *modules: str, command: str | None = None) -> None:
    """End the process with exit code 1 and a line to type when a module of the extra is absent.

    `extra` may name several, joined by commas ("agent,onnxruntime"). `command` is what the user
    typed; without it, the name of the running program.
    """
    absent = missing_modules(*modules)
    if not absent:
        return
    name = command or (sys.argv[0].rsplit("/", 1)[-1] if sys.argv and sys.argv[0] else "lighterman")
    print(f"error: {name} needs the extra [{extra}], which is not installed", file=sys.stderr)
    print(f"  missing    {', '.join(absent)}", file=sys.stderr)
    print(f"  install    pip install 'lighterman[{extra}]'", file=sys.stderr)
    raise SystemExit(1)
