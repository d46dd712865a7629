"""What all LightningModules here share: optimiser, logging, metrics over episodes."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from ldis_lightning.alignment import PseudoMask
from ldis_lightning.checkpoints import check_fingerprints, fingerprints, keep_trained
from ldis_lightning.continuation import accumulated_gradients, restore_gradients, seed_of_step
from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.evaluation.scores import EpisodeScores, SetResult
from ldis_lightning.evaluation.scoring import Scoreboard, concept_masks, score
from ldis_lightning.execution import Execution
from ldis_lightning.instruction import ConcatenatedTokens, Instruction, InstructionExtractor, ReferenceFusion, compact
from ldis_lightning.instruction.tokens import repeated, separated
from ldis_lightning.latent import Autoencoder, Denoiser
from ldis_lightning.latent.denoiser import widen_unet_input
from ldis_lightning.latent.fine_tuning import FineTuning, FullFineTuning
from ldis_lightning.latent.sharding import shard
from ldis_lightning.optim import LearningRateSchedule

FEW_TOKENS = 256
"""One reference's in the paper. On an accelerator, so few are masked in training rather than dropped: dropping them
saves less than waiting for their count costs."""


class EpisodeModule(L.LightningModule):
    """A LightningModule that is trained on episodes and scored by its mask logits for the queries.

    Subclasses implement `training_loss`, `batch_logits` and, for clips, `clip_logits`.

    Args:
        optimizer: from parameters to an optimizer, e.g. `torch.optim.AdamW` with its learning rate.
        schedule: factor of the learning rate over the steps.

    Attributes:
        results: for each stage that has been scored (`val`, `test`), the result of each evaluation set.

    Logs `train/<loss>` in training and `<stage>/<set>/<score>` in evaluation, e.g. `test/novel/miou`. The sets and how
    they are scored are the datamodule's: `evaluation_names` and `scoreboard(stage, name)`.
    """

    def __init__(self, optimizer: OptimizerCallable, schedule: LearningRateSchedule) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.schedule = schedule
        self.results: dict[str, dict[str, SetResult]] = {}
        self._boards: dict[str, Scoreboard] = {}  # "<stage>/<set>" -> how it is scored
        self._scores = nn.ModuleDict()  # "<stage>/<set>" -> EpisodeScores
        self._seed: int | None = None  # of torch's own random numbers in training
        self._gradients: dict[str, Tensor] = {}  # of a checkpoint, until training starts

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Losses of a batch on the device: `"loss"` is what is minimised, the others are logged."""
        raise NotImplementedError(f"{type(self).__name__} must implement training_loss(batch)")

    def batch_logits(self, batch: EpisodeBatch) -> Tensor:
        """Mask logits of the queries: (B, H, W), foreground where > 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement batch_logits(batch)")

    def clip_logits(self, batch: ClipBatch) -> Tensor:
        """Mask logits of C concepts in F frames: (F, C, H, W), each concept by itself, foreground where > 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement clip_logits(batch)")

    def logits(self, batch: EpisodeBatch | ClipBatch) -> Tensor:
        """Mask logits of a batch: (B, H, W), or (F, C, H, W) of a clip's."""
        return self.clip_logits(batch) if "context" in batch else self.batch_logits(batch)

    def round_trip(self, query: Tensor, mask: Tensor, seed: Tensor) -> Tensor:
        """What the autoencoder leaves of true masks: as pseudo-masks through D(E(.)), and back to logits. It is the
        ceiling of every model that predicts such latents.

        Args:
            query: (B, 3, H, W) in [-1, 1].
            mask: (B, H, W) uint8 {0, 1, 255}.
            seed: (B,) int64.

        Returns:
            (B, H, W), foreground where > 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement round_trip(query, mask, seed)")

    def round_trip_logits(self, batch: EpisodeBatch | ClipBatch) -> Tensor:
        """`round_trip` of a batch's own masks, in the shape of `logits`."""
        if "context" not in batch:
            return self.round_trip(batch["query_image"], batch["query_mask"], batch["seed"])
        masks = concept_masks(batch["labels"], len(batch["class_id"]))  # (F, C, H, W)
        frames, concepts = masks.shape[:2]
        query = batch["query_image"].repeat_interleave(concepts, 0)  # (F*C, 3, H, W)
        return self.round_trip(query, masks.flatten(0, 1), batch["seed"].flatten()).unflatten(0, (frames, concepts))

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

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's hook: clip for a fused optimizer too. Lightning refuses that in all mixed precision, because such
        an optimizer would unscale gradients after they are clipped; in bfloat16 none are scaled."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Lightning's hook: free the gradients at once. Lightning does it after the next forward, whose activations
        would lie beside them."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad(set_to_none=True)

    # ---- To go on from a checkpoint exactly

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: keep what `ldis_lightning.continuation` is about."""
        checkpoint["draws"] = {"seed": self._seed}
        checkpoint["gradients"] = accumulated_gradients(self, self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook."""
        self._seed = checkpoint.get("draws", {}).get("seed")
        self._gradients = checkpoint.get("gradients", {})

    def on_train_start(self) -> None:
        """Lightning's hook: go on with the gradients of a checkpoint that was made before the optimiser's step."""
        if self._seed is None:
            self._seed = torch.initial_seed()
        restore_gradients(self, self._gradients)
        self._gradients = {}

    def on_train_batch_start(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Lightning's hook: what torch draws in a step follows from the step."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        done = progress.total.processed
        torch.manual_seed(seed_of_step(self._seed or 0, done, self.global_rank))

    # ---- Steps

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

    def validation_step(
        self, batch: EpisodeBatch | ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Score a batch; returns `{"logits": (B, H, W)}`, of a clip `(F, C, H, W)`, for callbacks."""
        return self._evaluation_step("val", batch, dataloader_idx)

    def test_step(self, batch: EpisodeBatch | ClipBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """As `validation_step`."""
        return self._evaluation_step("test", batch, dataloader_idx)

    def predict_step(
        self, batch: EpisodeBatch | ClipBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Returns `{"logits": ...}` as `validation_step`."""
        return {"logits": self.logits(batch)}

    def on_validation_epoch_end(self) -> None:
        """Compute, log and keep the results of the stage."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self._finish("test")

    def _evaluation_step(self, stage: str, batch: EpisodeBatch | ClipBatch, dataloader_idx: int) -> dict[str, Tensor]:
        logits = self.logits(batch)
        key = self._open_scores(stage, dataloader_idx)
        self._scores[key].update(*score(self._boards[key], logits, batch))  # pyright: ignore[reportCallIssue]
        return {"logits": logits}

    def _open_scores(self, stage: str, dataloader_idx: int) -> str:
        """The key of a set's scores, which are made when its first batch comes."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "scoreboard"):
            raise RuntimeError("evaluation needs a datamodule with `evaluation_names` and `scoreboard(stage, name)`")
        name = datamodule.evaluation_names[dataloader_idx]  # pyright: ignore[reportOptionalMemberAccess]
        key = f"{stage}/{name}"
        if key not in self._scores:
            board = self._boards[key] = datamodule.scoreboard(stage, name)  # pyright: ignore[reportOptionalMemberAccess]
            self._scores[key] = EpisodeScores(board.measure, board.table).to(self.device)
        return key

    def _finish(self, stage: str) -> None:
        scores: dict[str, EpisodeScores] = {
            key: value for key, value in self._scores.items() if key.startswith(f"{stage}/")
        }  # pyright: ignore
        self.results[stage] = {
            key.split("/", 1)[1]: metric.result(confidence=stage == "test") for key, metric in scores.items()
        }
        for name, result in self.results[stage].items():
            values = {f"{stage}/{name}/{score}": value for score, value in result.scores.items()}
            self.log_dict(values, sync_dist=self.trainer.world_size > 1)
        for key in scores:  # another datamodule may come next
            del self._scores[key], self._boards[key]


class InContextSegmenter(EpisodeModule):
    """What LDIS-1 and LDIS-n share: instruction, pseudo-mask, autoencoder, denoiser.

    Subclasses implement `training_loss(batch)` and `predict_logits(query, instruction, seed)`.

    Args:
        instruction: eq. 1.
        pseudo_mask: eqs. 2-4.
        autoencoder: frozen E and D.
        denoiser: recipe of the U-Net, built to fit the autoencoder's latents and the instruction's tokens.
        optimizer, schedule: see `EpisodeModule`.
        reference_fusion: how K references become one answer in evaluation; null for ConcatenatedTokens.
        fine_tuning: which of the U-Net's parameters train; null for FullFineTuning.
        execution: how it is carried out; null for Execution's defaults.
        conditions: channels of the U-Net's input beside those of the latent.

    What files hold and training does not change is not in a checkpoint (`ldis_lightning.checkpoints`).
    """

    def __init__(
        self,
        instruction: InstructionExtractor,
        pseudo_mask: PseudoMask,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        optimizer: OptimizerCallable,
        schedule: LearningRateSchedule,
        reference_fusion: ReferenceFusion | None = None,
        fine_tuning: FineTuning | None = None,
        execution: Execution | None = None,
        conditions: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule)
        self.instruction = instruction
        self.reference_fusion = reference_fusion or ConcatenatedTokens()
        self._context: tuple[str, Instruction] | None = None
        self.pseudo_mask = pseudo_mask
        self.autoencoder = autoencoder
        self.unet = widen_unet_input(denoiser.build(autoencoder.latent_channels, instruction.width), conditions)
        self.fine_tuning = fine_tuning or FullFineTuning()
        self.fine_tuning.apply(self.unet)
        self.execution = execution or Execution()
        self._configured = False
        self._fingerprints = fingerprints(self)
        keep_trained(self)

    def configure_model(self) -> None:
        """Lightning's hook: set up the execution, and shard what trains where the strategy has a device mesh."""
        if self._configured:  # a second fit of the same model, or a callback that wants it early
            return
        self._configured = True
        self.apply_execution(self._trainer.precision if self._trainer is not None else "32-true")
        if self.device_mesh is not None:
            for network in (self.unet, self.instruction.encoder):
                shard(network, self.device_mesh["data_parallel"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: also keep the fingerprints of the weights that are left out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["fingerprints"] = self._fingerprints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook.

        Raises:
            UserError: the frozen weights are others than in training.
        """
        check_fingerprints(checkpoint.get("fingerprints", {}), self._fingerprints)
        super().on_load_checkpoint(checkpoint)

    def apply_execution(self, precision: str) -> None:
        """Set up `execution` for a run of this precision, one of Lightning's names."""
        networks = (self.autoencoder, self.instruction.encoder)
        self.execution.apply(self.unet, networks, precision.startswith("bf16"))

    def encode_references(self, batch: EpisodeBatch | ClipBatch) -> Instruction:
        """The instruction of a batch's references; may be reused for any number of queries of the same references."""
        return self.instruction(batch["reference_image"], batch["reference_mask"])

    def attended(self, instruction: Instruction) -> Instruction:
        """The instruction without the tokens that nothing attends to, where dropping them is worth it."""
        tokens = instruction.tokens
        if self.training and tokens.device.type != "cpu" and tokens.shape[1] <= FEW_TOKENS:
            return instruction
        return compact(instruction)

    def denoise(self, latent: Tensor, timestep: Tensor | int, instruction: Instruction) -> Tensor:
        """One call of the U-Net: (B, C, h, w), (B,) or int, instruction of B rows -> (B, C_out, h, w)."""
        return self.unet(
            latent,
            timestep,
            encoder_hidden_states=instruction.tokens,
            encoder_attention_mask=instruction.attention_mask,
            return_dict=False,
        )[0]

    def predict_logits(
        self, query: Tensor, instruction: Instruction, seed: Tensor, query_of: Tensor | None = None
    ) -> Tensor:
        """Mask logits of queries. A query is encoded once, however many instructions it is asked with.

        Args:
            query: (Q, 3, H, W) in [-1, 1].
            instruction: of B rows.
            seed: (B,) int64, for what the sampler draws.
            query_of: (B,) int64, which query each row of the instruction is for; None where row i is for query i.

        Returns:
            (B, H, W), foreground where > 0.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement predict_logits(query, instruction, seed, query_of)"
        )

    def segment(
        self, query: Tensor, instruction: Instruction, references: int, seed: Tensor, query_of: Tensor | None = None
    ) -> Tensor:
        """`predict_logits` for instructions of K references each, which `reference_fusion` makes one answer of.

        Args:
            query, instruction, seed, query_of: see `predict_logits`.
            references: K.

        Returns:
            (B, H, W).
        """
        if references == 1 or not self.reference_fusion.separate:
            return self.predict_logits(query, instruction, seed, query_of)
        rows = torch.arange(len(seed), device=query.device) if query_of is None else query_of
        repeated = (seed.repeat_interleave(references), rows.repeat_interleave(references))  # (B*K,) each
        logits = self.predict_logits(query, separated(instruction, references), *repeated)  # (B*K, H, W)
        return self.reference_fusion.merge(logits.unflatten(0, (-1, references)))

    def batch_logits(self, batch: EpisodeBatch) -> Tensor:
        """See `EpisodeModule`."""
        references = batch["reference_image"].shape[1]
        return self.segment(batch["query_image"], self.encode_references(batch), references, batch["seed"])

    def clip_logits(self, batch: ClipBatch) -> Tensor:
        """See `EpisodeModule`. The references of a clip are encoded in its first step alone."""
        frames, concepts = batch["seed"].shape
        instruction = self._clip_instruction(batch)  # C rows
        every = repeated(instruction, frames)  # F*C rows
        query_of = torch.arange(frames, device=self.device).repeat_interleave(concepts)  # (F*C,)
        references = batch["reference_image"].shape[1]
        logits = self.segment(batch["query_image"], every, references, batch["seed"].flatten(), query_of)
        return logits.unflatten(0, (frames, concepts))

    def _clip_instruction(self, batch: ClipBatch) -> Instruction:
        if self._context is None or self._context[0] != batch["context"]:
            instruction = self.encode_references(batch)
            if not self.reference_fusion.separate:  # which tells references apart by their places
                instruction = compact(instruction)
            self._context = (batch["context"], instruction)
        return self._context[1]

    def forget(self) -> None:
        """Forget the last clip's references: they may have been encoded with other weights."""
        self._context = None

    def on_train_start(self) -> None:
        """Lightning's hook: see `forget`."""
        super().on_train_start()
        self.forget()

    def on_predict_start(self) -> None:
        """Lightning's hook: see `forget`."""
        self.forget()

    def on_validation_start(self) -> None:
        """Lightning's hook: see `forget`."""
        self.forget()

    def on_test_start(self) -> None:
        """Lightning's hook: see `forget`."""
        self.forget()

    def round_trip(self, query: Tensor, mask: Tensor, seed: Tensor) -> Tensor:
        """See `EpisodeModule`."""
        picture = self.pseudo_mask.encode(mask, query, seed)
        return self.decode_logits(self.autoencoder.encode(picture), query)

    def decode_logits(self, latent: Tensor, query: Tensor) -> Tensor:
        """Predicted pseudo-mask latents (B, C, h, w) and their queries (B, 3, H, W) -> logits (B, H, W)."""
        return self.pseudo_mask.logits(self.autoencoder.decode(latent), query)
