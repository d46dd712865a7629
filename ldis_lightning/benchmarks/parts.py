"""What is raced: models with random weights at three scales, and random episodes for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from ldis_lightning.alignment import Augmented, Vanilla
from ldis_lightning.checkpoints import from_files
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.instruction import (
    AlphaChannel,
    CrossAttentionMask,
    InstructionExtractor,
    PromptEncoder,
    TimmPromptEncoder,
)
from ldis_lightning.latent import Autoencoder, Denoiser
from ldis_lightning.losses import LatentLoss
from ldis_lightning.meta_architectures import LDIS1, ConditionDropout, DualGuidance, LDISn
from ldis_lightning.optim import WarmupConstant

NOISE_SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Stable Diffusion's."""
GAMMA = 0.4
"""LDIS-n's share of the image in a pseudo-mask; the released default."""
LEAST_SHARE, MOST_SHARE = 0.05, 0.25
"""Share of a reference that its mask covers, drawn uniformly: 15% in the mean."""


class StableDiffusionLayout(Denoiser):
    """A U-Net of Stable Diffusion 1.5's layout with random weights.

    It is marked as read from files, so that LoRA adapts it as it would the pretrained one: the projection of the tokens
    is then the one new layer.

    Args:
        block_out_channels: channels of each level, from the finest to the coarsest; the last has no attention.
        cross_attention_dim: width of the projected tokens.
        heads: attention heads of every level.
        norm_num_groups: groups of the group norms.
    """

    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        cross_attention_dim: int = 768,
        heads: int = 8,
        norm_num_groups: int = 32,
    ) -> None:
        attended = len(block_out_channels) - 1
        self.config: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "cross_attention_dim": cross_attention_dim,
            "attention_head_dim": heads,  # diffusers' name for the number of heads, for historical reasons
            "norm_num_groups": norm_num_groups,
            "down_block_types": ("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
        }

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """See `Denoiser`."""
        unet = UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            encoder_hid_dim=token_width,
            encoder_hid_dim_type="text_proj",
            **self.config,
        )
        unet.new_layers = {"encoder_hid_proj"}  # pyright: ignore[reportArgumentType]
        return from_files(unet)


