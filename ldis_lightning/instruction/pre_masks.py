"""Pre-masking, the first stage of the two-stage masking: how the mask enters the prompt encoder's input."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA_MEAN, ALPHA_STD = 0.5, 0.26
"""Normalisation of the alpha channel in Alpha-CLIP (Sun et al., CVPR 2024)."""


class Prompt(NamedTuple):
    """What the prompt encoder sees of N references."""

    image: Tensor  # (N, 3, S, S) in [-1, 1]
    alpha: Tensor  # (N, 1, S, S), normalised; all zero = the mask says nothing
    mask: Tensor  # (N, S, S) in {0, 1}: the mask in the geometry of `image`, for post-masking


class PreMask(nn.Module):
    """Base class of the pre-masking slot: turn a reference and its mask into the prompt encoder's input.

    Subclasses implement `forward(image, mask) -> Prompt` with `image` (N, 3, S, S) float in [-1, 1] and `mask` (N, S,
    S) float in {0, 1}, both already at the encoder's input size S.
    """

    def forward(self, image: Tensor, mask: Tensor) -> Prompt:
        """See the class."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward(image, mask) -> Prompt")


class NoPreMasking(PreMask):
    """The encoder sees the whole reference and nothing of the mask."""

    def forward(self, image: Tensor, mask: Tensor) -> Prompt:
        """See `PreMask`."""
        return Prompt(image, torch.zeros_like(mask)[:, None], mask)


class PixelProduct(PreMask):
    """Background pixels are set to 0, the middle of [-1, 1]: `I * M`."""

    def forward(self, image: Tensor, mask: Tensor) -> Prompt:
        """See `PreMask`."""
        return Prompt(image * mask[:, None], torch.zeros_like(mask)[:, None], mask)


class AlphaChannel(PreMask):
    """The mask is a fourth input channel, `(m - 0.5) / 0.26`, as in Alpha-CLIP; the paper's choice."""

    def forward(self, image: Tensor, mask: Tensor) -> Prompt:
        """See `PreMask`."""
        return Prompt(image, ((mask - ALPHA_MEAN) / ALPHA_STD)[:, None], mask)


class CropToMask(PreMask):
    """The reference is cropped to the mask's bounding box plus a margin, made square and resized back to S x S.

    Args:
        margin: width added on each side, as a share of the box's longer side, >= 0.
        min_size: smallest side of the crop as a share of S, in (0, 1], so that a speck is not blown up to noise.

    What lies outside the picture is 0 in the image and background in the mask. An empty mask keeps the whole picture.
    """

    def __init__(self, margin: float = 0.1, min_size: float = 0.25) -> None:
        super().__init__()
        self.margin = margin
        self.min_size = min_size

    def forward(self, image: Tensor, mask: Tensor) -> Prompt:
        """See `PreMask`."""
        low, high = bounding_boxes(mask)  # (N, 2) each, in [-1, 1], (x, y)
        centre = (low + high) / 2
        half = (high - low).amax(1) * (0.5 + self.margin)
        half = half.clamp(self.min_size, 1.0)  # (N,)
        theta = torch.zeros(len(mask), 2, 3, device=image.device, dtype=image.dtype)
        theta[:, 0, 0] = theta[:, 1, 1] = half
        theta[:, :, 2] = centre * (half < 1)[:, None]  # a crop as large as the picture is the picture
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        cropped = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        cropped_mask = F.grid_sample(mask[:, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)
        return Prompt(cropped, torch.zeros_like(cropped_mask), cropped_mask[:, 0])


def bounding_boxes(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of masks in the coordinates of `torch.nn.functional.affine_grid`: -1 left or top, 1 right or bottom edge.

    Args:
        mask: (N, H, W) in {0, 1}.

    Returns:
        Low and high corner, each (N, 2) as (x, y). An empty mask has the whole picture as its box.
    """
    empty = ~mask.flatten(1).any(1)

    def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:  # (N, L) bool
        length = occupied.shape[1]
        first = occupied.float().argmax(1)
        last = length - occupied.flip(1).float().argmax(1)
        low, high = first * (2 / length) - 1, last * (2 / length) - 1
        return low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)

    left, right = extent(mask.any(1))
    top, bottom = extent(mask.any(2))
    return torch.stack([left, top], 1), torch.stack([right, bottom], 1)
