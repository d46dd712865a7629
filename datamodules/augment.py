"""What happens to a batch on the device: to [-1, 1], and photometric augmentation in training."""

import math
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.randomness import uniform

_RGB_TO_YIQ = [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]  # its first row is luma
_YIQ_TO_RGB = torch.linalg.inv(torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)).tolist()


Batch = TypeVar("Batch", EpisodeBatch, ClipBatch)


class Photometric:
    """Random brightness, contrast, saturation and hue, one draw for each picture of an episode.

    Everything follows from the episodes' seeds, so that the same episode looks the same wherever it is trained on.

    Args:
        brightness: colours are multiplied by 1 + U(-b, b).
        contrast: distances from the picture's mean grey are multiplied by 1 + U(-c, c).
        saturation: distances from each pixel's grey are multiplied by 1 + U(-s, s).
        hue: colours are turned by U(-h, h) of the colour circle, at constant luma; h <= 0.5.
        probability: of changing a picture at all.
        shared: draw once an episode, for its query and references alike. Needed where a colour is what makes a concept.
    """

    def __init__(
        self,
        brightness: float = 0.125,
        contrast: float = 0.5,
        saturation: float = 0.5,
        hue: float = 0.05,
        probability: float = 0.5,
        shared: bool = False,
    ) -> None:
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.probability, self.shared = probability, shared

    def __call__(self, query: Tensor, references: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Augment the pictures of B episodes.

        Args:
            query: (B, 3, H, W) in [0, 1].
            references: (B, K, 3, h, w) in [0, 1].
            seed: (B,) int64.

        Returns:
            query and references, shapes and range as given.
        """
        pictures = 1 + references.shape[1]
        active = self._draw(seed, "active", pictures) < self.probability
        amounts = {
            name: torch.where(active, (2 * self._draw(seed, name, pictures) - 1) * strength, 0)
            for name, strength in self._strengths().items()
        }  # each (B, 1 + K)
        query = self._change(query[:, None], {name: amount[:, :1] for name, amount in amounts.items()})[:, 0]
        references = self._change(references, {name: amount[:, 1:] for name, amount in amounts.items()})
        return query, references

    def _strengths(self) -> dict[str, float]:
        strengths = {name: getattr(self, name) for name in ("brightness", "contrast", "saturation", "hue")}
        return {name: strength for name, strength in strengths.items() if strength > 0}

    def _draw(self, seed: Tensor, name: str, pictures: int) -> Tensor:
        """(B, pictures) uniform numbers. Those of the first pictures stay the same when K grows."""
        draws = uniform(seed, f"photometric {name}", (1 if self.shared else pictures,))
        return draws.expand(-1, pictures)

    def _change(self, images: Tensor, amounts: dict[str, Tensor]) -> Tensor:
        """(B, P, 3, H, W) in [0, 1] and amounts (B, P) -> the same shape and range."""
        amount = {name: values[..., None, None, None] for name, values in amounts.items()}  # (B, P, 1, 1, 1)
        if "brightness" in amount:
            images = (images * (1 + amount["brightness"])).clamp(0, 1)
        if "contrast" in amount:
            mean = _mix(images, _RGB_TO_YIQ[:1]).mean((-2, -1), keepdim=True)
            images = (mean + (images - mean) * (1 + amount["contrast"])).clamp(0, 1)
        if "saturation" in amount:
            grey = _mix(images, _RGB_TO_YIQ[:1])
            images = (grey + (images - grey) * (1 + amount["saturation"])).clamp(0, 1)
        if "hue" in amount:
            images = _turn_hue(images, amount["hue"]).clamp(0, 1)
        return images


def to_model_range(batch: Batch, photometric: Photometric | None = None) -> Batch:
    """A batch whose images are float32 in [-1, 1] instead of uint8. Masks and everything else stay.

    Args:
        batch: as the loader made it, on any device. It is not changed.
        photometric: augmentation of the images; None in evaluation.
    """
    query, references = batch["query_image"] / 255, batch["reference_image"] / 255
    if photometric is not None:
        query, references = photometric(query, references, batch["seed"])
    return cast(Batch, {**batch, "query_image": query * 2 - 1, "reference_image": references * 2 - 1})


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate colours (..., 3, H, W) about the grey axis by turns (..., 1, 1, 1) of the circle, at constant luma."""
    luma, i, q = _mix(images, _RGB_TO_YIQ).split(1, dim=-3)
    cos, sin = torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)
    return _mix(torch.cat([luma, cos * i - sin * q, sin * i + cos * q], dim=-3), _YIQ_TO_RGB)


def _mix(images: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Weighted sums (..., len(weights), H, W) of the channels of (..., 3, H, W). Plain weights need no copy."""
    first, second, third = images.unbind(-3)
    return torch.stack([a * first + b * second + c * third for a, b, c in weights], dim=-3)
