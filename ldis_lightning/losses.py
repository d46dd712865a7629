"""Losses of LDIS-1 between prediction and pseudo-mask: in latent space, in pixel space, on the decoded logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldis_lightning.episode import IGNORE_INDEX


@dataclass
class Alignment:
    """A prediction beside its target; decoding is put off until a loss asks for it, and done once.

    Attributes:
        latent: predicted latent z~ (B, C, h, w).
        target_latent: E(M) (B, C, h, w).
        target_picture: M (B, 3, H, W) in [-1, 1].
        mask: (B, H, W) uint8 {0, 1, 255}.
        valid: (B,) bool; other episodes count nowhere.
        decode: D, from latents to pictures.
        to_logits: from decoded pictures to logits (B, H, W).
    """

    latent: Tensor
    target_latent: Tensor
    target_picture: Tensor
    mask: Tensor
    valid: Tensor
    decode: Callable[[Tensor], Tensor]
    to_logits: Callable[[Tensor], Tensor]

    @cached_property
    def picture(self) -> Tensor:
        """D(z~): (B, 3, H, W), about in [-1, 1]."""
        return self.decode(self.latent)

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the decoded picture: (B, H, W), foreground where > 0."""
        return self.to_logits(self.picture)

    @cached_property
    def counted(self) -> Tensor:
        """(B, H, W) float {0, 1}: pixels that a loss in pixel space counts."""
        return ((self.mask != IGNORE_INDEX) & self.valid[:, None, None]).float()

    def mean_of_valid(self, per_episode: Tensor) -> Tensor:
        """Mean of (B,) over the valid episodes; 0 where there is none."""
        weight = self.valid.float()
        return (per_episode * weight).sum() / weight.sum().clamp_min(1)


class AlignmentLoss(nn.Module):
    """Base class of the loss slot of LDIS-1.

    Args:
        weight: factor of this loss in the sum.

    Subclasses implement `forward(alignment) -> ()`, a mean over the valid episodes. Their class name is the name in
    the logs.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, alignment: Alignment) -> Tensor:
        """See the class."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(alignment)")


class LatentLoss(AlignmentLoss):
    """|| E(M) - z~ ||^2 (eq. 6), the mean over the elements of the latent."""

    def forward(self, alignment: Alignment) -> Tensor:
        """See `AlignmentLoss`."""
        squared = (alignment.latent - alignment.target_latent).square().flatten(1).mean(1)  # (B,)
        return alignment.mean_of_valid(squared)


class PixelLoss(AlignmentLoss):
    """|| M - D(z~) ||^2 (eq. 5), the mean over counted pixels and channels, through the frozen decoder."""

    def forward(self, alignment: Alignment) -> Tensor:
        """See `AlignmentLoss`."""
        squared = (alignment.picture - alignment.target_picture).square().mean(1)  # (B, H, W)
        return alignment.mean_of_valid(_mean_of_counted(squared, alignment.counted))


class DiceCrossEntropy(AlignmentLoss):
    """Dice (Milletari et al., 2016) plus binary cross-entropy on the decoded logits; beyond the paper.

    Args:
        weight: factor of the sum of both.
        dice: factor of the dice loss in it.
        cross_entropy: factor of the cross-entropy in it.
        temperature: the logits, which lie about in [-2, 2], are multiplied by this.
    """

    def __init__(
        self, weight: float = 1.0, dice: float = 1.0, cross_entropy: float = 1.0, temperature: float = 4.0
    ) -> None:
        super().__init__(weight)
        self.dice = dice
        self.cross_entropy = cross_entropy
        self.temperature = temperature

    def forward(self, alignment: Alignment) -> Tensor:
        """See `AlignmentLoss`."""
        logits = alignment.logits * self.temperature  # (B, H, W)
        counted, target = alignment.counted, (alignment.mask == 1).float()
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        probability = torch.sigmoid(logits) * counted
        overlap = (probability * target).sum((1, 2))
        dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + (target * counted).sum((1, 2)) + 1)  # (B,)
        return alignment.mean_of_valid(self.dice * dice + self.cross_entropy * _mean_of_counted(entropy, counted))


def _mean_of_counted(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over pixels: (B, H, W) and weights (B, H, W) -> (B,)."""
    return (values * counted).sum((1, 2)) / counted.sum((1, 2)).clamp_min(1)
