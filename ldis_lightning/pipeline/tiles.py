"""Large pictures piece by piece: where overlapping tiles lie, and one answer out of theirs."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

OVERLAP = 0.25
"""Of a tile's side."""


def tile_boxes(size: tuple[int, int], side: int) -> list[tuple[int, int, int, int]]:
    """Tiles that cover a picture (height, width), row by row: top, left, height, width of each, in pixels.

    All are of one size, `side` or the picture's where that is less, and overlap by a quarter of it at least.
    """
    height, width = (min(length, side) for length in size)
    return [
        (top, left, height, width) for top in _starts(size[0], height, side) for left in _starts(size[1], width, side)
    ]


def _starts(length: int, tile: int, side: int) -> Iterator[int]:
    step = max(1, side - math.ceil(side * OVERLAP))
    count = -(-(length - tile) // step) + 1
    for number in range(count):
        yield round(number * (length - tile) / max(1, count - 1))


class Blend:
    """The answer of a picture as its tiles' answers come in: their mean, weighted down towards the tiles' edges.

    Memory is that of the picture's own logits, however many tiles there are.

    Args:
        concepts: C.
        size: (H0, W0) of the picture.
    """

    def __init__(self, concepts: int, size: tuple[int, int]) -> None:
        self._sum = torch.zeros(concepts, *size)
        self._weight = torch.zeros(size)

    def add(self, box: tuple[int, int, int, int], logits: Tensor) -> None:
        """A tile's answer (C, height, width), on any device."""
        top, left, height, width = box
        weight = _ramp(height)[:, None] * _ramp(width)  # (height, width)
        self._sum[:, top : top + height, left : left + width] += logits.cpu() * weight
        self._weight[top : top + height, left : left + width] += weight

    def result(self) -> Tensor:
        """(C, H0, W0). To be called once, at the end."""
        return self._sum.div_(self._weight)


def _ramp(length: int) -> Tensor:
    """Weights from the edges (above 0) to the middle (1): (length,)."""
    places = torch.arange(length)
    return torch.minimum(places + 1, length - places) / ((length + 1) // 2)
