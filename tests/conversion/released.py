"""What the authors of LDIS, of Alpha-CLIP and of Stable Diffusion released, tiny, and the models' maths written out."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from stable_diffusion import (
    ALPHA_CLIP,
    LATENT_CHANNELS,
    UNET,
    alpha_clip_state,
    write_alpha_clip,
    write_stable_diffusion,
)
from tiny import STABLE_DIFFUSION, seeded
from torch import Tensor

GRID = ALPHA_CLIP["img_size"] // ALPHA_CLIP["patch_size"]
SCHEDULER = {
    "class_path": "diffusers.DDIMScheduler",
    "init_args": {**STABLE_DIFFUSION, "clip_sample": False, "prediction_type": "epsilon"},
}


class Settings:
    """Stands for the objects that DeepSpeed saves beside the weights; no reader has its class."""


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def unet(query: bool = False, seed: int = 5) -> UNet2DConditionModel:
    """The authors': diffusers' U-Net with the projection of eq. 1 in it, and for LDIS-n the query's channels."""
    changes: dict[str, Any] = {"in_channels": LATENT_CHANNELS * (2 if query else 1)}
    width: dict[str, Any] = {"encoder_hid_dim": ALPHA_CLIP["embed_dim"], "encoder_hid_dim_type": "text_proj"}
    with seeded(seed):
        return UNet2DConditionModel(**(UNET | changes | width)).eval()


def write_deepspeed(path: Path, network: UNet2DConditionModel, **more: Any) -> Path:
    """DeepSpeed's `mp_rank_00_model_states.pt`: weights in bfloat16 below `module`, much else beside."""
    state = {name: tensor.bfloat16() for name, tensor in network.state_dict().items()}
    shapes = [{name: tensor.shape for name, tensor in state.items()}]
    content = {
        "module": state,
        "param_shapes": shapes,
        "optimizer": None,
        "ds_config": Settings(),
        "ds_version": "0.12",
    }
    torch.save(content | more, path)
    return path


def config_block(folder: Path, name: str = "LDIS1", **changes: Any) -> dict[str, Any]:
    """The `model:` block of a config on `sd/` and `alpha_clip.pth` in `folder`, which are written if missing."""
    if not (folder / "sd").exists():
        write_stable_diffusion(folder / "sd")
        write_alpha_clip(folder / "alpha_clip.pth")
    encoder = {"weights": str(folder / "alpha_clip.pth"), "model_args": ALPHA_CLIP}
    encoder["standardise"] = False  # the released code gives Alpha-CLIP its pictures in [-1, 1] as they are
    sd = {"path": str(folder / "sd")}
    instruction = {
        "encoder": {"class_path": "AlphaCLIPPromptEncoder", "init_args": encoder},
        "pre_mask": "AlphaChannel",
        "post_mask": "CrossAttentionMask",
    }
    own: dict[str, Any] = {"losses": [{"class_path": "LatentLoss"}]}
    if name == "LDISn":
        own = {"scheduler": SCHEDULER, "dropout": {"class_path": "ConditionDropout"}, "steps": 2}
        own["guidance"] = {"class_path": "DualGuidance"}
    arguments = {
        "instruction": {"class_path": "InstructionExtractor", "init_args": instruction},
        "pseudo_mask": {"class_path": "Vanilla"},
        "autoencoder": {"class_path": "PretrainedAutoencoder", "init_args": {**sd, "subfolder": "vae"}},
        "denoiser": {"class_path": "PretrainedUNet", "init_args": {**sd, "subfolder": "unet"}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "OneCycle"},
        **own,
    }
    return {"class_path": name, "init_args": arguments | changes}


def write_model_config(path: Path, block: dict[str, Any]) -> str:
    """A config with this model, and what `--config` takes."""
    path.write_text(yaml.safe_dump({"model": block, "data": {"image_size": 32}}), encoding="utf-8")
    return str(path)


def clip_tokens(image: Tensor, mask: Tensor) -> Tensor:
    """Alpha-CLIP's visual tower, written out: (N, 3, S, S) in [-1, 1] and (N, S, S) in {0, 1} -> (N, g*g, C)."""
    state = alpha_clip_state()
    width, heads, patch = ALPHA_CLIP["embed_dim"], ALPHA_CLIP["num_heads"], ALPHA_CLIP["patch_size"]
    x = F.conv2d(image, state["conv1.weight"], stride=patch)
    x = x + F.conv2d(((mask - 0.5) / 0.26)[:, None], state["conv1_alpha.weight"], stride=patch)
    x = x.flatten(2).transpose(1, 2)  # (N, g*g, C)
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], 1) + state["positional_embedding"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm(x, "ln_pre")
    for layer in range(ALPHA_CLIP["depth"]):
        block = f"transformer.resblocks.{layer}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))  # (N, heads, T, C/heads)
        weight = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        x = x + linear((weight @ v).transpose(1, 2).flatten(2), f"{block}.attn.out_proj")
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        x = x + linear(hidden * torch.sigmoid(1.702 * hidden), f"{block}.mlp.c_proj")
    return x[:, 1:]


def attended(tokens: Tensor, mask: Tensor) -> Tensor:
    """The tokens (1, g*g, C) that lie on the mask (1, S, S), which fills whole cells of the grid: (1, n, C)."""
    cells = F.max_pool2d(mask[:, None], mask.shape[-1] // GRID).flatten() > 0
    return tokens[:, cells]


def reported_logits(
    network: UNet2DConditionModel, vae: AutoencoderKL, query: Tensor, image: Tensor, mask: Tensor
) -> Tensor:
    """LDIS-1 on one query (1, 3, H, W), with one reference (1, 3, S, S) and its mask (1, S, S): (1, H, W)."""
    scale = 0.18215
    tokens = attended(clip_tokens(image, mask), mask)
    latent = vae.encode(query).latent_dist.mode() * scale  # pyright: ignore
    picture = vae.decode(network(latent, 0, tokens).sample / scale).sample  # pyright: ignore
    return picture[:, 1] - picture[:, 0]
