"""LDIS-1: one call of the denoiser turns the query's latent into the pseudo-mask's (METHOD section 3)."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ldis_lightning.alignment import PseudoMask
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.errors import UserError
from ldis_lightning.instruction import Instruction, InstructionExtractor, ReferenceFusion
from ldis_lightning.latent import Autoencoder, Denoiser
from ldis_lightning.losses import Alignment, AlignmentLoss
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.optim import LearningRateSchedule
from ldis_lightning.randomness import normal


class LDIS1(InContextSegmenter):
    """The one-step meta-architecture.

    The input latent is `z_t = sqrt(abar_t) z_q + sqrt(1 - abar_t) eps`, the output is the pseudo-mask's latent itself.

    Args:
        losses: their weighted sum is minimised; the paper uses `LatentLoss` (eq. 6) or `PixelLoss` (eq. 5).
        timestep: t in [0, 999]; the denoiser is told it and, with `add_noise`, the input is noised to it. The released
            code uses 0.
        add_noise: noise the query's latent; False leaves `z_t = z_q` at any timestep, as the released code does.
        instruction, pseudo_mask, autoencoder, denoiser, optimizer, schedule, reference_fusion: see
            `InContextSegmenter`.

    Raises:
        UserError: `timestep` is out of range or there is no loss.
    """

    signal: Tensor
    noise: Tensor

    def __init__(
        self,
        instruction: InstructionExtractor,
        pseudo_mask: PseudoMask,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        losses: list[AlignmentLoss],
        optimizer: OptimizerCallable,
        schedule: LearningRateSchedule,
        timestep: int = 0,
        add_noise: bool = False,
        reference_fusion: ReferenceFusion | None = None,
    ) -> None:
        super().__init__(instruction, pseudo_mask, autoencoder, denoiser, optimizer, schedule, reference_fusion)
        if not 0 <= timestep <= 999:
            raise UserError(f"model.timestep: must be in 0 .. 999, got {timestep}.")
        if not losses:
            raise UserError("model.losses: name at least one loss, e.g. LatentLoss.")
        self.losses = nn.ModuleList(losses)
        self.timestep = timestep
        self.add_noise = add_noise
        # Stable Diffusion's noise schedule.
        abar = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod[timestep]
        self.register_buffer("signal", abar.sqrt(), persistent=False)
        self.register_buffer("noise", (1 - abar).sqrt(), persistent=False)

    def predict_latent(
        self, query: Tensor, instruction: Instruction, seed: Tensor, query_of: Tensor | None = None
    ) -> Tensor:
        """z~, the predicted pseudo-mask latent (B, C, h, w); arguments as in `predict_logits`."""
        # The encoder's distribution is sampled in training only: a prediction should not depend on chance.
        latent = self.autoencoder.encode(query, seed if self.training else None)  # (Q, C, h, w)
        latent = latent if query_of is None else latent[query_of]  # (B, C, h, w)
        if self.add_noise:
            latent = self.signal * latent + self.noise * normal(seed, "ldis1", tuple(latent.shape[1:]))
        return self.denoise(latent, self.timestep, instruction)

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """The weighted sum of the losses, and each by its class name (the last of a class)."""
        query, mask, seed = batch["query_image"], batch["query_mask"], batch["seed"]
        picture = self.pseudo_mask.encode(mask, query, seed)  # (B, 3, H, W)
        alignment = Alignment(
            latent=self.predict_latent(query, self.encode_references(batch), seed),
            target_latent=self.autoencoder.encode(picture, seed + 1),  # another draw than the query's
            target_picture=picture,
            mask=mask,
            valid=batch["valid"],
            decode=self.autoencoder.decode,
            to_logits=lambda decoded: self.pseudo_mask.logits(decoded, query),
        )
        values = [loss(alignment) for loss in self.losses]
        total = torch.stack([loss.weight * value for loss, value in zip(self.losses, values, strict=True)]).sum()  # pyright: ignore
        return {"loss": total, **{type(loss).__name__: value for loss, value in zip(self.losses, values, strict=True)}}

    def predict_logits(
        self, query: Tensor, instruction: Instruction, seed: Tensor, query_of: Tensor | None = None
    ) -> Tensor:
        """See `InContextSegmenter`."""
        latent = self.predict_latent(query, instruction, seed, query_of)
        return self.decode_logits(latent, query if query_of is None else query[query_of])
