"""The first inferences of a rung: one that has to come out, and some that tell what batches take.

Refuses to serve: nothing here is a client's, and nothing is counted.
"""

from collections import OrderedDict
from math import prod

from agent.domain.batching import Curve
from agent.domain.desired import DesiredModel, RungSpec
from agent.domain.ports import Clock
from agent.domain.tensor import Signature, Tensor, typical_shape
from agent.errors import LoadError
from agent.runtime.backend import Backend
from agent.runtime.joining import Batches, measure
from agent.runtime.running import Running
from agent.runtime.slot import check_outputs

# What is batched takes no longer than this share of what counts as slow.
_BATCH_SHARE = 0.5
# Of how many files it is remembered.
_KEPT = 64


class Warmer:
    """Seen by whoever calls off what hangs, like any inference."""

    def __init__(self, running: Running, clock: Clock, *, batching: bool) -> None:
        self._running = running
        self._clock = clock
        self._batching = batching
        # By file: one that is loaded again need not be measured again.
        self._known: OrderedDict[tuple[str, float], Batches] = OrderedDict()

    def warm(self, release: DesiredModel, rung: RungSpec, backend: Backend) -> Batches:
        """Run it on zeros; LoadError. Then measure its batches, as far as they may be used."""
        with self._running.inside(release.model, rung.name, backend):
            warm_backend(release, rung, backend)
        if not self._batching or rung.target is None:
            return Batches()
        key = (rung.target.digest, _BATCH_SHARE * release.policy.slow_threshold_s)
        known = self._known.get(key)
        if known is None:
            with self._running.inside(release.model, rung.name, backend):
                known = self._known[key] = Batches(
                    self._measure(release.signature, backend, key[1])
                )
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known

    def _measure(self, signature: Signature, backend: Backend, most_s: float) -> Curve:
        return measure(backend, zeros_of(signature), signature, self._clock.monotonic, most_s)


def zeros_of(signature: Signature) -> dict[str, Tensor]:
    """One row of zeros, by input; dynamic axes at their typical size."""
    inputs = {}
    for spec in signature.inputs:
        shape = typical_shape(signature, spec)
        data = bytes(prod(shape) * spec.dtype.item_bytes)
        inputs[spec.name] = Tensor(spec.name, spec.dtype, shape, data)
    return inputs


def warm_backend(release: DesiredModel, rung: RungSpec, backend: Backend) -> None:
    """Run a local rung once on zeros; LoadError when it fails or its outputs do not fit."""
    inputs = zeros_of(release.signature)
    try:
        check_outputs(release.signature, backend.run(inputs), inputs)
    # A runtime may raise anything; whatever it is, this build does not run here.
    except Exception as error:
        raise LoadError(
            f"{release.model}:{release.version} rung {rung.name!r} fails its first"
            f" inference: {error}"
        ) from error
