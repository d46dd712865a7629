"""Boundary matching of the DAVIS benchmark, as integer counts (Perazzi et al., 2016; Pont-Tuset et al., 2017).

The definition is that of the official `davis2017-evaluation`, to the last pixel: a mask's boundary is a map of single
pixels, and a boundary pixel is matched where the other mask's boundary has a pixel within a disk.
"""

import math

import torch
from torch import Tensor

TOLERANCE = 0.008
"""Radius of the disk as a share of the image diagonal."""


def boundary_counts(prediction: Tensor, truth: Tensor) -> Tensor:
    """Boundary pixels of two masks and how many of each are matched, without host-device synchronisation.

    Args:
        prediction: (B, H, W) bool.
        truth: (B, H, W) bool.

    Returns:
        (B, 4) int64: predicted and true boundary pixels, matched predicted and matched true ones.
    """
    edges = boundary(torch.stack([prediction, truth]))  # (2, B, H, W)
    predicted, true = edges
    near_predicted, near_true = dilate(edges, disk_radius(*truth.shape[-2:]))
    parts = [predicted, true, predicted & near_true, true & near_predicted]
    return torch.stack([part.sum((1, 2)) for part in parts], 1)  # (B, 4)


def disk_radius(height: int, width: int) -> int:
    """ceil(0.008 * diagonal), in pixels."""
    return math.ceil(TOLERANCE * math.sqrt(height**2 + width**2))


def boundary(mask: Tensor) -> Tensor:
    """The pixels of a mask that differ from their neighbour to the right, below, or to the right and below.

    So a boundary is one pixel wide and lies half a pixel up and to the left of where the segment ends. Along the last
    row and column only the neighbour inside the image is compared; the last corner never is on a boundary.

    Args:
        mask: (..., H, W) bool.

    Returns:
        (..., H, W) bool.
    """
    edge = torch.zeros_like(mask)
    right = mask[..., :, :-1] ^ mask[..., :, 1:]  # (..., H, W-1)
    below = mask[..., :-1, :] ^ mask[..., 1:, :]  # (..., H-1, W)
    edge[..., :, :-1] |= right
    edge[..., :-1, :] |= below
    edge[..., :-1, :-1] |= mask[..., :-1, :-1] ^ mask[..., 1:, 1:]
    return edge


def dilate(mask: Tensor, radius: int) -> Tensor:
    """The pixels with a pixel of the mask at most `radius` away (Euclidean); nothing lies beyond the image.

    The disk is taken apart into rows: the mask is widened along x one pixel at a time, and at each width that a row of
    the disk has, moved to that row. This takes 4 * radius + 2 passes of `|=` whatever the mask, on any device.

    Args:
        mask: (..., H, W) bool.
        radius: >= 0.

    Returns:
        (..., H, W) bool.
    """
    dilated, widened, reach = torch.zeros_like(mask), mask.clone(), 0
    for offset in range(radius, -1, -1):
        while reach < math.isqrt(radius**2 - offset**2):
            reach += 1
            _add_moved(widened, mask, reach, dim=-1)
        _add_moved(dilated, widened, offset, dim=-2)
    return dilated


def _add_moved(total: Tensor, mask: Tensor, offset: int, dim: int) -> None:
    """total |= mask moved by `offset` pixels along `dim`, to one side and to the other."""
    kept = max(mask.shape[dim] - offset, 0)
    start = mask.shape[dim] - kept
    total.narrow(dim, start, kept).bitwise_or_(mask.narrow(dim, 0, kept))
    total.narrow(dim, 0, kept).bitwise_or_(mask.narrow(dim, start, kept))
