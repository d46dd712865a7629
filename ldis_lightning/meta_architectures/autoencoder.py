"""Training of the small autoencoder that the tiny scale is built on."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ldis_lightning.alignment import Augmented
from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.meta_architectures.base import EpisodeModule
from ldis_lightning.optim import LearningRateSchedule
from ldis_lightning.randomness import uniform


class AutoencoderTrainer(EpisodeModule):
    """Trains an `AutoencoderKL` on pictures and on pseudo-masks of all mixing ratios.

    A step reconstructs the pseudo-masks of all queries, `(1 - gamma) M_v + gamma I` with gamma 0 for about half of
    them and uniform up to `max_gamma` for the rest, and every second query itself: outlines need more practice than
    colours. The loss is the mean squared error of both, the cross-entropy of the decoded mask, and a small pull of the
    latents towards zero instead of a variational term: the latents are deterministic.

    Its score is the ceiling of every model on top of it: the mIoU of vanilla pseudo-masks after one round trip. At the
    end of `fit` the scaling factor is set so that latents have unit variance, and the autoencoder is written to
    `<log folder>/autoencoder` in diffusers' format, in half precision.

    Args:
        block_out_channels: channels of each level; n levels give a factor of 2 ** (n - 1).
        latent_channels: channels of a latent.
        layers_per_block: residual blocks of each level.
        norm_num_groups: groups of the group norms.
        max_gamma: largest share of the image in a pseudo-mask, in [0, 1).
        mask_weight: factor of the mask's cross-entropy.
        latent_weight: factor of the latents' mean square.
        optimizer, schedule: see `EpisodeModule`.
    """

    vae: Any
    latent_variance: Tensor

    def __init__(
        self,
        optimizer: OptimizerCallable,
        schedule: LearningRateSchedule,
        block_out_channels: tuple[int, ...] = (8, 16, 32, 64),
        latent_channels: int = 16,
        layers_per_block: int = 1,
        norm_num_groups: int = 2,
        max_gamma: float = 0.6,
        mask_weight: float = 1.5,
        latent_weight: float = 1e-3,
    ) -> None:
        super().__init__(optimizer, schedule)
        levels: Any = {  # diffusers types these as tuples of one
            "down_block_types": ("DownEncoderBlock2D",) * len(block_out_channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(block_out_channels),
            "block_out_channels": tuple(block_out_channels),
        }
        self.vae = AutoencoderKL(
            **levels,
            latent_channels=latent_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            mid_block_add_attention=False,
        )
        self.pseudo_mask = Augmented(gamma=0.0)
        self.max_gamma = max_gamma
        self.mask_weight = mask_weight
        self.latent_weight = latent_weight
        self.register_buffer("latent_variance", torch.ones(()))  # a running mean: a resumed run needs it

    def reconstruct(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode: (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), unscaled, and pictures (B, 3, H, W)."""
        latent = self.vae.encode(picture).latent_dist.mode()
        return latent, self.vae.decode(latent).sample

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """See the class."""
        image, mask, seed = batch["query_image"], batch["query_mask"] == 1, batch["seed"]
        draw = uniform(seed, "gamma", (2,))  # (B, 2)
        gamma = (self.max_gamma * draw[:, 0] * (draw[:, 1] < 0.5))[:, None, None, None]
        masked = (1 - gamma) * self.pseudo_mask.vanilla(mask) + gamma * image
        pictures = image[::2]
        latent, decoded = self.reconstruct(torch.cat([pictures, masked]))  # (1.5 B, ...)
        decoded, decoded_masks = decoded[: len(pictures)], decoded[len(pictures) :]
        logits = self.pseudo_mask.logits(decoded_masks - gamma * image, image)  # (B, H, W)
        terms = {
            "image": F.mse_loss(decoded, pictures),
            "pseudo_mask": F.mse_loss(decoded_masks, masked),
            "mask": F.binary_cross_entropy_with_logits(4 * logits, mask.float()),
        }
        with torch.no_grad():
            self.latent_variance.lerp_(latent.var(), 0.01)
        total = terms["image"] + terms["pseudo_mask"] + self.mask_weight * terms["mask"]
        return {"loss": total + self.latent_weight * latent.square().mean(), **terms}

    def round_trip(self, query: Tensor, mask: Tensor, seed: Tensor) -> Tensor:
        """See `EpisodeModule`."""
        picture = self.pseudo_mask.encode(mask, query, seed)
        return self.pseudo_mask.logits(self.reconstruct(picture)[1], query)

    def logits(self, batch: EpisodeBatch | ClipBatch) -> Tensor:
        """Logits of the queries' own masks after one round trip: what is scored."""
        return self.round_trip_logits(batch)

    def on_fit_end(self) -> None:
        """Set the scaling factor and write the autoencoder."""
        folder = self.trainer.log_dir or self.trainer.default_root_dir  # on every rank: it is a collective call
        if self.trainer.is_global_zero:
            self._write(Path(folder) / "autoencoder")

    def _write(self, folder: Path) -> None:
        self.vae.register_to_config(scaling_factor=round(float(self.latent_variance.rsqrt()), 5))
        deepcopy(self.vae).half().save_pretrained(folder, safe_serialization=True)
        rank_zero_info(f"The autoencoder is in {folder}")
