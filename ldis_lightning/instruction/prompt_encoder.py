"""Prompt encoders: E_tau of eq. 1, from a reference and its alpha channel to a grid of tokens."""

from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from ldis_lightning.errors import UserError
from ldis_lightning.instruction.pre_masks import Prompt
from ldis_lightning.latent.surgery import widen_input


class PromptEncoder(nn.Module):
    """Base class of the prompt encoder slot.

    Attributes:
        image_size: side S of the square input, in pixels.
        width: channels C of a token.

    Subclasses implement `forward(prompt) -> (N, g*g, C)`, row by row from the top left.
    """

    image_size: int
    width: int

    def forward(self, prompt: Prompt) -> Tensor:
        """See the class."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(prompt) -> tokens")


class TimmPromptEncoder(PromptEncoder):
    """Any timm vision transformer with a fourth input channel for the mask.

    Alpha-CLIP adds a second, one-channel patch convolution for the mask to the RGB one. That sum is one convolution
    over four channels, and this is how it is held here. The alpha channel's weights start at zero when the RGB weights
    are pretrained, so that the encoder starts as the one that was trained, and at random otherwise. Class and register
    tokens are dropped; tokens are taken after the last transformer layer, before pooling and any head.

    Args:
        name: timm model name, e.g. `vit_large_patch14_clip_224.openai` or `vit_tiny_patch16_224`.
        pretrained: load timm's weights of that name.
        trainable: False freezes the encoder, as the paper does.
        final_norm: apply the transformer's last layer norm to the tokens.
        model_args: further arguments of `timm.create_model`, e.g. `img_size`, `patch_size`, `embed_dim`, `depth`.

    Raises:
        UserError: timm has no such model, or the model has no patch convolution or a token grid that is not square.
    """

    vit: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        pretrained: bool = False,
        trainable: bool = True,
        final_norm: bool = True,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vit = _create_vit(name, pretrained, model_args or {})
        patch = self.vit.patch_embed
        self.vit.patch_embed.proj = widen_input(patch.proj, 1, zero=pretrained)
        if not final_norm:
            self.vit.norm = nn.Identity()
        self.image_size = patch.img_size[0]
        self.grid = patch.grid_size[0]
        self.width = self.vit.num_features
        statistics = resolve_model_data_config(self.vit)
        # The input comes in [-1, 1]; timm's statistics are for [0, 1].
        self.register_buffer("mean", torch.tensor(statistics["mean"]).view(3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(statistics["std"]).view(3, 1, 1) * 2, persistent=False)
        self.trainable = trainable
        self.requires_grad_(trainable)

    def forward(self, prompt: Prompt) -> Tensor:
        """Prompt of N references at S x S -> tokens (N, g*g, C)."""
        image = (prompt.image - self.mean) / self.std
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            tokens = self.vit.forward_features(torch.cat([image, prompt.alpha], 1))  # (N, prefix + g*g, C)
        return tokens[:, -self.grid * self.grid :]

    def train(self, mode: bool = True) -> "TimmPromptEncoder":
        """A frozen encoder stays in evaluation mode."""
        return super().train(mode and self.trainable)


def _create_vit(name: str, pretrained: bool, model_args: dict[str, Any]) -> Any:
    """timm's model of that name, checked for what a prompt encoder needs."""
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        hint = f" Some that it has: {', '.join(similar)}." if similar else ""
        raise UserError(f"model.instruction.encoder.name: timm has no model '{name}'.{hint}")
    vit = timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args)
    patch: Any = getattr(vit, "patch_embed", None)
    if not isinstance(getattr(patch, "proj", None), nn.Conv2d):
        raise UserError(
            f"model.instruction.encoder.name: '{name}' has no patch convolution; name a vision transformer."
        )
    if patch.grid_size[0] != patch.grid_size[1]:
        raise UserError(f"model.instruction.encoder: the token grid of '{name}' is {patch.grid_size}, not square.")
    return vit
