"""A pushed program as modules that can be pruned and trained, and back into a program.

`torch.export` leaves a flat graph of operators. Convolutions, linear layers and normalisations
become modules again, with their weights; all else stays as it is. Refuses to change what a program
answers: as modules it gives the same numbers.
"""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.domain.model import Signature, TensorSpec
from controller.errors import InvalidError
from controller.optimize.import_torch import TorchModel
from controller.optimize.raw import first_words, keep_raw
from controller.optimize.rows import Array, sample_inputs

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

    from controller.optimize.passes.aware import LearnedRange

_DIM_MOST = 4096  # of a dynamic axis, for the exporter; devices never see it


@dataclass(slots=True)
class Network:
    """The program as modules. `teacher` answers as the pushed program does, whatever is done here.

    `notes` is what passes want to have said with the build.
    """

    module: "GraphModule"
    teacher: TorchModel
    signature: Signature
    notes: list[str]
    ranges: "tuple[LearnedRange, ...]" = ()  # of layers' inputs, where training learned them

    def example(self, batch: int = 2) -> tuple["torch.Tensor", ...]:
        """Inputs of the right shape."""
        import torch

        return tuple(
            torch.from_numpy(one) for one in sample_inputs(self.signature, batch=batch, seed=0)
        )

    def parameters(self) -> int:
        """How many numbers it has learned."""
        return sum(one.numel() for one in self.module.parameters())


def network_of(model: TorchModel) -> Network:
    """The modules of a loaded program; the program itself stays as it is."""
    from torch.fx import GraphModule

    exported = model.program.module()
    _drop_guards(exported)
    # The exporter's own class refuses `train()` and `eval()`, which pruning and training call.
    graph_module = GraphModule(exported, exported.graph)
    for node in list(graph_module.graph.nodes):
        made = _module_for(graph_module, node)
        if made is not None:
            _put(graph_module, node, *made)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    _drop_unused(graph_module)
    graph_module.recompile()
    return Network(graph_module, model, model.signature, [])


def save_network(network: Network, target: Path) -> None:
    """Write it as a `.pt2` with the version's signature. InvalidError where that fails."""
    import torch

    module = network.module
    try:
        module.eval()
        shapes = dynamic_shapes(network)
        program = torch.export.export(module, network.example(), dynamic_shapes=shapes)
        torch.export.save(program, target)
    except Exception as error:
        keep_raw(error)
        said = f"PyTorch cannot export what the passes made{first_words(str(error))}"
        raise InvalidError(said) from error


def dynamic_shapes(network: Network) -> dict[str, Any]:
    """What the exporter has to know of the signature's free axes."""
    import torch

    dims = {
        name: torch.export.Dim(name, min=1, max=_DIM_MOST)
        for spec in network.signature.inputs
        for name in spec.shape
        if isinstance(name, str)
    }
    named = zip(_placeholders(network.module), network.signature.inputs, strict=True)
    return {name: _axes(spec, dims) for name, spec in named}


def run(network: Network, inputs: list[Array]) -> list[Array]:
    """One call without gradients."""
    import torch

    network.module.eval()
    with torch.inference_mode():
        found = network.module(*(torch.from_numpy(one) for one in inputs))
    return [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(found)]


def _axes(spec: TensorSpec, dims: dict[str, Any]) -> dict[int, Any]:
    return {place: dims[axis] for place, axis in enumerate(spec.shape) if isinstance(axis, str)}


def _placeholders(module: "GraphModule") -> list[str]:
    return [node.target for node in module.graph.nodes if node.op == "placeholder"]


def _drop_guards(module: "GraphModule") -> None:
    """Checks that the exporter wrote for its own sample inputs."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and str(node.target).startswith("_guards"):
            module.graph.erase_node(node)


def _drop_unused(module: "GraphModule") -> None:
    """Weights that stand in modules now would be counted, and trained, twice."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    inside = tuple(f"{node.target}." for node in module.graph.nodes if node.op == "call_module")
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used and not name.startswith(inside):
            owner, _, last = name.rpartition(".")
            delattr(module.get_submodule(owner), last)


def _attribute(module: "GraphModule", node: Any) -> Any:
    """The tensor behind a graph's node; None where the node is no stored tensor."""
    if getattr(node, "op", "") != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(module)
    return found.detach().clone()


def _module_for(module: "GraphModule", node: "Node") -> tuple["torch.nn.Module", Any] | None:
    """The module that does what the node does, and its input; None where it stays as it is."""
    import torch

    aten = torch.ops.aten
    arguments: list[Any] = [*node.args, *[None] * 10]
    if node.op != "call_function" or node.kwargs:
        return None
    weight = _attribute(module, arguments[1])
    if weight is None:
        return None
    bias = _attribute(module, arguments[2])
    match node.target:
        case aten.conv2d.default | aten.conv2d.padding:
            return _convolution(weight, bias, arguments[3:7]), node.args[0]
        case aten.linear.default:
            made: torch.nn.Module = torch.nn.Linear(
                weight.shape[1], weight.shape[0], bias is not None
            )
            return _filled(made, weight=weight, bias=bias), node.args[0]
        case aten.batch_norm.default:
            mean, variance = (_attribute(module, one) for one in arguments[3:5])
            if bias is None or mean is None or variance is None:
                return None
            made = torch.nn.BatchNorm2d(len(weight), eps=arguments[7])
            tensors = {
                "weight": weight,
                "bias": bias,
                "running_mean": mean,
                "running_var": variance,
            }
            return _filled(made, **tensors), node.args[0]
        case _:
            return None


def _convolution(weight: "torch.Tensor", bias: Any, rest: list[Any]) -> "torch.nn.Module":
    import torch

    stride, padding, dilation, groups = rest
    groups = groups or 1
    kernel: Any = tuple(weight.shape[2:])
    made = torch.nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], kernel, stride=_pair(stride or 1),
        padding=padding if isinstance(padding, str) else _pair(padding or 0),
        dilation=_pair(dilation or 1), groups=groups, bias=bias is not None,
    )  # fmt: skip
    return _filled(made, weight=weight, bias=bias)


def _pair(value: Any) -> Any:
    if isinstance(value, int):
        return (value, value)
    return tuple(value) * (2 if len(value) == 1 else 1)


def _filled(module: "torch.nn.Module", **tensors: Any) -> "torch.nn.Module":
    import torch

    with torch.no_grad():
        for name, value in tensors.items():
            if value is not None:
                getattr(module, name).copy_(value)
    module.training = False
    return module


def _put(owner: "GraphModule", node: "Node", made: "torch.nn.Module", source: "Node") -> None:
    name = f"layer_{node.name}"
    owner.add_module(name, made)
    with owner.graph.inserting_before(node):
        call = owner.graph.call_module(name, (source,))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    owner.graph.erase_node(node)