def autoencoder(block_out_channels: tuple[int, ...] = (128, 256, 512, 512), norm_num_groups: int = 32) -> Autoencoder:
    """An autoencoder of Stable Diffusion's layout with random weights, sampled as in the released code."""
    levels: Any = {  # diffusers types these as tuples of one
        "block_out_channels": block_out_channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(block_out_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(block_out_channels),
    }
    return Autoencoder(
        AutoencoderKL(**levels, layers_per_block=2, latent_channels=4, norm_num_groups=norm_num_groups), sample=True
    )


def prompt_encoder(name: str, **model_args: Any) -> PromptEncoder:
    """timm's vision transformer of that name with random weights, frozen, its last layer's tokens without a norm."""
    return TimmPromptEncoder(name, trainable=False, final_norm=False, model_args=model_args)


@dataclass(frozen=True)
class Scale:
    """Sizes of a model.

    Attributes:
        picture: side of queries and references, in pixels.
        autoencoder, encoder, denoiser: make the parts, with random weights.
    """

    picture: int
    autoencoder: Callable[[], Autoencoder]
    encoder: Callable[[], PromptEncoder]
    denoiser: Callable[[], Denoiser]


SCALES = {
    "tiny": Scale(
        32,
        partial(autoencoder, (4, 4, 8), 4),
        partial(prompt_encoder, "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2),
        partial(StableDiffusionLayout, (8, 16), 8, 2, 4),
    ),
    "mid": Scale(
        256,
        partial(autoencoder, (32, 64, 128, 128)),
        partial(prompt_encoder, "vit_base_patch16_clip_224", patch_size=14),  # 256 tokens a reference
        partial(StableDiffusionLayout, (96, 192, 320, 320)),
    ),
    "sd15": Scale(
        256, autoencoder, partial(prompt_encoder, "vit_large_patch14_clip_quickgelu_224"), StableDiffusionLayout
    ),
}
"""Name on the command line -> sizes. `mid` has a U-Net of about 60M parameters, `sd15` has the real sizes."""


def ldis1(scale: Scale, device: str, optimizer: Any = None, **options: Any) -> LDIS1:
    """LDIS-1 as in the paper, seeded: the same weights for the same scale and device.

    Args:
        scale: sizes.
        device: where to make it.
        optimizer: from parameters to an optimizer; None where nothing is trained.
        options: further arguments of `LDIS1`, such as `execution`.
    """
    torch.manual_seed(0)
    with torch.device(device):
        module = LDIS1(
            instruction=_instruction(scale),
            pseudo_mask=Vanilla(),
            autoencoder=scale.autoencoder(),
            denoiser=scale.denoiser(),
            losses=[LatentLoss()],
            optimizer=optimizer,
            schedule=WarmupConstant(),
            **options,
        )
    return module.to(device)


def ldisn(scale: Scale, device: str, steps: int, **options: Any) -> LDISn:
    """LDIS-n as in the paper with `steps` sampling steps; otherwise as `ldis1`."""
    scheduler = DDPMScheduler(clip_sample=False, **NOISE_SCHEDULE)
    torch.manual_seed(0)
    with torch.device(device):
        module = LDISn(
            instruction=_instruction(scale),
            pseudo_mask=Augmented(GAMMA),
            autoencoder=scale.autoencoder(),
            denoiser=scale.denoiser(),
            scheduler=scheduler,
            dropout=ConditionDropout(),
            guidance=DualGuidance(),
            optimizer=None,  # pyright: ignore[reportArgumentType]
            schedule=WarmupConstant(),
            steps=steps,
            **options,
        )
    return module.to(device)


def _instruction(scale: Scale) -> InstructionExtractor:
    return InstructionExtractor(scale.encoder(), AlphaChannel(), CrossAttentionMask())


def episodes(scale: Scale, device: str, count: int, references: int = 1, queries: int = 1, seed: int = 0) -> Any:
    """`count` random episodes of `references` references and one query each, as a model gets them.

    Args:
        queries: with `count` 1, more queries of the one context.

    Returns:
        An `EpisodeBatch` whose queries, seeds and so on have `count * queries` rows, its references `count`.
    """
    generator = torch.Generator().manual_seed(seed)
    side, rows = scale.picture, count * queries

    def pictures(*shape: int) -> Tensor:
        return torch.rand(*shape, 3, side, side, generator=generator) * 2 - 1

    batch: EpisodeBatch = {
        "query_image": pictures(rows),
        "query_mask": rectangles(rows, side, generator),
        "reference_image": pictures(count, references),
        "reference_mask": rectangles(count * references, side, generator).unflatten(0, (count, references)),
        "class_id": torch.ones(rows, dtype=torch.int64),
        "valid": torch.ones(rows, dtype=torch.bool),
        "seed": torch.arange(rows) + 1000 * seed,
        "meta": [],
    }
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def rectangles(count: int, side: int, generator: torch.Generator) -> Tensor:
    """(count, side, side) uint8: in each a rectangle of 1 that covers `LEAST_SHARE` to `MOST_SHARE` of it, else 0."""
    share, shape, top, left = torch.rand(4, count, generator=generator).unbind()
    share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * share
    aspect = 2 ** (2 * shape - 1)  # of height to width, 1/2 .. 2
    sizes = ((share * aspect).sqrt() * side).round(), ((share / aspect).sqrt() * side).round()
    inside = []
    for size, place in zip(sizes, (top, left), strict=True):
        start = (place * (side - size)).floor()[:, None]  # (count, 1)
        along = torch.arange(side)[None]
        inside.append((along >= start) & (along < start + size[:, None]))  # (count, side)
    return (inside[0][:, :, None] & inside[1][:, None, :]).to(torch.uint8)
