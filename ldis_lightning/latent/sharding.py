"""Fully sharded data parallelism (FSDP2): a rank holds a share of a network's weights, gradients and optimiser states.

A group of layers is gathered from all ranks just before it is needed and dropped again behind it. So a group should be
large enough to be worth a message, and so small that two of them fit beside the shares.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

GROUPS = re.compile(r"(.*\.)?((down_blocks|up_blocks|blocks)\.\d+|mid_block)")
"""Names of modules that are gathered as one: the levels of a diffusers U-Net, the layers of a timm transformer."""

# torch 2.6 cannot change its mind about what is dropped after the forward, which `gather` needs; it drops nothing then.
CAN_CHANGE = hasattr(FSDPModule, "set_reshard_after_forward")


def shard(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard the parameters of a network over the ranks of `mesh`, in place; the keys of its state dict stay.

    Each block that `GROUPS` names is a group; what is left over is one more, held by the network itself. Gradients are
    averaged over the ranks, as DDP does. A network without a trained parameter stays whole on every rank, and one that
    is sharded already stays as it is. FSDP2 lays weights out channels first; where they were channels last, the
    network's inputs are made so instead, which has convolutions put out the same.

    Args:
        network: is always called through its `forward`, like a U-Net or a prompt encoder.
        mesh: has one dimension, the data-parallel one.

    Returns:
        `network`.
    """
    if isinstance(network, FSDPModule) or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    if not all(parameter.is_contiguous() for parameter in network.parameters()):
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        network.register_forward_pre_hook(_channels_last)
    for name, module in network.named_modules():
        if GROUPS.fullmatch(name):
            fully_shard(module, mesh=mesh, reshard_after_forward=CAN_CHANGE)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)  # its backward begins with what its forward ends with
    return network


def _channels_last(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    pictures = torch.channels_last
    return tuple(x.contiguous(memory_format=pictures) if isinstance(x, Tensor) and x.ndim == 4 else x for x in inputs)


def unsharded(module: nn.Module) -> list[str]:
    """Names of the trained parameters that `shard` has not reached: each rank would train a copy of its own."""
    parameters = module.named_parameters()
    return [name for name, parameter in parameters if parameter.requires_grad and not isinstance(parameter, DTensor)]


def gather(module: nn.Module) -> None:
    """Make the sharded networks below `module` whole on every rank until `scatter`.

    In evaluation ranks may call a network different numbers of times. If every call gathered, one would wait for ever.
    """
    for part, is_group in _sharded(module):
        if is_group and CAN_CHANGE:
            part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def scatter(module: nn.Module) -> None:
    """Undo `gather`: every rank keeps its share alone."""
    for part, is_group in _sharded(module):
        part.reshard()
        if is_group and CAN_CHANGE:
            part.set_reshard_after_forward(True, recurse=False)


def _sharded(module: nn.Module) -> Iterator[tuple[Any, bool]]:
    """The sharded modules, and whether each is a group inside a network."""
    for name, part in module.named_modules():
        if isinstance(part, FSDPModule):
            yield part, GROUPS.fullmatch(name) is not None
