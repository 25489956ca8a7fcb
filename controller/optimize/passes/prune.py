"""Structured pruning by torch-pruning: whole channels go, the file and the time with them.

Masks would leave zeros that no runtime skips. The layers that give the outputs keep their width. A
pruned network answers worse until it is trained again: the gate refuses it otherwise.
"""

from typing import TYPE_CHECKING

from controller.errors import InvalidError
from controller.optimize.passes.network import Network
from controller.optimize.raw import first_words, keep_raw

if TYPE_CHECKING:
    import torch
    from torch.fx import Node


def prune(network: Network, share_pct: float, round_to: int) -> None:
    """Take ``share_pct`` of each layer's channels away, widths a multiple of ``round_to``.

    InvalidError where the layers depend on each other in a way that is not understood, and where
    nothing can be taken away.
    """
    import torch_pruning

    module, before = network.module, network.parameters()
    was = [tuple(one.shape) for one in _answers(network)]
    for one in module.parameters():
        one.requires_grad_(True)
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            module,
            network.example(),
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=share_pct / 100,
            round_to=round_to,
            ignored_layers=_last_layers(network),
        )
        pruner.step()
        now = [tuple(one.shape) for one in _answers(network)]
    except Exception as error:
        keep_raw(error)
        said = f"the program's layers cannot be pruned{first_words(str(error))}"
        raise InvalidError(said, "build it without the pass 'prune'") from error
    if now != was:
        raise InvalidError("pruning changed the shape of the outputs", "leave out the pass 'prune'")
    left = network.parameters()
    if left >= before:
        raise InvalidError(
            f"no layer lost a channel: {share_pct:g} % in steps of {round_to} is nothing here",
            "set prune.round_to lower, or leave out the pass 'prune'",
        )
    network.notes.append(f"pruned from {before:,} to {left:,} parameters")


def _answers(network: Network) -> list["torch.Tensor"]:
    import torch

    with torch.no_grad():
        return list(torch.utils._pytree.tree_leaves(network.module(*network.example())))


def _last_layers(network: Network) -> list["torch.nn.Module"]:
    """Whatever layer an output comes from without another layer between."""
    import torch

    module = network.module
    seen: set[Node] = set()
    found: list[torch.nn.Module] = []
    open_nodes = [node for node in module.graph.nodes if node.op == "output"]
    while open_nodes:
        node = open_nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            found.append(layer)
        else:
            open_nodes += node.all_input_nodes
    return found
