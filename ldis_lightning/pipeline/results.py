"""What a pipeline says of a query, at the query's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray

from ldis_lightning.evaluation.fusion import concept_probabilities, fuse_concepts


@dataclass(frozen=True)
class Segmentation:
    """One query's result. All but the logits is computed when it is asked for.

    Attributes:
        concept_logits: (C, H0, W0) float32, each concept by itself, foreground where > 0.
        names: of the C concepts; one empty name where a concept was given without one.
        threshold: logit above which a pixel is a concept's.
        picture: (H0, W0, 3) uint8, the query upright.
        source: the query as it was given.
    """

    concept_logits: NDArray[np.float32]
    names: tuple[str, ...]
    threshold: float
    picture: NDArray[np.uint8] = field(repr=False)
    source: Any = field(default=None, repr=False)

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """(H0, W0): 0 none, c the c-th concept, by eq. 7 of the method: the greatest logit above the threshold."""
        logits = torch.from_numpy(self.concept_logits)
        if self.threshold:
            logits = logits - self.threshold
        return fuse_concepts(logits[None])[0].numpy()

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(H0, W0) of a concept without a name, else (C, H0, W0); no pixel is in two of them."""
        if self.names == ("",):
            return self.labels == 1
        return self.labels == np.arange(1, len(self.names) + 1, dtype=np.uint8)[:, None, None]

    @property
    def logits(self) -> NDArray[np.float32]:
        """In the shape of `masks`: each concept by itself."""
        return self._shaped(self.concept_logits)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """In the shape of `masks`: p_c of eq. 7 in [0, 1]. What they lack to 1 is the background's."""
        return self._shaped(concept_probabilities(torch.from_numpy(self.concept_logits)[None])[0, 1:].numpy())

    def _shaped(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values[0] if self.names == ("",) else values


@dataclass
class SegmentationOutput(BaseOutput):
    """The results of a list of queries, in its order. Arrays are numpy's, at each query's own size (H0, W0).

    Attributes:
        masks: bool (H0, W0); (C, H0, W0) where concepts were given by name, no pixel in two of them.
        logits: float32 in the same shape, each concept by itself, foreground where > 0.
        probabilities: float32 in the same shape, p_c of eq. 7.
        labels: uint8 (H0, W0), 0 none, c the c-th concept.
    """

    masks: list[NDArray[np.bool_]]
    logits: list[NDArray[np.float32]]
    probabilities: list[NDArray[np.float32]]
    labels: list[NDArray[np.uint8]]

    @classmethod
    def of(cls, results: Sequence[Segmentation]) -> SegmentationOutput:
        """Several results in one."""
        return cls(
            masks=[result.masks for result in results],
            logits=[result.logits for result in results],
            probabilities=[result.probabilities for result in results],
            labels=[result.labels for result in results],
        )
