"""One release in memory: its rungs, loaded as far as memory allows, and the counters of its trial.

Refuses to decide and to lock: `host` holds the lock of the model around every change here.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.domain import probation
from agent.domain.desired import DesiredModel, RungKind, RungSpec, Target
from agent.domain.histogram import Histogram
from agent.domain.ladder import position_of
from agent.domain.ports import RemoteModel
from agent.domain.probation import LadderPosition, RowState, Trial
from agent.domain.tensor import Signature, Tensor, is_whole, show_shape
from agent.errors import InferenceError, LoadError, UnavailableError
from agent.runtime.backend import Backend, Options
from agent.runtime.joining import Batches

OpenBackend = Callable[[str, str, Options], Backend]
OpenRemote = Callable[[RemoteModel, float, Signature], Backend]
MemoryAvailable = Callable[[], int | None]

# Kept free when a rung is loaded: the outputs, the wire and the rest of the device.
_RESERVE_BYTES = 64 * 1024 * 1024
_RECENT_KEPT = 2048
# A child may take more than its build took where it was measured: libraries map more than they use.
_CHILD_TIMES, _CHILD_MORE_BYTES = 2, 512 * 1024 * 1024
# A remote answer that takes four thresholds is worth less than a local one now.
_REMOTE_DEADLINE_THRESHOLDS = 4.0
_REMOTE_DEADLINE_MIN_S = 0.25


@dataclass(slots=True, eq=False)
class LoadedRung:
    """One rung; `backend` is None while it is not resident (or off).

    `recent` holds (ended, service seconds), `quick` how many in a row were short. `skip_until` is
    when a failed remote is tried again. `broken` says why it could not be loaded on a step. A
    retired one is closed by its last user. `batches` is what its file is
    known to take for several requests.
    """

    spec: RungSpec
    backend: Backend | None = None
    in_flight: int = 0
    retired: bool = False
    skip_until: float = 0.0
    broken: str = ""
    quick: int = 0
    batches: Batches = field(default_factory=Batches)
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_RECENT_KEPT))


@dataclass(slots=True, eq=False)
class LoadedSlot:
    """A release, its rungs heavy to light, and its trial.

    `told` keeps a verdict that the host cannot carry out from being told with every inference.
    """

    release: DesiredModel
    paths: Mapping[str, str]
    rungs: dict[str, LoadedRung]
    rung: str
    row: RowState
    trial: Trial = Trial.PROBATION
    latched: bool = False
    told: bool = False
    fallback: str | None = None
    since_swap: Histogram = field(default_factory=Histogram)

    @property
    def slot_id(self) -> str:
        """The content's name."""
        return self.release.slot_id

    @property
    def current(self) -> LoadedRung:
        """The rung that answers."""
        return self.rungs[self.rung]

    @property
    def local(self) -> list[LoadedRung]:
        """Local rungs that answer at once, heavy to light."""
        return [
            r
            for r in self.rungs.values()
            if r.spec.kind is RungKind.LOCAL and r.backend is not None
        ]

    @property
    def usable(self) -> tuple[RungSpec, ...]:
        """Rungs to choose from: all but those that failed to load."""
        return tuple(r.spec for r in self.rungs.values() if not r.broken)

    @property
    def position(self) -> LadderPosition:
        """Where the current rung stands, for the rollback rule."""
        return position_of(self.rung, self.usable)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of its rungs runs otherwise than it was asked to."""
        asked = ((r.spec.name, getattr(r.backend, "remarks", None)) for r in self.local)
        return tuple(f"{name}: {said}" for name, tell in asked if tell for said in tell())

    def lower(self) -> RungSpec | None:
        """The next local rung below the current one, resident or not; None at the bottom."""
        specs = self.usable
        names = [spec.name for spec in specs]
        below = specs[names.index(self.rung) + 1 :] if self.rung in names else ()
        return next((spec for spec in below if spec.kind is RungKind.LOCAL), None)


@dataclass(frozen=True, slots=True)
class Loader:
    """What loading needs from outside."""

    open_backend: OpenBackend
    open_remote: OpenRemote
    memory_available: MemoryAvailable


def load_slot(
    loader: Loader, release: DesiredModel, paths: Mapping[str, str], now: float, *, must: bool
) -> LoadedSlot:
    """Load rungs heavy to light as memory allows. LoadError: nothing is kept.

    `must`: nothing serves this model yet, so its lightest rung is loaded whatever memory is free.
    """
    rungs = {spec.name: LoadedRung(spec) for spec in release.rungs}
    left = loader.memory_available()
    try:
        for rung in rungs.values():
            need = rung.spec.memory_bytes or 0
            if rung.spec.kind is RungKind.REMOTE:
                rung.backend = open_remote(loader, release, rung.spec)
            elif rung.spec.kind is RungKind.LOCAL and (
                left is None or need + _RESERVE_BYTES <= left
            ):
                rung.backend = open_local(loader, release, rung.spec, paths)
                left = _left(left, need, loader.memory_available())
        local = [r for r in rungs.values() if r.spec.kind is RungKind.LOCAL]
        first = next((r for r in local if r.backend is not None), None)
        if first is None:
            first = local[-1]
            if not must:
                raise LoadError(
                    f"not enough memory for {release.model}:{release.version} beside what runs",
                    f"its lightest rung needs {first.spec.memory_bytes} bytes and"
                    f" {_RESERVE_BYTES} must stay free, {left} bytes are available",
                )
            first.backend = open_local(loader, release, first.spec, paths)
    except BaseException:
        for rung in rungs.values():
            if rung.backend is not None:
                rung.backend.close()
        raise
    return LoadedSlot(release, paths, rungs, first.spec.name, probation.begin(now))


def fits_beside(loader: Loader, slot: LoadedSlot, spec: RungSpec) -> bool:
    """Whether a rung can be resident beside the others; False: instead of them.

    UnavailableError when it would not fit even then. Going lighter is never refused.
    """
    left = loader.memory_available()
    if left is None:
        return True
    need = spec.memory_bytes or 0
    freed = sum(r.spec.memory_bytes or 0 for r in slot.local)
    if need > freed and need - freed + _RESERVE_BYTES > left:
        raise UnavailableError(
            f"not enough memory for rung {spec.name!r} of {slot.release.model}",
            f"it needs {need} bytes and {_RESERVE_BYTES} must stay free,"
            f" {left} bytes are available and {freed} could be freed",
        )
    return need + _RESERVE_BYTES <= left


def open_remote(loader: Loader, release: DesiredModel, spec: RungSpec) -> Backend:
    """The remote rung of a release; nothing is connected yet."""
    deadline_s = max(
        _REMOTE_DEADLINE_MIN_S, release.policy.slow_threshold_s * _REMOTE_DEADLINE_THRESHOLDS
    )
    remote = RemoteModel(spec.endpoint or "", release.model, release.version)
    return loader.open_remote(remote, deadline_s, release.signature)


def open_local(
    loader: Loader, release: DesiredModel, spec: RungSpec, paths: Mapping[str, str]
) -> Backend:
    """Load one local rung and hold what its file says against the release. LoadError."""
    if spec.target is None or spec.runtime is None or spec.target.digest not in paths:
        raise LoadError(f"rung {spec.name!r} of {release.model}:{release.version} has no file")
    backend = loader.open_backend(
        spec.runtime, paths[spec.target.digest], options_of(spec, spec.target)
    )
    found = backend.signature()
    where = f"{release.model}:{release.version} rung {spec.name!r}"
    if found is not None:
        for kind, wanted, given in (
            ("input", release.signature.inputs, found.inputs),
            ("output", release.signature.outputs, found.outputs),
        ):
            expect = {s.name: (s.dtype, len(s.shape)) for s in wanted}
            have = {s.name: (s.dtype, len(s.shape)) for s in given}
            if expect != have:
                backend.close()
                raise LoadError(f"{where}: {kind}s of the file are {have}, signed are {expect}")
    return backend


def options_of(spec: RungSpec, target: Target) -> Options:
    """What the profile wants of this build, as it was signed, and what the agent decides."""
    wanted = target.custom.get("options")
    told = wanted.items() if isinstance(wanted, dict) else ()
    options: dict[str, str | int | float | bool] = {"intra_op_threads": 1}
    options |= {key: value for key, value in told if isinstance(value, str | int | float | bool)}
    if spec.memory_bytes:
        options["host_memory_bytes"] = _CHILD_TIMES * spec.memory_bytes + _CHILD_MORE_BYTES
    return {**options, "digest": target.digest}


def platform_of(rung: RungSpec) -> str:
    """What clients of the protocol call the kind of a model."""
    runtime = rung.runtime or ""
    is_onnx = rung.target is not None and rung.target.media_type == "application/onnx"
    return f"{runtime}_onnx" if is_onnx else runtime


def check_outputs(
    signature: Signature, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> None:
    """Hold outputs against the signature; InferenceError says which one differs.

    An axis that bears the name of an input's has its size: for four pictures come four answers.
    """
    sizes = {
        axis: size
        for spec in signature.inputs
        for axis, size in zip(spec.shape, inputs[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    for spec in signature.outputs:
        tensor = outputs.get(spec.name)
        if tensor is None:
            raise InferenceError(f"output {spec.name!r} is missing")
        expected = tuple(
            sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape
        )
        fits = len(tensor.shape) == len(expected) and all(
            not isinstance(axis, int) or axis == size
            for axis, size in zip(expected, tensor.shape, strict=True)
        )
        if tensor.dtype is not spec.dtype or not fits or not is_whole(tensor):
            raise InferenceError(
                f"output {spec.name!r} is {tensor.dtype} {show_shape(tensor.shape)},"
                f" expected {spec.dtype} {show_shape(expected)}"
            )


def pick_outputs(
    signature: Signature, outputs: Mapping[str, Tensor], wanted: Sequence[str]
) -> tuple[Tensor, ...]:
    """The wanted outputs in the order asked for, or all in the order of the signature."""
    names = wanted or [spec.name for spec in signature.outputs]
    return tuple(outputs[name] for name in names)


def _left(left: int | None, used: int, measured: int | None) -> int | None:
    # What was loaded may not show in the kernel's figure yet; a figure that fell says more.
    if left is None:
        return measured
    return left - used if measured is None else min(left - used, measured)


def close_all(backends: Iterable[Backend | None]) -> None:
    """Free those that there are."""
    for backend in backends:
        if backend is not None:
            backend.close()
