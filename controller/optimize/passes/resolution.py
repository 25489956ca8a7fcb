"""A lower resolution inside: pictures are scaled before the first layers, the signature stays.

Time goes with the square of the sides. Where the program scales its input itself, it scales to less
instead; maps of the old size are scaled back. The gate holds it against the full resolution.
Refuses programs of whose layers one takes a single size.
"""

from typing import TYPE_CHECKING, Any

from controller.errors import InvalidError
from controller.optimize.passes.network import Network
from controller.optimize.raw import first_words, keep_raw

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_HINT = "leave out the pass 'resolution'"


def lower_resolution(network: Network, share_pct: float, height: int, width: int) -> None:
    """Scale to ``height`` by ``width``, or where they are 0 to a share of each side.

    InvalidError where nothing takes a picture, or a layer takes no other size.
    """
    module = network.module
    was = _shapes(network)
    fed = _first_fed(module)
    if fed is None:
        raise InvalidError("no convolution takes the input: nothing has a resolution", _HINT)
    sides = fed.meta["val"].shape[-2:]
    if not all(isinstance(side, int) for side in sides):
        raise InvalidError("the program takes pictures of any size", "send it smaller ones instead")
    before = (int(sides[0]), int(sides[1]))
    size = (height, width) if height else tuple(_scaled(side, share_pct) for side in before)
    if size[0] * size[1] >= before[0] * before[1]:
        raise InvalidError(
            f"{size[0]} by {size[1]} is no lower than the program's {before[0]} by {before[1]}",
            _HINT,
        )
    _scale(module, fed, size)
    module.graph.lint()
    module.recompile()
    try:
        _scale_back(module, was, _shapes(network))
        now = _shapes(network)
    except Exception as error:
        keep_raw(error)
        said = f"the program takes one resolution only{first_words(str(error))}"
        raise InvalidError(said, _HINT) from error
    if now != was:
        raise InvalidError("a lower resolution changes the shape of the outputs", _HINT)
    network.notes.append(
        f"computed at {size[0]} by {size[1]} instead of {before[0]} by {before[1]}"
    )


def _scaled(side: int, share_pct: float) -> int:
    """Layers halve sides several times: what they divide without a rest stays so."""
    step = 32 if side >= 256 else 8 if side >= 64 else 1
    return max(step, round(side * share_pct / 100 / step) * step)


def _shapes(network: Network) -> list[tuple[int, ...]]:
    import torch

    network.module.eval()
    with torch.no_grad():
        found = torch.utils._pytree.tree_leaves(network.module(*network.example()))
    return [tuple(one.shape) for one in found]


def _first_fed(module: "GraphModule") -> "Node | None":
    """What the first convolution is fed with."""
    import torch

    for node in module.graph.nodes:
        if node.op == "call_module" and isinstance(
            module.get_submodule(str(node.target)), torch.nn.Conv2d
        ):
            found: Node = node.args[0]
            return found
    return None


def _scale(module: "GraphModule", fed: "Node", size: tuple[int, ...]) -> None:
    import torch

    if fed.target is torch.ops.aten.upsample_bilinear2d.vec and fed.args[1] is not None:
        fed.args = (fed.args[0], list(size), *fed.args[2:])
        return
    with module.graph.inserting_after(fed):
        scaled = _interpolated(module, fed, size)
    fed.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _scale_back(
    module: "GraphModule", was: list[tuple[int, ...]], now: list[tuple[int, ...]]
) -> None:
    """Maps of another size than before: to what they were."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    for node, old, new in zip(output.all_input_nodes, was, now, strict=True):
        if old == new or len(old) != 4 or old[:2] != new[:2]:
            continue
        with module.graph.inserting_before(output):
            back = _interpolated(module, node, old[2:])
        output.replace_input_with(node, back)
    module.recompile()


def _interpolated(module: "GraphModule", node: "Node", size: tuple[int, ...]) -> Any:
    import torch

    return module.graph.call_function(
        torch.nn.functional.interpolate,
        (node,),
        {"size": size, "mode": "bilinear", "align_corners": False},
    )
