"""LDIS-n: the pseudo-mask's latent is denoised in many guided steps, conditioned on the query's latent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ldis_lightning.alignment import PseudoMask
from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.errors import UserError
from ldis_lightning.execution import Execution
from ldis_lightning.instruction import Instruction, InstructionExtractor, ReferenceFusion, compact
from ldis_lightning.instruction.tokens import stacked, where
from ldis_lightning.latent import Autoencoder, Denoiser
from ldis_lightning.latent.constant_tokens import constant_tokens
from ldis_lightning.latent.fine_tuning import FineTuning
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.optim import LearningRateSchedule
from ldis_lightning.randomness import integers, normal, uniform


class Dropped(NamedTuple):
    """Which conditions are dropped, both (B,) bool."""

    instruction: Tensor
    query: Tensor


class ConditionDropout:
    """Condition dropout of training, from one uniform draw u a sample.

    u < 2p drops the instruction, p <= u < 3p drops the query; so [0, p) only the instruction, [p, 2p) both, [2p, 3p)
    only the query.

    Args:
        p: in [0, 1/3]; the paper's is 0.05.
    """

    def __init__(self, p: float = 0.05) -> None:
        if not 0 <= p <= 1 / 3:
            raise UserError(f"model.dropout.p: must be in [0, 1/3], got {p}.")
        self.p = p

    def __call__(self, u: Tensor) -> Dropped:
        """(B,) in [0, 1) -> what is dropped."""
        return Dropped(instruction=u < 2 * self.p, query=(u >= self.p) & (u < 3 * self.p))


class DualGuidance:
    """Guidance by query and instruction (eq. 10).

    `e = e(0,0) + g_q (e(z_q,0) - e(0,0)) + g_tau (e(z_q,tau) - e(z_q,0))`

    Args:
        query: g_q.
        instruction: g_tau. With both 1 the result is e(z_q, tau), and that alone is computed.
    """

    def __init__(self, query: float = 1.5, instruction: float = 7.0) -> None:
        self.query = query
        self.instruction = instruction

    @property
    def needed(self) -> bool:
        """Whether the unconditional predictions are needed at all."""
        return not (self.query == self.instruction == 1)

    def __call__(self, neither: Tensor, query_only: Tensor, both: Tensor) -> Tensor:
        """e(0,0), e(z_q,0), e(z_q,tau), each (B, C, h, w) -> the guided prediction (B, C, h, w)."""
        return neither + self.query * (query_only - neither) + self.instruction * (both - query_only)


class LDISn(InContextSegmenter):
    """The multi-step meta-architecture.

    The U-Net's input is the noisy pseudo-mask latent beside the query latent; the channels of the latter are added to
    `conv_in` with zero weights. What the U-Net predicts (epsilon or v) is the scheduler's `prediction_type`.

    Args:
        scheduler: any diffusers scheduler with `alphas_cumprod`; its noise schedule trains, its `step` samples.
        steps: sampling steps, >= 1.
        dropout: condition dropout in training.
        guidance: guidance in sampling.
        scale_query: multiply the query latent by the autoencoder's scaling factor; the released code does not.
        null_keeps_mask: the null instruction is attended to through the sample's own attention mask, as in the
            released code; False attends to all of it.
        instruction, pseudo_mask, autoencoder, denoiser, optimizer, schedule, reference_fusion, fine_tuning, execution:
            see `InContextSegmenter`.

    Attributes:
        on_step: told after every sampling step its number, from 1 on, and the latent (B, C, h, w) that the sampler
            expects by then; None for nobody.

    Raises:
        UserError: the scheduler has no `alphas_cumprod` or predicts something else than epsilon, v or the sample.
    """

    abar: Tensor

    def __init__(
        self,
        instruction: InstructionExtractor,
        pseudo_mask: PseudoMask,
        autoencoder: Autoencoder,
        denoiser: Denoiser,
        scheduler: SchedulerMixin,
        dropout: ConditionDropout,
        guidance: DualGuidance,
        optimizer: OptimizerCallable,
        schedule: LearningRateSchedule,
        steps: int = 20,
        scale_query: bool = False,
        null_keeps_mask: bool = True,
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
            conditions=autoencoder.latent_channels,
        )
        self.scheduler = scheduler
        self.prediction_type = _checked_prediction_type(scheduler)
        self.register_buffer("abar", scheduler.alphas_cumprod.clone(), persistent=False)  # pyright: ignore
        self.dropout = dropout
        self.guidance = guidance
        self.steps = steps
        self.scale_query = scale_query
        self.null_keeps_mask = null_keeps_mask
        self.on_step: Callable[[int, Tensor], object] | None = None

    def condition_on(self, latent: Tensor) -> Tensor:
        """What the U-Net sees of a query beside the noisy latent: its latent (B, C, h, w), scaled or as it was."""
        return latent if self.scale_query else latent / self.autoencoder.scaling_factor

    def null_instruction(self, instruction: Instruction) -> Instruction:
        """What replaces a dropped instruction: of as many rows as `instruction`."""
        return self.instruction.null(instruction, keep_mask=self.null_keeps_mask)

    def drop_conditions(self, instruction: Instruction, query: Tensor, seed: Tensor) -> tuple[Instruction, Tensor]:
        """Condition dropout: instruction of B rows and query latents (B, C, h, w), with the dropped rows replaced."""
        dropped = self.dropout(uniform(seed, "condition_dropout"))
        return (
            where(dropped.instruction, self.null_instruction(instruction), instruction),
            query.masked_fill(dropped.query[:, None, None, None], 0.0),
        )

    def training_loss(self, batch: EpisodeBatch) -> dict[str, Tensor]:
        """Mean squared error of the predicted noise, v or sample (eq. 9), with t uniform."""
        query, seed = batch["query_image"], batch["seed"]
        picture = self.pseudo_mask.encode(batch["query_mask"], query, seed)  # (B, 3, H, W)
        # The query's is the mode of its distribution.
        clean, latent = self.autoencoder.encode_together([picture, query], [seed, None])  # (B, C, h, w) each
        noise = normal(seed, "noise", tuple(clean.shape[1:]))
        timestep = integers(seed, "timestep", len(self.abar))  # (B,)
        signal, sigma = self._levels(timestep)
        noisy = signal * clean + sigma * noise
        condition = self.condition_on(latent)
        instruction, condition = self.drop_conditions(self.encode_references(batch), condition, seed)
        prediction = self.denoise(torch.cat([noisy, condition], 1), timestep, self.attended(instruction))
        target = {"epsilon": noise, "v_prediction": signal * noise - sigma * clean, "sample": clean}[
            self.prediction_type
        ]
        error = F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)  # (B,)
        weight = batch["valid"].to(error)
        return {"loss": (error * weight).sum() / weight.sum().clamp_min(1)}

    @torch.no_grad()
    def sample_latent(
        self, query: Tensor, instruction: Instruction, seed: Tensor, query_of: Tensor | None = None
    ) -> Tensor:
        """Sample the pseudo-mask's latent from pure noise; arguments as in `predict_logits` -> (B, C, h, w)."""
        condition = self.condition_on(self.autoencoder.encode(query))  # (Q, C, h, w)
        condition = condition if query_of is None else condition[query_of]  # (B, C, h, w)
        if self.guidance.needed:  # in the order of eq. 10: e(0,0), e(z_q,0), e(z_q,tau)
            null = self.null_instruction(instruction)
            condition = torch.cat([torch.zeros_like(condition), condition, condition])  # (3B, C, h, w)
            instruction = stacked([null, null, instruction])
        instruction = compact(instruction)
        self.scheduler.set_timesteps(self.steps, device=query.device)  # pyright: ignore[reportAttributeAccessIssue]
        latent = normal(seed, "sampling", (self.autoencoder.latent_channels, *condition.shape[2:]))
        latent = latent * self.scheduler.init_noise_sigma  # pyright: ignore[reportAttributeAccessIssue]
        extra = self._step_arguments(seed)
        copies = len(condition) // len(latent)
        with nullcontext() if self.execution.compile else constant_tokens(self.unet):
            for number, timestep in enumerate(self.scheduler.timesteps, start=1):  # pyright: ignore
                scaled = self.scheduler.scale_model_input(latent, timestep)  # pyright: ignore
                noisy = torch.cat([scaled.repeat(copies, 1, 1, 1), condition], 1)
                prediction = self.denoise(noisy, timestep, instruction)
                if self.guidance.needed:
                    prediction = self.guidance(*prediction.chunk(3))
                done = self.scheduler.step(prediction, timestep, latent, **extra)  # pyright: ignore
                latent = done.prev_sample
                if self.on_step is not None:
                    expected = getattr(done, "pred_original_sample", None)
                    self.on_step(number, latent if expected is None else expected)
        return latent

    def predict_logits(
        self, query: Tensor, instruction: Instruction, seed: Tensor, query_of: Tensor | None = None
    ) -> Tensor:
        """See `InContextSegmenter`."""
        latent = self.sample_latent(query, instruction, seed, query_of)
        return self.decode_logits(latent, query if query_of is None else query[query_of])

    def _levels(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t): (B,) -> twice (B, 1, 1, 1)."""
        abar = self.abar[timestep].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def _step_arguments(self, seed: Tensor) -> dict[str, list[torch.Generator]]:
        """A stochastic scheduler draws with generators of the episodes' own, so that no result depends on the batch."""
        if "generator" not in inspect.signature(self.scheduler.step).parameters:  # pyright: ignore
            return {}
        return {"generator": [torch.Generator().manual_seed(int(s)) for s in seed.tolist()]}


def _checked_prediction_type(scheduler: SchedulerMixin) -> str:
    """`prediction_type` of a scheduler that LDIS-n can train with."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(f"model.scheduler: {name} has no alphas_cumprod; use e.g. DDPMScheduler or DDIMScheduler.")
    prediction_type = scheduler.config.get("prediction_type", "epsilon")  # pyright: ignore[reportAttributeAccessIssue]
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"model.scheduler.prediction_type: '{prediction_type}' is not epsilon, v_prediction or sample.")
    return prediction_type
