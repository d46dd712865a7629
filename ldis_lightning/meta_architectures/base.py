"""What all LightningModules here share: optimiser, logging, metrics over episodes."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from ldis_lightning.alignment import PseudoMask
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.evaluation.metrics import EpisodeIoU, SetResult
from ldis_lightning.evaluation.scoring import score_batch
from ldis_lightning.instruction import Instruction, InstructionExtractor
from ldis_lightning.latent import Autoencoder, Denoiser
from ldis_lightning.optim import LearningRateSchedule


class EpisodeModule(L.LightningModule):
    """A LightningModule that is trained on episodes and scored by its mask logits for the queries.

    Subclasses implement `training_loss` and `batch_logits`.

    Args:
        optimizer: from parameters to an optimizer, e.g. `torch.optim.AdamW` with its learning rate.
        schedule: factor of the learning rate over the steps.

    Attributes:
        results: for each stage that has been scored (`val`, `test`), the result of each evaluation set.

    Logs `train/<loss>` in training and `<stage>/<set>/miou`, `<stage>/<set>/fb_iou` in evaluation. The sets' names
    come from the datamodule's `evaluation_names`; without one they are "0", "1", ...
    """

    def __init__(self, optimizer: OptimizerCallable, schedule: LearningRateSchedule) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.schedule = schedule
        self.results: dict[str, dict[str, SetResult]] = {}
        self._metrics = nn.ModuleDict()  # "<stage>/<set>" -> EpisodeIoU

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Losses of a batch on the device: `"loss"` is what is minimised, the others are logged."""
        raise NotImplementedError(f"{type(self).__name__} must implement training_loss(batch)")

    def batch_logits(self, batch: EpisodeBatch) -> Tensor:
        """Mask logits of the queries: (B, H, W), foreground where > 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement batch_logits(batch)")

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that the optimiser gets."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer over the trainable parameters and the schedule, stepped once an optimiser step."""
        optimizer = self.optimizer(self.trainable_parameters())
        total = self.trainer.max_steps
        if total < 1 and (self.trainer.max_epochs or -1) > 0:
            total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """One step; logs every loss."""
        losses = self.training_loss(batch)
        self.log_dict(
            {f"train/{name}": value for name, value in losses.items()},
            prog_bar=True,
            batch_size=len(batch["class_id"]),
            sync_dist=self.trainer.world_size > 1,
        )
        return losses["loss"]

    def validation_step(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Score a batch of an evaluation set; returns `{"logits": (B, H, W)}` for callbacks to look at."""
        return self._evaluation_step("val", batch, dataloader_idx)

    def test_step(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As `validation_step`."""
        return self._evaluation_step("test", batch, dataloader_idx)

    def predict_step(self, batch: EpisodeBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Returns `{"logits": (B, H, W)}`."""
        return {"logits": self.batch_logits(batch)}

    def on_validation_epoch_end(self) -> None:
        """Compute, log and keep the results of the stage."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._finish("test")

    def episode_metrics(self, stage: str) -> dict[str, EpisodeIoU]:
        """The metric of each evaluation set of a stage, by the set's name."""
        return {
            key.split("/", 1)[1]: metric  # pyright: ignore[reportReturnType]
            for key, metric in self._metrics.items()
            if key.split("/", 1)[0] == stage
        }

    def _evaluation_step(self, stage: str, batch: EpisodeBatch, dataloader_idx: int) -> dict[str, Tensor]:
        logits = self.batch_logits(batch)  # (B, H, W)
        score_batch(self._metric(stage, dataloader_idx), logits, batch)
        return {"logits": logits}

    def _metric(self, stage: str, dataloader_idx: int) -> EpisodeIoU:
        names = getattr(getattr(self.trainer, "datamodule", None), "evaluation_names", None)
        key = f"{stage}/{names[dataloader_idx] if names else dataloader_idx}"
        if key not in self._metrics:
            self._metrics[key] = EpisodeIoU().to(self.device)
        return self._metrics[key]  # pyright: ignore[reportReturnType]

    def _finish(self, stage: str) -> None:
        self.results[stage] = {name: metric.result() for name, metric in self.episode_metrics(stage).items()}
        for name, result in self.results[stage].items():
            self.log(f"{stage}/{name}/miou", result.miou, sync_dist=self.trainer.world_size > 1)
            self.log(f"{stage}/{name}/fb_iou", result.fb_iou, sync_dist=self.trainer.world_size > 1)
        for metric in self.episode_metrics(stage).values():
            metric.reset()


class InContextSegmenter(EpisodeModule):
    """What LDIS-1 and LDIS-n share: instruction, pseudo-mask, autoencoder, denoiser.

    Subclasses implement `training_loss(batch)` and `predict_logits(query, instruction, seed)`.

    Args:
        instruction: eq. 1.
        pseudo_mask: eqs. 2-4.
        autoencoder: frozen E and D.
        denoiser: recipe of the U-Net, built to fit the autoencoder's latents and the instruction's tokens.
        optimizer, schedule: see `EpisodeModule`.
    """

    def __init__(
        self,
        instruction: InstructionExtractor,
        pseudo_mask: PseudoMask,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        optimizer: OptimizerCallable,
        schedule: LearningRateSchedule,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.instruction = instruction
        self.pseudo_mask = pseudo_mask
        self.autoencoder = autoencoder
        self.unet = denoiser.build(autoencoder.latent_channels, instruction.width)

    def encode_references(self, batch: EpisodeBatch) -> Instruction:
        """The instruction of a batch's references; may be reused for any number of queries of the same references."""
        return self.instruction(batch["reference_image"], batch["reference_mask"])

    def denoise(self, latent: Tensor, timestep: Tensor | int, instruction: Instruction) -> Tensor:
        """One call of the U-Net: (B, C, h, w), (B,) or int, instruction of B rows -> (B, C_out, h, w)."""
        return self.unet(
            latent,
            timestep,
            encoder_hidden_states=instruction.tokens,
            encoder_attention_mask=instruction.attention_mask,
            return_dict=False,
        )[0]

    def predict_logits(self, query: Tensor, instruction: Instruction, seed: Tensor) -> Tensor:
        """Mask logits of queries.

        Args:
            query: (B, 3, H, W) in [-1, 1].
            instruction: of B rows.
            seed: (B,) int64, for what the sampler draws.

        Returns:
            (B, H, W), foreground where > 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement predict_logits(query, instruction, seed)")

    def batch_logits(self, batch: EpisodeBatch) -> Tensor:
        """See `EpisodeModule`."""
        return self.predict_logits(batch["query_image"], self.encode_references(batch), batch["seed"])

    def decode_logits(self, latent: Tensor, query: Tensor) -> Tensor:
        """Predicted pseudo-mask latents (B, C, h, w) and their queries (B, 3, H, W) -> logits (B, H, W)."""
        return self.pseudo_mask.logits(self.autoencoder.decode(latent), query)
