"""Clean-up: normalisations that follow a convolution become part of its weights.

Changes no answer beyond rounding. ONNX Runtime and OpenVINO fold by themselves; this pass makes
what quantising and TorchScript see the same. Not for before training: a folded normalisation counts
no longer along.
"""

from controller.optimize.passes.network import Network


def fold(network: Network) -> None:
    """Fold in place; notes how many there were."""
    from torch.nn import BatchNorm2d, Conv2d
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    module, folded = network.module, 0
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        norm = module.get_submodule(node.target)
        before = node.args[0]
        if not isinstance(norm, BatchNorm2d) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = module.get_submodule(before.target)
        if isinstance(convolution, Conv2d):
            convolution.training = norm.training = False
            setattr(module, before.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)
            folded += 1
    module.delete_all_unused_submodules()
    module.recompile()
    network.notes.append(f"{folded} normalisations folded")
