"""Finds runtimes by entry point. Refuses to guess: a missing runtime is a LoadError with its name.

open_backend(runtime, path, options) -> Backend        # satisfies `slot.OpenBackend`
Keeping(folder, open_backend)                          # the same, for a device with a disk
Sharing(inner, engines, ...)                           # compiled by one device for all of its kind
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import cast

from agent.domain.ports import Engines
from agent.errors import LoadError
from agent.runtime.backend import Backend, Options
from agent.runtime.compiled import CompiledCache

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


@dataclass(frozen=True, slots=True)
class Sharing:
    """`inner`, but what others compiled for this very kind of device is not compiled again.

    `engines` are None without a connection: then nothing is waited for. `facts` are those of the
    host; with what the runtime itself names (`shared_key` in its file, where it compiles anything)
    and the build's digest they are the key, and an engine of any other is none for this device.
    `gives`: whether this device is a builder; `background` runs what nobody waits for.
    """

    inner: Open
    engines: Callable[[], Engines | None]
    facts: Callable[[str], Mapping[str, str]]
    accepts: bool
    gives: Callable[[], bool]
    background: Callable[[Callable[[], None]], None]

    def __call__(self, runtime: str, path: str, options: Options) -> Backend:
        """See `open_backend`. The cache of compiled builds is the one of `options`."""
        engines = self.engines()
        own = None if engines is None else _own_key(runtime, path, options)
        if own is None or engines is None:
            return self.inner(runtime, path, options)
        cache = CompiledCache(options)
        had = cache.find(own) is not None
        key = {**own, **self.facts(runtime), "build": str(options.get("digest", ""))}
        if not had and self.accepts:
            found = engines.fetch(key)
            if found is not None:
                cache.keep(own, found)
                had = True
        backend = self.inner(runtime, path, options)
        made = None if had or not self.gives() else cache.find(own)
        if made is not None:
            self.background(partial(engines.offer, key, made))
        return backend


def _own_key(runtime: str, path: str, options: Options) -> Mapping[str, str] | None:
    """None where the runtime compiles nothing that could be kept, or cannot read the build."""
    if not options.get("cache_dir") or not options.get("digest"):
        return None
    of = getattr(sys.modules.get(find_load(runtime).__module__), "shared_key", None)
    try:
        return None if of is None else cast("Mapping[str, str]", of(path, options))
    # Whatever it is (a library of another Python, a damaged file): opening it says why.
    except Exception:  # noqa: BLE001
        return None


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
