"""LDIS-1: one call of the denoiser turns the query's latent into the pseudo-mask's (METHOD section 3)."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ldis_lightning.alignment import PseudoMask
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.errors import UserError
from ldis_lightning.execution import Execution
from ldis_lightning.instruction import Instruction, InstructionExtractor, ReferenceFusion
from ldis_lightning.latent import Autoencoder, Denoiser
from ldis_lightning.latent.fine_tuning import FineTuning
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
        instruction, pseudo_mask, autoencoder, denoiser, optimizer, schedule, reference_fusion, fine_tuning, execution:
            see `InContextSegmenter`.

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
        fine_tuning: FineTuning | None = None,
        execution: Execution | None = None,
    ) -> None:
        super().__init__(
            instruction,
            pseudo_mask,
            autoencoder,
            denoiser,
            optimizer,
            schedule,
            reference_fusion,
            fine_tuning,
            execution,
        )
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

    def predict_latent(self, latent: Tensor, instruction: Instruction, seed: Tensor) -> Tensor:
        """z~, the predicted pseudo-mask latent, of the query's: (B, C, h, w) and instruction of B rows -> (B, C, h, w).

        `seed` (B,) int64 draws the noise.
        """
        if self.add_noise:
            latent = self.signal * latent + self.noise * normal(seed, "ldis1", tuple(latent.shape[1:]))
        return self.denoise(latent, self.timestep, self.attended(instruction))

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """The weighted sum of the losses, and each by its class name (the last of a class)."""
        query, mask, seed = batch["query_image"], batch["query_mask"], batch["seed"]
        picture = self.pseudo_mask.encode(mask, query, seed)  # (B, 3, H, W)
        # Two draws of the encoder's distributions: the target's is another than the query's.
        latent, target = self.autoencoder.encode_together([query, picture], [seed, seed + 1])  # (B, C, h, w) each
        alignment = Alignment(
            latent=self.predict_latent(latent, self.encode_references(batch), seed),
            target_latent=target,
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
        latent = self.autoencoder.encode(query)  # (Q, C, h, w), the mode: a prediction should not depend on chance
        if query_of is not None:
            latent, query = latent[query_of], query[query_of]  # (B, ...)
        return self.decode_logits(self.predict_latent(latent, instruction, seed), query)
