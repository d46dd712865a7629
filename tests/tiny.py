"""Tiny seeded parts of a model and random batches, from which the tests of the model side are built."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from ldis_lightning.alignment import Augmented, Vanilla
from ldis_lightning.episode import ClipBatch, EpisodeBatch, EpisodeMeta
from ldis_lightning.evaluation.measures import EpisodeTable, Measure, RegionIoU
from ldis_lightning.evaluation.scoring import Scoreboard
from ldis_lightning.instruction import (
    AlphaChannel,
    CrossAttentionMask,
    InstructionExtractor,
    PostMask,
    PreMask,
    TimmPromptEncoder,
)
from ldis_lightning.latent import Autoencoder, ScratchUNet
from ldis_lightning.losses import LatentLoss
from ldis_lightning.meta_architectures import LDIS1, ConditionDropout, DualGuidance, LDISn
from ldis_lightning.optim import OneCycle

PICTURE = 32
"""Side of queries and references, in pixels; latents are 4 x 8 x 8."""
PROMPT = 16
"""Side of the prompt encoder's input, in pixels; its token grid is 4 x 4."""
STABLE_DIFFUSION: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Random numbers inside follow from `seed`; those outside go on as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def stable_diffusion_abar() -> Tensor:
    """Stable Diffusion's alpha-bar, written out: betas are linear in their square roots. (1000,) float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def autoencoder(sample: bool = False) -> Autoencoder:
    """Factor 4, 4 latent channels, and a scaling factor that no test can overlook."""
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 4, 8),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "scaling_factor": 0.4,
    }
    with seeded():
        return Autoencoder(AutoencoderKL(**config), sample)


def prompt_encoder(trainable: bool = True, **model_args: Any) -> TimmPromptEncoder:
    """A transformer of one layer: (N, 3 + 1, 16, 16) -> (N, 16, 8)."""
    sizes = {"img_size": PROMPT, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, **model_args}
    with seeded(1):
        return TimmPromptEncoder(trainable=trainable, model_args=sizes)


def extractor(
    pre_mask: PreMask | None = None, post_mask: PostMask | None = None, trainable: bool = True
) -> InstructionExtractor:
    """Two-stage masking as in the paper, unless told otherwise."""
    return InstructionExtractor(
        prompt_encoder(trainable), pre_mask or AlphaChannel(), post_mask or CrossAttentionMask()
    )


def denoiser() -> ScratchUNet:
    return ScratchUNet((8, 16), attention_head_dim=8, cross_attention_dim=8, norm_num_groups=4)


def unet(token_width: int = 8) -> UNet2DConditionModel:
    with seeded(2):
        return denoiser().build(4, token_width)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def ldis1(**changes: Any) -> LDIS1:
    parts = {
        "instruction": extractor(),
        "pseudo_mask": Vanilla(),
        "autoencoder": autoencoder(),
        "denoiser": denoiser(),
        "losses": [LatentLoss()],
        "optimizer": adam,
        "schedule": OneCycle(),
    }
    with seeded(2):
        return LDIS1(**(parts | changes))


def ldisn(**changes: Any) -> LDISn:
    parts = {
        "instruction": extractor(),
        "pseudo_mask": Augmented(0.4),
        "autoencoder": autoencoder(),
        "denoiser": denoiser(),
        "scheduler": DDIMScheduler(clip_sample=False, **STABLE_DIFFUSION),
        "dropout": ConditionDropout(),
        "guidance": DualGuidance(),
        "optimizer": adam,
        "schedule": OneCycle(),
        "steps": 3,
    }
    with seeded(2):
        return LDISn(**(parts | changes))


def noisy_conv_in(module: LDISn) -> LDISn:
    """The same model with weights for the query latent, which start at zero and would hide what is done with it."""
    with seeded(3), torch.no_grad():
        module.unet.conv_in.weight[:, 4:] = torch.randn(8, 4, 3, 3)
    return module


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """(*shape) uniform in [-1, 1]."""
    with seeded(seed):
        return torch.rand(*shape) * 2 - 1


def masks(count: int, size: int = PICTURE, seed: int = 0) -> Tensor:
    """(count, size, size) uint8: a rectangle of 1, a stripe of 255, else 0."""
    mask = torch.zeros(count, size, size, dtype=torch.uint8)
    with seeded(seed):
        corners = torch.randint(1, size // 2, (count, 2))
    for i, (top, left) in enumerate(corners.tolist()):
        mask[i, top : top + size // 3, left : left + size // 2] = 1
    mask[:, :, -2:] = 255
    return mask


def batch(count: int = 3, references: int = 1, seed: int = 0) -> EpisodeBatch:
    """A random batch as it is on the device, all of it valid."""
    meta: list[EpisodeMeta] = [
        {
            "dataset": "tiny",
            "query_key": f"query-{i}",
            "reference_keys": [f"reference-{i}-{k}" for k in range(references)],
            "class_name": f"class-{i % 2}",
            "clip": "",
            "frame": -1,
            "original_size": (PICTURE, PICTURE),
            "content": (0, 0, PICTURE, PICTURE),
        }
        for i in range(count)
    ]
    return {
        "query_image": pictures(count, 3, PICTURE, PICTURE, seed=10 * seed),
        "query_mask": masks(count, seed=10 * seed + 1),
        "reference_image": pictures(count, references, 3, PICTURE, PICTURE, seed=10 * seed + 2),
        "reference_mask": masks(count * references, seed=10 * seed + 3).unflatten(0, (count, references)),
        "class_id": torch.arange(count) % 2 + 1,
        "valid": torch.ones(count, dtype=torch.bool),
        "seed": 1000 * seed + 7 * torch.arange(count),
        "meta": meta,
        "position": torch.arange(count),
    }


def in_double(batch: Any) -> Any:
    """In double precision rounding cannot pass for a dependence, nor the other way round."""
    return batch | {name: batch[name].double() for name in ("query_image", "reference_image")}


def rows(episodes: EpisodeBatch, keep: slice) -> EpisodeBatch:
    """Some episodes of a batch, as a batch."""
    return {key: value[keep] for key, value in episodes.items()}  # pyright: ignore


def clip(frames: int = 2, concepts: int = 2, references: int = 1, seed: int = 0, name: str = "clip") -> ClipBatch:
    """A random step of a clip as it is on the device, all of it valid; its references follow from its name alone."""
    own = sum(name.encode())
    labels = masks(frames, seed=100 * seed)
    labels[labels == 1] += torch.arange(int((labels == 1).sum())).to(torch.uint8) % concepts  # every concept somewhere
    meta: list[EpisodeMeta] = [
        {
            "dataset": "tiny",
            "query_key": f"{name}.{frame:05d}",
            "reference_keys": [f"{name}.00000"],
            "class_name": "",
            "clip": name,
            "frame": frame,
            "original_size": (PICTURE, PICTURE),
            "content": (0, 0, PICTURE, PICTURE),
        }
        for frame in range(1 + frames * seed, 1 + frames * seed + frames)
    ]
    return {
        "query_image": pictures(frames, 3, PICTURE, PICTURE, seed=100 * seed + 1),
        "reference_image": pictures(concepts, references, 3, PICTURE, PICTURE, seed=own),
        "reference_mask": masks(concepts * references, seed=own + 1).unflatten(0, (concepts, references)),
        "class_id": torch.arange(concepts) + 1,
        "position": torch.arange(frames * concepts).view(frames, concepts),
        "seed": 1000 * seed + 7 * torch.arange(frames * concepts).view(frames, concepts),
        "valid": torch.ones(frames, dtype=torch.bool),
        "labels": labels,
        "labels_original": list(labels),
        "meta": meta,
        "class_names": [f"class-{i}" for i in range(concepts)],
        "label_values": list(range(1, concepts + 1)),
        "context": name,
    }


def board(
    class_ids: list[int], clips: list[int] | None = None, size: int | None = None, measure: Measure | None = None
) -> Scoreboard:
    """How a set of such episodes is scored: by IoU, unless told otherwise."""
    table = EpisodeTable(np.array(class_ids, np.int64), np.array(clips or [-1] * len(class_ids), np.int64))
    return Scoreboard(measure or RegionIoU(), table, size)
