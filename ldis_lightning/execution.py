"""How a model is carried out: nothing here changes what it computes, but for rounding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ldis_lightning.instruction import PromptEncoder
from ldis_lightning.latent import Autoencoder


class Checkpointing:
    """Base class of the slot: which activations of the U-Net are thrown away and computed again in the backward."""

    def apply(self, unet: UNet2DConditionModel) -> None:
        """Set it up, in place."""
        raise NotImplementedError(f"{type(self).__name__} must implement apply(unet)")


class EveryBlock(Checkpointing):
    """Keep the inputs of residual and transformer blocks alone: the least memory, about a third more time."""

    def apply(self, unet: UNet2DConditionModel) -> None:
        """See `Checkpointing`."""
        unet.enable_gradient_checkpointing()


class CheapOperations(Checkpointing):
    """Keep what convolutions, matrix products and attention put out; compute norms, activations and sums again."""

    def apply(self, unet: UNet2DConditionModel) -> None:
        """See `Checkpointing`."""
        unet.enable_gradient_checkpointing(_selective_checkpoint)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Execution:
    """Ways to carry out the same computation.

    Args:
        compile: `torch.compile` the U-Net's blocks and the frozen networks, in place, so that no key changes its name.
        channels_last: hold the U-Net's convolutions and their activations channels last, which tensor cores want; a
            CPU is slower with it in training. The autoencoder always is.
        frozen_in_bfloat16: hold frozen weights in bfloat16. They are computed with in the run's own precision.
        checkpointing: what is computed again in the backward instead of kept; null keeps everything.
    """

    compile: bool = False
    channels_last: bool = False
    frozen_in_bfloat16: bool = False
    checkpointing: Checkpointing | None = None

    def apply(self, unet: UNet2DConditionModel, others: Sequence[Autoencoder | PromptEncoder], autocast: bool) -> None:
        """Set up a model, in place.

        Args:
            unet: the denoiser.
            others: the autoencoder and the prompt encoder.
            autocast: the run casts to bfloat16 by itself, so that frozen weights need no casting back.
        """
        if self.checkpointing is not None:
            self.checkpointing.apply(unet)
        for network in others:
            if self.frozen_in_bfloat16 and not any(p.requires_grad for p in network.parameters()):
                hold_in_bfloat16(network, autocast)
        if self.channels_last:
            unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.compile:
            for module in (*blocks(unet), *(stage for network in others for stage in network.stages)):
                module.compile()


def blocks(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    """The down, middle and up blocks of a U-Net, in the order of the computation."""
    yield from unet.down_blocks
    if unet.mid_block is not None:
        yield unet.mid_block
    yield from unet.up_blocks


def hold_in_bfloat16(network: nn.Module, autocast: bool) -> None:
    """Hold the weights of a frozen network in bfloat16, in place.

    Args:
        network: a float32 network.
        autocast: it will be called under autocast to bfloat16; otherwise the weights of its linear and convolution
            layers are cast to what comes in while they are at work, and other layers stay in float32.
    """
    if autocast:
        network.to(torch.bfloat16)
        return
    for layer in network.modules():
        if type(layer) in CASTING:
            layer.to(torch.bfloat16)
            layer.__class__ = CASTING[type(layer)]


class _CastingLinear(nn.Linear):
    """As diffusers' layerwise casting, without its casting back, which costs as much again."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *_cast(self, input.dtype))


class _CastingConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *_cast(self, input.dtype))


CASTING: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _CastingLinear, nn.Conv2d: _CastingConv2d}


def _cast(layer: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)


def _selective_checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _keep_expensive)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def _keep_expensive(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE


EXPENSIVE = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "addmm",
        "bmm",
        "convolution",
        "mm",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
)
"""Operations whose results `CheapOperations` keeps."""
