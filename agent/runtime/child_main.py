"""A process that holds one loaded build: frames on two pipes, tensors in shared memory.

Standard library and numpy, in the syntax of Python 3.8: it runs under the agent's own Python with
any registered runtime, and by its path under another one, with a runtime's file that has
`open_plain`. Refuses to live on without the agent: the kernel ends it when the agent's end of a
pipe is closed, also in the midst of a call that never returns.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import select
import signal
import struct
import sys
import threading
import time
from typing import Any, Tuple

MAX_FRAME_BYTES = 1 << 20
# Every tensor begins where vector instructions and accelerators like it.
ALIGN = 64
_LENGTH = struct.Struct("<I")
_PR_SET_NAME = 15
NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
}  # fmt: skip

Spec = Tuple[str, str, Tuple[Any, ...]]  # name, datatype, axes: a size, a name or None
Given = Tuple[str, str, Tuple[int, ...], Any]  # name, datatype, shape, buffer


def write_frame(fd: int, body: dict[str, Any]) -> None:
    """Send one object. ValueError where it is too long, OSError where nobody reads."""
    data = json.dumps(body, separators=(",", ":")).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(data)} bytes is too long")
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def read_frame(fd: int) -> dict[str, Any] | None:
    """Receive one object; None at the end. ValueError for what is no frame."""
    head = _read(fd, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes is too long")
    data = _read(fd, length)
    if data is None:
        return None
    body = json.loads(data.decode())
    if not isinstance(body, dict):
        raise ValueError("a frame is no object")
    return body


def _read(fd: int, count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(fd, count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def aligned(at: int) -> int:
    """The next place where a tensor may begin."""
    return -(-at // ALIGN) * ALIGN


def _module(file: str) -> Any:
    """A runtime's own file. Of the agent it sees the files beside this one, and not what else is
    installed for the agent's Python.
    """
    import importlib.util
    import types

    here = os.path.dirname(os.path.abspath(__file__))
    for name, folder in (("agent", os.path.dirname(here)), ("agent.runtime", here)):
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [folder]
    spec = importlib.util.spec_from_file_location("runtime", file)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- what is called --------------------------------------------------------------------------------


class _Plain:
    """A runtime's own file under another Python."""

    def __init__(self, file: str, path: str, options: dict[str, Any]) -> None:
        module = _module(file)
        self._plain = module.open_plain(path, options)
        self.inputs: list[Spec] = list(self._plain.inputs)
        self.outputs: list[Spec] = list(self._plain.outputs)

    def run(self, given: list[Given]) -> list[Given]:
        import numpy

        arrays = {}
        for name, dtype, shape, data in given:
            if dtype == "BYTES":
                raise RuntimeError("texts are not taken under another Python")
            arrays[name] = numpy.frombuffer(data, dtype=NUMPY[dtype]).reshape(shape)
        found = self._plain.run(arrays)
        answers = []
        for (name, dtype, _), array in zip(self.outputs, found):
            array = numpy.ascontiguousarray(array)
            data = memoryview(array).cast("B") if array.size else b""  # type: ignore[arg-type]
            answers.append((name, dtype, tuple(array.shape), data))
        return answers

    def spent_s(self) -> float | None:
        return getattr(self._plain, "spent_s", lambda _: None)(threading.get_ident())

    def rest(self) -> None:
        getattr(self._plain, "rest", lambda: None)()

    def remarks(self) -> list[str]:
        return list(getattr(self._plain, "remarks", lambda: ())())


class _Registered:
    """Any runtime of the agent's, under the same Python."""

    def __init__(self, runtime: str, path: str, options: dict[str, Any]) -> None:
        from agent.runtime.registry import open_backend

        self._backend = open_backend(runtime, path, options)
        found = self._backend.signature()
        self.known = found is not None
        self.inputs: list[Spec] = _told(found.inputs) if found is not None else []
        self.outputs: list[Spec] = _told(found.outputs) if found is not None else []

    def run(self, given: list[Given]) -> list[Given]:
        from agent.domain.tensor import DType, Tensor

        inputs = {name: Tensor(name, DType(d), shape, data) for name, d, shape, data in given}
        found = self._backend.run(inputs)
        return [(t.name, t.dtype.value, t.shape, t.data) for t in found.values()]

    def spent_s(self) -> float | None:
        asked = getattr(self._backend, "spent_s", None)
        return None if asked is None else asked(threading.get_ident())

    def rest(self) -> None:
        getattr(self._backend, "rest", lambda: None)()

    def remarks(self) -> list[str]:
        return list(getattr(self._backend, "remarks", lambda: ())())


def _told(specs: Any) -> list[Spec]:
    return [(spec.name, spec.dtype.value, spec.shape) for spec in specs]


