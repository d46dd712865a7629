"""Changes to a trained network's layers that keep what it computes."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn


def widen_input(conv: nn.Conv2d, extra: int, zero: bool = True) -> nn.Conv2d:
    """A convolution with `extra` more input channels whose first channels keep their weights.

    Used for the query latent of LDIS-n (METHOD section 3: four new channels of `conv_in` start at zero) and for the
    alpha channel of the prompt encoder.

    Args:
        conv: the convolution, without groups.
        extra: number of channels added after the present ones, >= 1.
        zero: start the new weights at zero, so that the output is the same whatever the new channels hold; else at
            random.
    """
    wide = nn.Conv2d(
        conv.in_channels + extra,
        conv.out_channels,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        conv.stride,  # pyright: ignore[reportArgumentType]
        conv.padding,  # pyright: ignore[reportArgumentType]
        conv.dilation,  # pyright: ignore[reportArgumentType]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    ).to(conv.weight)
    with torch.no_grad():
        wide.weight[:, : conv.in_channels] = conv.weight
        if zero:
            wide.weight[:, conv.in_channels :] = 0
        if conv.bias is not None and wide.bias is not None:
            wide.bias.copy_(conv.bias)
    return wide


def new_layers(unet: UNet2DConditionModel) -> set[str]:
    """Names of the layers that were made anew because the files lack them."""
    if not hasattr(unet, "new_layers"):
        unet.new_layers = set()  # pyright: ignore
    return unet.new_layers  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]
