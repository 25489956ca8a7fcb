"""A backend in a process of its own: what crashes, hangs or eats memory there ends there.

Inputs go into shared memory and are read in place; answers are copied out of it. One inference at a
time. A child that died is started again by itself, later each time; until it is back, inferences
fail at once, and whoever else can answers them. Refuses to believe the child: what it says is held
against what it may say, and it never has a descriptor that the agent maps.
"""

import os
import select
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from agent.clock import SystemClock
from agent.domain.ports import Clock
from agent.domain.tensor import Axis, DType, Signature, Tensor, TensorSpec
from agent.errors import InferenceError, LoadError
from agent.runtime.backend import Options
from agent.runtime.child_main import aligned, read_frame, write_frame
from agent.runtime.child_start import LEAVE_S, STARTING, GoneError, Started, write_memory

# Compiling a model on a small board takes minutes; this is for one that never comes back.
START_S = 1800.0
# Before the second, third … start in a row; a child that lived longer than the last counts as new.
BACKOFF_S = (0.0, 1.0, 5.0, 20.0, 60.0)
MAX_ANSWER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ChildOrder:
    """What to run: `python` is the interpreter, `file` a runtime's own file for another Python."""

    runtime: str
    path: str
    options: Options
    python: str = sys.executable
    file: str = ""
    wanted: str = ""  # the version of that Python, as "3.10"; empty: any
    memory_bytes: int = 0  # beyond which its allocations fail; 0: no limit


class ChildBackend:
    """Satisfies `backend.Backend` and `Rests`."""

    def __init__(self, order: ChildOrder, clock: Clock | None = None) -> None:
        """Start and load. LoadError says why not."""
        self._order, self._clock = order, clock or SystemClock()
        self._lock = threading.Lock()  # one inference at a time
        self._closed = threading.Event()
        self._spent: dict[int, float] = {}
        self._inside: int | None = None
        self._failed = 0
        self._why = ""
        self._process: _Process | None = _Process(order)
        self._began_s = self._clock.monotonic()
        self._signature = self._process.signature
        self._remarks = self._process.remarks

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; InferenceError when the child fails, dies or is not there."""
        thread = threading.get_ident()
        with self._lock:
            process = self._process
            if process is None:
                raise InferenceError(f"its process {self._why or 'has ended'}")
            self._inside = thread
            try:
                found, self._spent[thread] = process.run(inputs)
            except GoneError as error:
                self._bury(process, str(error))
                raise InferenceError(f"its process {error}") from error
            finally:
                self._inside = None
        return found

    def signature(self) -> Signature | None:
        """What the file says, by the child's word; None where its runtime cannot tell."""
        return self._signature

    def remarks(self) -> tuple[str, ...]:
        """See `backend.Remarks`."""
        return self._remarks

    def spent_s(self, thread: int) -> float:
        """See `backend.Elsewhere`."""
        return self._spent.pop(thread, 0.0)

    def call_off(self, thread: int) -> None:
        """End the child that does not answer this thread; it is started again."""
        process = self._process
        if self._inside == thread and process is not None:
            process.kill()

    def rest(self) -> None:
        """Pass it on; a busy child has no rest."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._process is not None:
                self._process.rest()
        except GoneError as error:
            if self._process is not None:
                self._bury(self._process, str(error))
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the child."""
        self._closed.set()
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    # -- after a death -----------------------------------------------------------------------------

    def _bury(self, process: "_Process", why: str) -> None:
        """With the lock held."""
        process.end()
        self._process, self._why = None, why
        lived_s = self._clock.monotonic() - self._began_s
        self._failed = 1 if lived_s > BACKOFF_S[-1] else self._failed + 1
        self._revive_soon()

    def _revive_soon(self) -> None:
        if not self._closed.is_set():
            threading.Thread(target=self._revive, name="child", daemon=True).start()

    def _revive(self) -> None:
        wait_s = BACKOFF_S[min(self._failed, len(BACKOFF_S)) - 1]
        if self._closed.wait(wait_s):
            return
        try:
            process = _Process(self._order)
            if process.signature != self._signature:
                process.end()
                raise LoadError("it says another signature than before")
        except LoadError as error:
            self._failed += 1
            self._why = f"cannot be started again: {error.message}"
            self._revive_soon()
            return
        with self._lock:
            self._began_s = self._clock.monotonic()
            if not self._closed.is_set():
                self._process = process
                return
        process.end()


