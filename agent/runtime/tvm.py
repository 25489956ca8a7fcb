"""TVM behind the backend door. Imported library: only inside `load`.

A build is machine code for one architecture, made by our own workers: refuses every other one, and
what is no container of theirs. It takes one row; more are answered row by row.
"""

import platform
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import LoadError
from agent.runtime.backend import Backend, Options
from agent.runtime.packed import Packed, unpack
from agent.runtime.parts import in_parts
from agent.runtime.plain import open_as_backend

KIND = "apache-tvm"


def load(path: str, options: Options) -> Backend:
    """Open a build. LoadError says why not."""
    return open_as_backend(KIND, open_plain, path, options, extra="tvm")


def open_plain(path: str, options: Options) -> "Tvm":
    """Open a build; it takes no options."""
    packed = unpack(path, KIND)
    made_for, here = str(packed.about["arch"]), platform.machine()
    if made_for != here:
        raise LoadError(f"{path} is machine code for {made_for}, this is {here}")
    import tvm
    from tvm import relax

    # The loader takes a file of that name alone; it is gone as soon as it is loaded.
    with tempfile.NamedTemporaryFile(suffix=".so", dir=_folder(options)) as file:
        file.write(packed.payload)
        file.flush()
        module = tvm.runtime.load_module(file.name)
    return Tvm(tvm, relax.VirtualMachine(module, tvm.cpu()), packed)


def _folder(options: Options) -> str | None:
    """The agent's own, where there is one: who can write where this lies decides what runs."""
    folder = str(options.get("cache_dir", ""))
    if folder:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder or None


class Tvm:
    """One loaded program."""

    def __init__(self, library: Any, machine: Any, packed: Packed) -> None:
        self.inputs, self.outputs = packed.inputs, packed.outputs
        self._tvm, self._machine = library, machine
        self._lock = threading.Lock()  # a machine runs one call at a time

    def run(self, arrays: Mapping[str, Any]) -> list[Any]:
        """Infer once, row by row."""
        return in_parts(self.inputs, arrays, 1, self._infer)

    def _infer(self, arrays: Mapping[str, Any]) -> list[Any]:
        given = [self._tvm.runtime.tensor(arrays[name].copy()) for name, _, _ in self.inputs]
        with self._lock:
            found = self._machine["main"](*given)
            several = [found] if hasattr(found, "numpy") else list(found)
            return [one.numpy().copy() for one in several]

    def close(self) -> None:
        """Free it."""
        self._machine = None
