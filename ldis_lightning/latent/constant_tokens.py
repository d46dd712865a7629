"""Many calls of one U-Net with the same tokens, as in sampling: what depends on the tokens alone is computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

TOKENS_ALONE = ("encoder_hid_proj", ".attn2.to_k", ".attn2.to_v")
"""Ends of the names of the layers whose input is the tokens: the projection F, keys and values of cross-attention."""


@contextmanager
def constant_tokens(unet: UNet2DConditionModel) -> Iterator[None]:
    """Inside, every call of the U-Net must have the same tokens: those of the first one are used for all.

    For inference without gradients, and not for compiled modules, which would have to be compiled anew.
    """
    layers: list[Any] = [layer for name, layer in unet.named_modules() if name.endswith(TOKENS_ALONE)]
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _once(layer)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _once(layer: nn.Module) -> Callable[..., Tensor]:
    compute, results = layer.forward, []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        if not results:
            results.append(compute(*args, **kwargs))
        return results[0]

    return forward
