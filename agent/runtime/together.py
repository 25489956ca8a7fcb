"""Several requests at once: each is held against the signature, those that fit go together.

Refuses to let one client's mistake, or its failure, be another one's.
"""

from collections.abc import Sequence

from agent.domain.ports import InferResult, Request
from agent.domain.tensor import Tensor, check_request
from agent.errors import AgentError, UnavailableError
from agent.runtime.answer import Answerer
from agent.runtime.served import ServedModel


def feed_of(
    served: ServedModel, inputs: Sequence[Tensor], outputs: Sequence[str]
) -> dict[str, Tensor]:
    """Inputs by name, as what serves now takes them; RequestError, UnavailableError."""
    active = served.active
    if active is None:
        raise UnavailableError(f"model {served.model} has no version loaded yet")
    check_request(active.release.signature, inputs, outputs)
    return {tensor.name: tensor for tensor in inputs}


def together(
    answerer: Answerer, served: ServedModel, requests: Sequence[Request]
) -> list[InferResult | AgentError]:
    """See `agent.domain.ports.Served.infer_together`."""
    found: list[InferResult | AgentError | None] = [None] * len(requests)
    feeds, fitting, places = [], [], []
    for at, request in enumerate(requests):
        try:
            feeds.append(feed_of(served, request.inputs, request.outputs))
        except AgentError as error:
            found[at] = error
        else:
            fitting.append(request)
            places.append(at)
    for at, answer in zip(places, answerer.answer_together(served, feeds, fitting), strict=True):
        found[at] = answer
    return [one for one in found if one is not None]
