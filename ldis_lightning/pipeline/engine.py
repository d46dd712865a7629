"""What a pipeline computes: squares of queries and a context in, logits out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.scoring import restore_logits
from ldis_lightning.imaging.squares import fit_square, to_model_range
from ldis_lightning.instruction import Instruction, compact
from ldis_lightning.instruction.tokens import repeated, stacked
from ldis_lightning.meta_architectures import DualGuidance, LDISn
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.pipeline.context import Context
from ldis_lightning.pipeline.inputs import Pixels
from ldis_lightning.pipeline.results import Segmentation
from ldis_lightning.pipeline.settings import Settings

DTYPES = (torch.float32, torch.bfloat16)


class Engine:
    """A model that computes for one caller at a time.

    Args:
        model: in evaluation mode.
        image_size: side S of the squares that it sees, in pixels.

    Attributes:
        rounded: the weights have been held in less than float32, and are no longer those that were trained.
    """

    def __init__(self, model: InContextSegmenter, image_size: int) -> None:
        self.model = model
        self.image_size = image_size
        self.dtype = torch.float32
        self.rounded = False
        self.lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.unet.device

    def cast(self, dtype: torch.dtype) -> None:
        """Hold the networks in a dtype.

        Raises:
            UserError: it is none of `DTYPES`.
        """
        if dtype not in DTYPES:
            raise UserError(f"torch_dtype: {' or '.join(map(str, DTYPES))}, not {dtype}.")
        if dtype != self.dtype:
            for network in (self.model.unet, self.model.autoencoder, self.model.instruction.encoder):
                nn.Module.to(network, dtype)  # diffusers' own warns of what autocast takes care of
        self.dtype = dtype
        self.rounded = self.rounded or dtype != torch.float32

    def instruction(self, images: Tensor, masks: Tensor) -> Instruction:
        """Of one concept: its K references (1, K, 3, S, S) in [-1, 1] and masks (1, K, S, S) uint8 {0, 1}.

        Its tokens are float32 in any dtype, so that they can be used after a cast.
        """
        with self.lock, self.computing():
            instruction = self.model.instruction(images.to(self.device), masks.to(self.device))
            instruction = instruction._replace(tokens=instruction.tokens.float())
            # Where every reference gives an answer of its own, they are told apart by their places.
            return instruction if self.model.reference_fusion.separate else compact(instruction)

    def squares(self, pictures: Sequence[Pixels]) -> Tensor:
        """Pictures (H, W, 3) uint8 of any sizes -> (N, 3, S, S) in [-1, 1] on the device."""
        cut = [fit_square(picture.shape[:2], self.image_size).image(picture, self.image_size) for picture in pictures]
        squares = torch.stack([torch.from_numpy(square.copy()).permute(2, 0, 1) for square in cut])
        return to_model_range(squares.to(self.device))

    def restored(self, logits: Tensor, size: tuple[int, ...]) -> Tensor:
        """(C, S, S) of a picture of a size (H0, W0) -> (C, H0, W0) float32 on the host."""
        crop = fit_square(size, self.image_size)
        return restore_logits(logits, (0, 0, crop.height, crop.width), size).cpu()

    def logits(
        self,
        squares: Tensor,
        context: Context,
        settings: Settings,
        results: Callable[[Tensor], list[Segmentation]] | None = None,
    ) -> Tensor:
        """(Q, 3, S, S) -> (Q, C, S, S). `results` makes what `settings.on_step` is told."""
        fuses_answers = self.model.reference_fusion.separate
        at_once = 1 if fuses_answers else settings.batch_size  # references of different number cannot be fused together
        parts = []
        for start in range(0, len(context), at_once):
            instruction = stacked(context.parts[start : start + at_once])
            parts.append(self._logits_of(squares, instruction, context.references[start], settings, results))
        return torch.cat(parts, 1)

    def _logits_of(
        self, squares: Tensor, instruction: Any, references: int, settings: Settings, results: Any
    ) -> Tensor:
        queries, concepts = len(squares), len(instruction.tokens)
        every = repeated(instruction, queries)  # Q*C rows
        query_of = torch.arange(queries, device=self.device).repeat_interleave(concepts)
        seed = torch.full((queries * concepts,), settings.seed, device=self.device)

        def told(step: int, steps: int, logits: Tensor) -> None:
            assert settings.on_step is not None
            settings.on_step(step, steps, results(logits.unflatten(0, (queries, concepts))))

        watch = told if settings.on_step is not None and results is not None else None
        with self.lock, self._sampling(settings, watch, squares, query_of), self.computing():
            logits = self.model.segment(squares, every, references, seed, query_of)
        return logits.float().unflatten(0, (queries, concepts))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, nothing is kept for gradients, and networks compute in the dtype."""
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        with torch.inference_mode(), autocast:
            yield

    @contextmanager
    def _sampling(self, settings: Settings, watch: Any, squares: Tensor, query_of: Tensor) -> Iterator[None]:
        """Inside, the sampler has the settings' steps and guidance, and tells `watch` of its steps."""
        model = self.model
        if not isinstance(model, LDISn):
            yield
            return
        own = model.steps, model.guidance, model.on_step
        model.steps = settings.steps or own[0]
        model.guidance = DualGuidance(*settings.guidance) if settings.guidance is not None else own[1]
        if watch is not None:
            model.on_step = lambda step, latent: watch(
                step, model.steps, model.decode_logits(latent, squares[query_of]).float()
            )
        try:
            yield
        finally:
            model.steps, model.guidance, model.on_step = own
