"""Requests as one batch and its answers as theirs again, and how long batches take.

Refuses models whose rows might have to do with each other: the first axis has to be called a batch
in everything that goes in and comes out, and the first batches of real requests have to give what
each of them gives alone (`Proof`). Nothing but zeros is invented for it: whatever a model does with
other numbers, it does to a client's, and is judged by it. Copies inputs once; outputs are views.
numpy is imported at the first call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.domain.batching import NO_BATCHES, SIZES, Curve, cut, pays
from agent.domain.tensor import DType, Signature, Tensor
from agent.errors import InferenceError
from agent.runtime.arrays import numpy_type
from agent.runtime.backend import Backend

Feed = Mapping[str, Tensor]
Infer = Callable[[Feed], Mapping[str, Tensor]]

# What exporters call the first axis.
_AXES = frozenset({"batch", "batch_size", "n", "N"})
_NO_BUFFERS = frozenset({DType.BYTES, DType.BF16})
# Rows may differ by rounding, not by what the others of their batch are; of the largest value.
_ROUNDING = 1e-3
_MOST_INPUT_BYTES = 32 * 1024 * 1024
_LOOK_S = 0.1
_LEAST_RUNS, _MOST_RUNS = 3, 20
# So many batches with different answers have to agree with the single ones, of so many tried.
_PROOFS, _MOST_TRIALS = 3, 12


def is_joinable(signature: Signature) -> bool:
    """Whether everything that goes in and comes out has one batch axis, and in front."""
    specs = (*signature.inputs, *signature.outputs)
    first = {spec.shape[0] if spec.shape else None for spec in specs}
    return (
        len(first) == 1
        and bool(signature.inputs)
        and next(iter(first)) in _AXES
        and not any(spec.dtype in _NO_BUFFERS for spec in specs)
        and all(isinstance(axis, int) for spec in specs for axis in spec.shape[1:])
    )


def join(feeds: Sequence[Feed]) -> dict[str, Tensor]:
    """One feed with the rows of all, in their order."""
    import numpy

    found = {}
    for name, first in feeds[0].items():
        parts = [feed[name] for feed in feeds]
        whole: Any = numpy.empty(sum(part.nbytes for part in parts), numpy.uint8)
        view, at = memoryview(whole), 0
        for part in parts:
            view[at : at + part.nbytes] = memoryview(part.data).cast("B")
            at += part.nbytes
        shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
        found[name] = Tensor(name, first.dtype, shape, view)
    return found


def split(outputs: Mapping[str, Tensor], rows: Sequence[int]) -> list[dict[str, Tensor]]:
    """The outputs of a batch, as many of its rows for each request as it brought."""
    found: list[dict[str, Tensor]] = [{} for _ in rows]
    for name, tensor in outputs.items():
        data, at = memoryview(tensor.data), 0
        row_bytes = tensor.nbytes // sum(rows)
        for one, count in zip(found, rows, strict=True):
            end = at + count * row_bytes
            one[name] = Tensor(name, tensor.dtype, (count, *tensor.shape[1:]), data[at:end])
            at = end
    return found


class Proof:
    """Whether a rung may answer batches, by those that were also answered one by one."""

    __slots__ = ("left", "wanted")

    def __init__(self) -> None:
        self.wanted = _PROOFS
        self.left = _MOST_TRIALS

    @property
    def is_given(self) -> bool:
        """Batches answer from now on."""
        return self.wanted <= 0

    def look(self, parts: Sequence[Feed], alone: Sequence[Sequence[Tensor]]) -> bool:
        """A batch's answers by request and those of each alone; False: it must not be used.

        Answers that are all the same prove nothing; after too many of those it is given up.
        """
        for part, tensors in zip(parts, alone, strict=True):
            if not all(alike(part[tensor.name], tensor) for tensor in tensors):
                return False
        first = alone[0]
        if any(not alike(a, b) for other in alone[1:] for a, b in zip(first, other, strict=True)):
            self.wanted -= 1
        self.left -= 1
        return self.is_given or self.left > 0


@dataclass(slots=True, eq=False)
class Batches:
    """What is known of the batches of one file, for as long as the agent runs."""

    curve: Curve = NO_BATCHES
    proof: Proof = field(default_factory=Proof)


def measure(
    backend: Backend, zeros: Feed, signature: Signature, clock: Callable[[], float], most_s: float
) -> Curve:
    """How long one row and batches take, as far as batches are worth it; `most_s` is for a batch.

    One row of zeros and batches of it take turns, and the quickest run of each counts: what else
    the device does only ever adds. No batches where the runtime fails at them.
    """
    if not is_joinable(signature):
        return NO_BATCHES
    try:
        return _measure(backend.run, zeros, clock, most_s)
    except Exception:  # noqa: BLE001 - whatever a runtime raises: one by one it goes on
        return NO_BATCHES


def _measure(infer: Infer, one: Feed, clock: Callable[[], float], most_s: float) -> Curve:
    began = clock()
    infer(one)
    if clock() - began > most_s:
        return NO_BATCHES
    single_s, in_vain = float("inf"), 0
    measured: list[tuple[int, float]] = []
    row_bytes = sum(tensor.nbytes for tensor in one.values())
    for rows in SIZES:
        if rows * row_bytes > _MOST_INPUT_BYTES:
            break
        alone_s, batch_s = _race(infer, one, join([one] * rows), clock)
        single_s = min(single_s, alone_s)
        before = min((took / size for size, took in measured), default=single_s)
        measured.append((rows, batch_s))
        in_vain = 0 if pays(before, rows, batch_s, most_s) else in_vain + 1
        if in_vain > 1 or batch_s > most_s:
            break
    return cut(single_s, measured, most_s)


def _race(infer: Infer, one: Feed, batch: Feed, clock: Callable[[], float]) -> tuple[float, float]:
    """The quickest of some runs of each, in turn."""
    rows = next(iter(batch.values())).shape[0]
    if any(tensor.shape[:1] != (rows,) for tensor in infer(batch).values()):
        raise InferenceError(f"a batch of {rows} rows does not give as many answers")
    best = [float("inf"), float("inf")]
    ends = clock() + _LOOK_S
    for run in range(_MOST_RUNS):
        for at, feed in enumerate((one, batch)):
            began = clock()
            infer(feed)
            best[at] = min(best[at], clock() - began)
        if run + 1 >= _LEAST_RUNS and clock() >= ends:
            break
    return best[0], best[1]


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two answers differ by rounding at most; those that are no numbers never are alike."""
    import numpy

    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    kind = numpy_type(one.dtype)
    left = numpy.frombuffer(one.data, kind).astype("f8")
    right = numpy.frombuffer(other.data, kind).astype("f8")
    if not (numpy.isfinite(left).all() and numpy.isfinite(right).all()):
        return False
    most = float(numpy.abs(right).max(initial=0.0))
    return bool(numpy.abs(left - right).max(initial=0.0) <= _ROUNDING * most)
