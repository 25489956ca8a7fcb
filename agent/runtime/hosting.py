"""Where a build is run: in this process, in a child, or in a child under another Python.

Refuses to fall back in silence: a host that is asked for and cannot be had is a LoadError.
"""

from importlib.util import find_spec
from pathlib import Path

from agent.errors import LoadError
from agent.runtime.backend import Backend, Options
from agent.runtime.child import ChildBackend, ChildOrder
from agent.runtime.registry import is_installed, registered
from agent.runtime.slot import OpenBackend

IN_PROCESS, CHILD = "in_process", "child"
# The door of a runtime that can run under another Python; see `runtime.plain`.
_DOOR = "def open_plain("


class Hosting:
    """Satisfies `slot.OpenBackend`. Takes `model_host`, `runtime_python`, `host_memory_bytes`."""

    def __init__(self, inner: OpenBackend, python: str = "") -> None:
        """`inner` opens in this process; `python` is where to look for what this one lacks."""
        self._inner, self._python = inner, python

    def __call__(self, runtime: str, path: str, options: Options) -> Backend:
        """See `registry.open_backend`."""
        kept = dict(options)
        host = str(kept.pop("model_host", IN_PROCESS))
        wanted = str(kept.pop("runtime_python", ""))
        memory = int(kept.pop("host_memory_bytes", 0))
        if host not in (IN_PROCESS, CHILD):
            raise LoadError(f"model_host {host!r} is unknown", f"known: {IN_PROCESS}, {CHILD}")
        if is_installed(runtime):
            if host == IN_PROCESS:
                return self._inner(runtime, path, kept)
            return ChildBackend(ChildOrder(runtime, path, kept, memory_bytes=memory))
        python = self._python or (f"python{wanted}" if wanted else "")
        file = plain_file(runtime)
        if not python or not file:
            return self._inner(runtime, path, kept)  # which says what is missing
        return ChildBackend(ChildOrder(runtime, path, kept, python, file, wanted, memory))


def plain_file(runtime: str) -> str:
    """The file of a registered runtime that another Python can run; empty where it cannot."""
    entry = registered().get(runtime)
    spec = None if entry is None else find_spec(entry.module)
    if spec is None or spec.origin is None:
        return ""
    return spec.origin if _DOOR in Path(spec.origin).read_text(encoding="utf-8") else ""


def plain_runtimes() -> tuple[str, ...]:
    """Registered runtimes that another Python can run."""
    return tuple(name for name in sorted(registered()) if plain_file(name))
