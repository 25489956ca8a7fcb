"""Finds runtimes by entry point. Refuses to guess: a missing runtime is a LoadError with its name.

open_backend(runtime, path, options) -> Backend        # satisfies `slot.OpenBackend`
Keeping(folder, open_backend)                          # the same, for a device with a disk
"""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import cast

from agent.errors import LoadError
from agent.runtime.backend import Backend, Options

GROUP = "lighterman.runtimes"

Load = Callable[[str, Options], Backend]
Open = Callable[[str, str, Options], Backend]
# The accelerated flavours of a library ship the same import under another name.
FLAVOURS = ("", "-gpu", "-openvino")


def open_backend(runtime: str, path: str, options: Options) -> Backend:
    """Load the build at `path`; LoadError when the runtime is missing or refuses the file."""
    return find_load(runtime)(path, options)


class Keeping:
    """`open_backend` with a folder in which runtimes may keep what they compiled here."""

    def __init__(self, folder: Path, inner: Open = open_backend) -> None:
        self._folder, self._inner = str(folder), inner

    def __call__(self, runtime: str, path: str, options: Options) -> Backend:
        """See `open_backend`."""
        return self._inner(runtime, path, {**options, "cache_dir": self._folder})


def find_load(runtime: str) -> Load:
    """The `load` of a registered runtime; imports its file, not yet its library."""
    found = registered()
    if runtime not in found:
        raise LoadError(
            f"runtime {runtime!r} is not known to this agent",
            f"registered: {', '.join(sorted(found)) or 'none'}",
        )
    try:
        return cast("Load", found[runtime].load())
    except (ImportError, AttributeError) as error:
        raise LoadError(f"runtime {runtime!r} is registered but broken: {error}") from error


def registered() -> dict[str, metadata.EntryPoint]:
    """Entry points by the name of their runtime."""
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def is_installed(runtime: str) -> bool:
    """Whether the library of a runtime is there for this Python; it is not imported."""
    for flavour in FLAVOURS:
        try:
            metadata.version(runtime + flavour)
        except metadata.PackageNotFoundError:
            continue
        return True
    return False
