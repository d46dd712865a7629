"""Files in the formats of Stable Diffusion 1.5 and Alpha-CLIP, small enough to be written by a test."""

import os
from pathlib import Path
from typing import Any

import tiny
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

LATENT_CHANNELS = 4
UNET: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,  # the number of heads, for historical reasons
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "sample_size": 8,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (4, 4, 4, 8),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 2,
    "scaling_factor": 0.18215,
}
ALPHA_CLIP: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
"""What `AlphaCLIPPromptEncoder(model_args=...)` takes for the file that `write_alpha_clip` writes."""


def write_stable_diffusion(folder: str | os.PathLike[str], unet: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """Write `folder`/{unet, vae, scheduler, model_index.json}: a U-Net of 52,000 parameters without projection, an
    autoencoder of factor 8 with 4 latent channels, Stable Diffusion's noise schedule.

    Args:
        unet: changes to the U-Net's config, e.g. `{"in_channels": 8}`.
        seed: of the weights.
    """
    folder = Path(folder)
    with tiny.seeded(seed):
        UNet2DConditionModel(**(UNET | (unet or {}))).save_pretrained(folder / "unet")
        AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    DDPMScheduler(clip_sample=False, steps_offset=1, **tiny.STABLE_DIFFUSION).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],'
        ' "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDPMScheduler"]}\n'
    )
    return folder


def alpha_clip_state(sizes: dict[str, Any] | None = None, seed: int = 0, output: int = 6) -> dict[str, Tensor]:
    """A visual tower as Alpha-CLIP's authors release it: their names, every tensor random.

    Args:
        sizes: changes to `ALPHA_CLIP`.
        seed: of the weights.
        output: width of the projection after the last norm, which an instruction does not use.
    """
    size = ALPHA_CLIP | (sizes or {})
    width, patch = size["embed_dim"], size["patch_size"]
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": ((size["img_size"] // patch) ** 2 + 1, width),
        "proj": (width, output),
        "conv1.weight": (width, 3, patch, patch),
        "conv1_alpha.weight": (width, 1, patch, patch),
        **dict.fromkeys(("ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias"), (width,)),
    }
    for layer in range(size["depth"]):
        block = f"transformer.resblocks.{layer}."
        shapes |= {
            f"{block}attn.in_proj.weight": (3 * width, width),
            f"{block}attn.in_proj.bias": (3 * width,),
            f"{block}attn.out_proj.weight": (width, width),
            f"{block}attn.out_proj.bias": (width,),
            f"{block}mlp.c_fc.weight": (4 * width, width),
            f"{block}mlp.c_fc.bias": (4 * width,),
            f"{block}mlp.c_proj.weight": (width, 4 * width),
            f"{block}mlp.c_proj.bias": (width,),
            **dict.fromkeys(
                (f"{block}{norm}.{part}" for norm in ("ln_1", "ln_2") for part in ("weight", "bias")), (width,)
            ),
        }
    with tiny.seeded(seed):
        return {name: 0.5 * torch.randn(shape) for name, shape in shapes.items()}


def write_alpha_clip(path: str | os.PathLike[str], sizes: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """Write an Alpha-CLIP checkpoint (.pth); see `alpha_clip_state`. Build it with `model_args=ALPHA_CLIP | sizes`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(alpha_clip_state(sizes, seed), path)
    return path