# -- serving ---------------------------------------------------------------------------------------


class _Server:
    """Answers frames until the agent closes its end."""

    def __init__(self, asks: int, answers: int, taken: int, given: int) -> None:
        self._asks, self._answers = asks, answers
        self._taken, self._given = taken, given
        self._inputs: mmap.mmap | None = None
        self._room = os.fstat(given).st_size
        self._held: Any = None

    def serve(self) -> None:
        order = read_frame(self._asks)
        if order is None:
            return
        limit_memory(int(order.get("memory_bytes", 0)))
        if order["do"] == "compile":
            self._compile(order)
            return
        try:
            self._held = _open(order)
        except BaseException as error:  # noqa: BLE001 - the agent says it
            write_frame(self._answers, {"error": _words(error)})
            return
        about = {"inputs": self._held.inputs, "outputs": self._held.outputs}
        about["remarks"] = self._held.remarks()
        about["known"] = getattr(self._held, "known", True)
        write_frame(self._answers, dict(about, python=platform.python_version()))
        while True:
            asked = read_frame(self._asks)
            if asked is None:
                return
            write_frame(self._answers, self._answer(asked))

    def _compile(self, order: dict[str, Any]) -> None:
        """For this device, by a runtime's own file; what comes of it goes into the memory given."""
        os.nice(10)
        lock = threading.Lock()  # libraries tell from any of their threads

        def tell(phase: str, share: float) -> None:
            with lock:
                write_frame(self._answers, {"phase": phase, "share": share})

        try:
            made = _module(order["file"]).compile_here(order["path"], order["options"], tell)
            (_, _, _, _, size) = self._put([("made", "UINT8", (len(made),), made)])[0]
            write_frame(self._answers, {"size": size})
        except BaseException as error:  # noqa: BLE001 - the agent says it
            write_frame(self._answers, {"error": _words(error)})

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if asked["do"] == "rest":
                self._held.rest()
                return {}
            return self._run(asked["tensors"])
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything
            return {"error": _words(error)}

    def _run(self, tensors: list[list[Any]]) -> dict[str, Any]:
        given = [(n, d, tuple(s), self._view(at, size)) for n, d, s, at, size in tensors]
        began, whole = time.thread_time(), time.monotonic()  # noqa: TID251 - no clock in here
        found = self._held.run(given)
        spent = self._held.spent_s()
        if not spent:
            spent = time.thread_time() - began
        # What computes on an accelerator cannot work longer than it took.
        spent = min(spent, time.monotonic() - whole)  # noqa: TID251
        return {"tensors": self._put(found), "cpu_s": spent}

    def _view(self, at: int, size: int) -> memoryview:
        if not size:
            return memoryview(b"")
        if self._inputs is None or at + size > len(self._inputs):
            self._inputs = mmap.mmap(self._taken, os.fstat(self._taken).st_size)
        return memoryview(self._inputs)[at : at + size]

    def _put(self, found: list[Given]) -> list[list[Any]]:
        told, at = [], 0
        for name, dtype, shape, data in found:
            size = memoryview(data).nbytes
            if at + size > self._room:
                self._room = at + size
                os.ftruncate(self._given, self._room)
            written = 0
            while written < size:
                view = memoryview(data).cast("B")[written:]
                written += os.pwrite(self._given, view, at + written)
            told.append([name, dtype, list(shape), at, size])
            at = aligned(at + size)
        return told


def _open(order: dict[str, Any]) -> Any:
    if order["file"]:
        return _Plain(order["file"], order["path"], order["options"])
    return _Registered(order["runtime"], order["path"], order["options"])


def _words(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return " ".join(str(error).split())[:2000] or type(error).__name__


def limit_memory(most_bytes: int) -> None:
    """What wants more data than this fails in here; 0: no limit."""
    if most_bytes:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def end_with(life: int) -> None:
    """Let the kernel end this process as soon as the other end of a pipe is closed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(life, fcntl.F_GETFL)
    fcntl.fcntl(life, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(life, select.POLLIN)
    if poll.poll(0):  # it was closed before
        os._exit(0)


def give_way() -> None:
    """If memory runs out, this process goes before the one that serves."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"lighterman-run", 0, 0, 0)


def main(arguments: list[str]) -> int:
    """`LIFE ASKS ANSWERS TAKEN GIVEN`: descriptors that the agent left open."""
    life, asks, answers, taken, given = (int(text) for text in arguments)
    end_with(life)
    give_way()
    # Libraries print; that belongs to the log.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _Server(asks, answers, taken, given).serve()
    except (OSError, ValueError):
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Libraries of accelerators hang in their own ends: nothing is left to tidy up here.
    os._exit(code)
