"""Pipelines of random weights, and pictures for them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny import PICTURE, PROMPT, STABLE_DIFFUSION, ldis1, ldisn, noisy_conv_in, seeded

from ldis_lightning.conversion.building import build, read_spec
from ldis_lightning.conversion.folder import write_folder
from ldis_lightning.pipeline import InContextSegmentationPipeline

SIZES = {"img_size": PROMPT, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
UNET = {"block_out_channels": [8, 16], "attention_head_dim": 8, "cross_attention_dim": 8, "norm_num_groups": 4}
ENCODER = {"class_path": "ldis_lightning.instruction.TimmPromptEncoder", "init_args": {"model_args": SIZES}}
MODEL: dict[str, Any] = {
    "class_path": "ldis_lightning.meta_architectures.LDIS1",
    "init_args": {
        "instruction": {
            "class_path": "ldis_lightning.instruction.InstructionExtractor",
            "init_args": {
                "encoder": ENCODER,
                "pre_mask": "ldis_lightning.instruction.AlphaChannel",
                "post_mask": "ldis_lightning.instruction.CrossAttentionMask",
            },
        },
        "pseudo_mask": "ldis_lightning.alignment.Vanilla",
        "autoencoder": "ldis_lightning.latent.TinyAutoencoder",
        "denoiser": {"class_path": "ldis_lightning.latent.ScratchUNet", "init_args": UNET},
        "losses": ["ldis_lightning.losses.LatentLoss"],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "schedule": "ldis_lightning.optim.OneCycle",
    },
}
SAMPLER = {"class_path": "diffusers.DDIMScheduler", "init_args": {**STABLE_DIFFUSION, "clip_sample": False}}


def one_step(**changes: Any) -> InContextSegmentationPipeline:
    return InContextSegmentationPipeline(ldis1(**changes), PICTURE)


def many_steps(**changes: Any) -> InContextSegmentationPipeline:
    return InContextSegmentationPipeline(noisy_conv_in(ldisn(**changes)), PICTURE)


def model_block(steps: bool = False) -> dict[str, Any]:
    """The `model:` block of a config, LDIS-1's or LDIS-n's."""
    if not steps:
        return MODEL
    arguments = {key: value for key, value in MODEL["init_args"].items() if key != "losses"}
    parts = {"scheduler": SAMPLER, "steps": 2}
    for name in ("ConditionDropout", "DualGuidance"):
        key = {"ConditionDropout": "dropout", "DualGuidance": "guidance"}[name]
        parts[key] = {"class_path": f"ldis_lightning.meta_architectures.{name}"}
    return {"class_path": "ldis_lightning.meta_architectures.LDISn", "init_args": arguments | parts}


def write_model(folder: Path, steps: bool = False) -> Path:
    """A folder as `ldis convert` writes it, with random weights. Its pictures have 64 pixels."""
    spec = read_spec([model_block(steps)])
    with seeded():
        write_folder(build(spec), spec, 64, folder)
    return folder


def picture(height: int = 40, width: int = 30, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3): smooth noise, of which something is left when it is scaled."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def mask(height: int = 40, width: int = 30) -> NDArray[np.uint8]:
    """(height, width) in {0, 255}: a rectangle."""
    marked = np.zeros((height, width), np.uint8)
    marked[height // 4 : height // 2, width // 3 : 2 * width // 3] = 255
    return marked
