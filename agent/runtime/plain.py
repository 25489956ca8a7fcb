"""Builds that speak arrays of numpy and nothing else, behind the backend door.

A runtime's file that has `open_plain(path, options) -> Plain`, imports of the agent only inside
`load` and keeps to the standard library, numpy and the syntax of Python 3.8, can also be run by a
child under another Python, where its library is bound to the system's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from agent.domain.tensor import Axis, DType, Signature, Tensor, TensorSpec
from agent.errors import LoadError
from agent.runtime.arrays import arrays_of, tensor_of
from agent.runtime.backend import Options

Spec = tuple[str, str, tuple[Axis, ...]]  # name, datatype of the protocol, axes
_SAID = 300  # characters of a library's own words


class Plain(Protocol):
    """A loaded build. What is not here is optional, each as its namesake in `backend`:
    `rest()`, `call_off(thread)`, `spent_s(thread)`, `remarks()`.
    """

    @property
    def inputs(self) -> Sequence[Spec]:
        """As the file names them."""
        ...

    @property
    def outputs(self) -> Sequence[Spec]:
        """As the file names them."""
        ...

    def run(self, arrays: Mapping[str, Any]) -> Sequence[Any]:
        """Arrays by name in, arrays in the order of `outputs` out; bfloat16 as its bits (u2)."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


OpenPlain = Callable[[str, Options], Plain]


def open_as_backend(
    runtime: str, open_plain: OpenPlain, path: str, options: Options, extra: str = ""
) -> "PlainBackend":
    """Open a build behind the backend door; LoadError in one line of the library's own words."""
    try:
        plain = open_plain(path, options)
    except ImportError as error:
        hint = f"pip install 'lighterman[{extra or runtime}]'"
        raise LoadError(f"runtime {runtime!r} is not installed ({error})", hint) from error
    except LoadError:
        raise
    # Libraries' exceptions have no common base below Exception.
    except Exception as error:
        words = " ".join(str(error).split())[:_SAID] or type(error).__name__
        raise LoadError(f"{runtime} cannot load {path}: {words}") from error
    return PlainBackend(plain, path)


class PlainBackend:
    """Satisfies `backend.Backend`, `Rests`, `Elsewhere` and `Remarks`."""

    def __init__(self, plain: Plain, path: str) -> None:
        self._plain = plain
        self._signature = Signature(_specs(plain.inputs, path), _specs(plain.outputs, path))
        self._call_off = getattr(plain, "call_off", _nothing)
        self._rest = getattr(plain, "rest", _nothing)
        self._spent = getattr(plain, "spent_s", _nothing)
        self._remarks = getattr(plain, "remarks", _nothing)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once."""
        found = self._plain.run(arrays_of(inputs))
        specs = zip(self._signature.outputs, found, strict=True)
        return {spec.name: tensor_of(spec.name, spec.dtype, array) for spec, array in specs}

    def signature(self) -> Signature:
        """Inputs and outputs as the file names them."""
        return self._signature

    def call_off(self, thread: int) -> None:
        """Where the runtime can."""
        self._call_off(thread)

    def rest(self) -> None:
        """Where the runtime has anything to give back."""
        self._rest()

    def spent_s(self, thread: int) -> float:
        """0 where this thread did the work itself."""
        return self._spent(thread) or 0.0

    def remarks(self) -> tuple[str, ...]:
        """What is otherwise than it was asked for."""
        return tuple(self._remarks() or ())

    def close(self) -> None:
        """Free it."""
        self._plain.close()


def _nothing(*_: object) -> Any:
    """What is not offered."""
    return None


def _specs(plain: Sequence[Spec], path: str) -> tuple[TensorSpec, ...]:
    def one(spec: Spec) -> TensorSpec:
        name, dtype, axes = spec
        if dtype not in set(DType):
            raise LoadError(f"{path}: {name} is {dtype}, which has no buffer form here")
        return TensorSpec(name, DType(dtype), tuple(axes))

    return tuple(one(spec) for spec in plain)
