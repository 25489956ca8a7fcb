"""Quantisation-aware training by PT2E (torchao): the network learns with what INT8 will round.

The scheme is the one that ships: unsigned activations with one range a tensor, signed weights with
one a channel. The weights are the network's own, so there is nothing to copy back; the ranges that
were learned go with them to the quantiser (`Network.ranges`). Refuses to make a build: PT2E's own
export would leave sums and poolings as float, which the runtimes' quantiser does not.
"""

import itertools
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controller.errors import InvalidError
from controller.optimize.passes.network import Network, dynamic_shapes
from controller.optimize.passes.train import Training
from controller.optimize.raw import first_words, keep_raw

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node


FIRST_LOOKS = 8  # batches


@dataclass(frozen=True, slots=True)
class LearnedRange:
    """Of the input of one layer; layers in the order of the graph."""

    weights: tuple[int, ...]  # the shape of the layer's weights, by which it is known again
    low: float
    high: float


@contextmanager
def trained_module(task: Training) -> Iterator["torch.nn.Module"]:
    """The module to train: the network's own, or one with its weights that rounds as INT8 does."""
    network = task.network
    if not task.quantize:
        yield network.module
        return
    module = _prepare(network)
    _look(module, task)
    yield module
    own = network.module.state_dict()
    network.module.load_state_dict(
        {name: value for name, value in module.state_dict().items() if name in own}
    )
    network.ranges = _ranges(module)
    network.notes.append(f"trained for INT8: ranges of {len(network.ranges)} layers learned")


def _prepare(network: Network) -> "GraphModule":
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    network.module.train()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                network.module, network.example(), dynamic_shapes=dynamic_shapes(network)
            )
            made: GraphModule = prepare_qat_pt2e(exported.module(), _quantizer())
    except Exception as error:
        keep_raw(error)
        raise InvalidError(
            f"PyTorch cannot prepare the program for INT8{first_words(str(error))}",
            "leave out train.quantize",
        ) from error
    made.is_prepared_by_pt2e = True  # type: ignore[assignment]
    return made


def _look(module: Any, task: Training) -> None:
    """Ranges begin with what real rows show: nothing learns, and no normalisation counts along."""
    import torch

    set_mode(module, learns=False)
    with torch.no_grad():
        for batch, _ in itertools.islice(task.rows.batches(), FIRST_LOOKS):
            module(torch.from_numpy(np.ascontiguousarray(batch)))


def set_mode(module: Any, *, learns: bool) -> None:
    """Normalisations count along, or not; what PT2E made is asked by its own switch."""
    if not getattr(module, "is_prepared_by_pt2e", False):
        module.train(learns)
        return
    from torchao.quantization.pt2e import move_exported_model_to_eval, move_exported_model_to_train

    (move_exported_model_to_train if learns else move_exported_model_to_eval)(module)


def _quantizer() -> Any:
    import torch
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
    )

    aten = torch.ops.aten
    rounded = FusedMovingAvgObsFakeQuantize
    activation = QuantizationSpec(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=rounded.with_args(observer=MovingAverageMinMaxObserver),
    )  # fmt: skip
    weight = QuantizationSpec(
        dtype=torch.int8, quant_min=-127, quant_max=127, ch_axis=0,
        qscheme=torch.per_channel_symmetric,
        observer_or_fake_quant_ctr=rounded.with_args(
            observer=MovingAveragePerChannelMinMaxObserver
        ),
    )  # fmt: skip

    class AsShipped(Quantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            for node in model.graph.nodes:
                if _is_layer(node):
                    wanted = {node.args[0]: activation, node.args[1]: weight}
                elif node.target is aten.add.Tensor and all(hasattr(a, "op") for a in node.args):
                    wanted = dict.fromkeys(node.args, activation)
                else:
                    continue
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=wanted, _annotated=True
                )
            return model

        def validate(self, model: Any) -> None:
            pass

    return AsShipped()


def _is_layer(node: "Node") -> bool:
    import torch

    aten = torch.ops.aten
    return node.op == "call_function" and node.target in (
        aten.conv2d.default, aten.conv2d.padding, aten.linear.default,
    )  # fmt: skip


def _ranges(module: "GraphModule") -> tuple[LearnedRange, ...]:
    found = []
    for node in module.graph.nodes:
        if not _is_layer(node):
            continue
        rounding: Any = module.get_submodule(str(node.args[0].target))
        scale, zero = float(rounding.scale), int(rounding.zero_point)
        found.append(
            LearnedRange(_shape_of(module, node.args[1]), -zero * scale, (255 - zero) * scale)
        )
    return tuple(found)


def _shape_of(module: "GraphModule", node: Any) -> tuple[int, ...]:
    """Of the weights behind what is rounded; a normalisation may scale them before."""
    while node.op != "get_attr":
        node = node.args[0]
    return tuple(operator.attrgetter(str(node.target))(module).shape)