class _Process:
    """One life of a child."""

    def __init__(self, order: ChildOrder) -> None:
        self._room = 0
        try:
            self._one = Started(order.python, by_path=bool(order.file))
        except OSError as error:
            raise LoadError(f"{order.python} cannot be started: {error.strerror}") from error
        self.remarks: tuple[str, ...] = ()
        STARTING.add(self._one)
        try:
            self.signature = self._load(order)
        finally:
            STARTING.done(self._one)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._one.process.pid

    def _load(self, order: ChildOrder) -> Signature | None:
        told: dict[str, Any] = {"do": "serve", "runtime": order.runtime, "file": order.file,
            "path": order.path, "options": dict(order.options),
            "memory_bytes": order.memory_bytes}  # fmt: skip
        try:
            found = self._ask(told, START_S)
            if "error" in found:
                raise LoadError(str(found["error"]))
            python = str(found["python"])
            if order.wanted and python.split(".")[:2] != order.wanted.split(".")[:2]:
                raise LoadError(
                    f"{order.python} is Python {python}, the profile wants {order.wanted}",
                    "set runtime_python to the interpreter that has the library",
                )
            self.remarks = tuple(str(one) for one in found["remarks"])
            return _signature(found) if found["known"] else None
        except (GoneError, KeyError, TypeError) as error:
            self._one.end()
            raise LoadError(f"the process of runtime {order.runtime!r} {error}") from error
        except LoadError:
            self._one.end()
            raise

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """The outputs, and the CPU seconds they took. InferenceError where the runtime fails."""
        placed: list[list[Any]] = []
        at = 0
        for tensor in inputs.values():
            placed.append([tensor.name, tensor.dtype, list(tensor.shape), at, tensor.nbytes])
            at = aligned(at + tensor.nbytes)
        if at > self._room:
            os.ftruncate(self._one.taken, at)
            self._room = at
        for tensor, (*_, begin, size) in zip(inputs.values(), placed, strict=True):
            write_memory(self._one.taken, memoryview(tensor.data).cast("B") if size else b"", begin)
        found = self._ask({"do": "run", "tensors": placed}, None)
        if "error" in found:
            raise InferenceError(str(found["error"])[:2000])
        try:
            answers = [self._tensor(item) for item in found["tensors"]]
            spent_s = float(found["cpu_s"])
        except (LookupError, TypeError, ValueError, OverflowError, OSError) as error:
            self._one.kill()
            raise GoneError(f"gave no answer: {error}") from error
        return {tensor.name: tensor for tensor in answers}, max(0.0, spent_s)

    def _tensor(self, item: Sequence[Any]) -> Tensor:
        name, dtype, axes, at, size = str(item[0]), DType(item[1]), *item[2:]
        shape = tuple(int(axis) for axis in axes)
        fixed = dtype is not DType.BYTES
        if min((*shape, at, size)) < 0 or size > MAX_ANSWER_BYTES:
            raise ValueError(f"output {name!r} has {size} bytes")
        if fixed and size != prod(shape) * dtype.item_bytes:
            raise ValueError(f"output {name!r} has {size} bytes for {list(shape)}")
        data = bytearray(size)
        if os.preadv(self._one.given, [data], at) != size:
            raise ValueError(f"output {name!r} is cut off")
        return Tensor(name, dtype, shape, data)

    def rest(self) -> None:
        """Let the runtime give memory back."""
        self._ask({"do": "rest"}, LEAVE_S)

    def _ask(self, body: dict[str, Any], timeout_s: float | None) -> dict[str, Any]:
        try:
            write_frame(self._one.asks, body)
            if timeout_s is not None:
                poll = select.poll()
                poll.register(self._one.answers, select.POLLIN)
                if not poll.poll(timeout_s * 1000):
                    self._one.kill()
                    raise GoneError(f"did not answer within {timeout_s:g} s")
            found = read_frame(self._one.answers)
        except (OSError, ValueError) as error:
            self._one.kill()
            raise GoneError(self._one.ending()) from error
        if found is None:
            raise GoneError(self._one.ending())
        return found

    def kill(self) -> None:
        """Now, whatever it does."""
        self._one.kill()

    def end(self) -> None:
        """Let it go, and see it gone."""
        self._one.end()


def _signature(found: Mapping[str, Any]) -> Signature:
    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(str(name), DType(dtype), tuple(_axis(axis) for axis in axes))
            for name, dtype, axes in found[key]
        )

    try:
        return Signature(specs("inputs"), specs("outputs"))
    except (TypeError, ValueError) as error:
        raise LoadError(f"its process says no signature: {error}") from error


def _axis(axis: object) -> Axis:
    if axis is None or (isinstance(axis, int | str) and not isinstance(axis, bool)):
        return axis
    raise ValueError(f"{axis!r} is no axis")
