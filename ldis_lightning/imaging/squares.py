"""Squares of one size, cut out of pictures of any size, on the host and in uint8.

Every cut is a `Crop`: scale the picture, then cut a square that may reach beyond it. Only the square is computed.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.imaging.jpeg import DIVISORS, Jpeg
from ldis_lightning.imaging.pictures import MID_GREY

ENLARGE = 1.2
"""How much a picture that was decoded at a fraction of its size may be enlarged."""

_OFF_GRID = 1 / 16  # of a pixel of the picture that is resized: so far from the grid its scaled part may begin
_ROUNDING = 1e-9


class Crop(NamedTuple):
    """The picture is scaled to height x width, and a square is cut whose corner is at (top, left) of it, in pixels."""

    height: int
    width: int
    top: int = 0
    left: int = 0

    def image(self, image: np.ndarray | Jpeg, size: int) -> np.ndarray:
        """Cut the square out of a picture: bilinear with antialiasing, mid-grey beyond the borders.

        A JPEG that the crop makes much smaller is decoded at a fraction of its size, which takes less time; the
        square is then nearly the same. An array is always taken as it is.

        Args:
            image: (H, W, 3) uint8, or a JPEG.
            size: side of the square.

        Returns:
            (size, size, 3) uint8; the picture itself where the crop changes nothing.

        Raises:
            UserError: the JPEG is damaged.
        """
        shape, divisor = image.shape[:2], 1
        if isinstance(image, Jpeg):
            shrunk = min(ENLARGE * shape[0] / self.height, ENLARGE * shape[1] / self.width)
            divisor = max(d for d in DIVISORS if d <= max(1, shrunk))
            image = image.decode(divisor)
        if shape == (size, size) and self == (size, size, 0, 0):
            return image
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + size, self.height), min(self.left + size, self.width)
        if shape == (self.height, self.width):
            part = image[top:bottom, left:right]
        else:
            rows = _Stretch(top, bottom, shape[0] / divisor / self.height, image.shape[0])
            columns = _Stretch(left, right, shape[1] / divisor / self.width, image.shape[1])
            part = _resized(image, rows, columns)
        whole = part.shape[:2] == (size, size)
        planes = np.empty((3, size, size), np.uint8) if whole else np.full((3, size, size), MID_GREY, np.uint8)
        square = planes.transpose(1, 2, 0)  # in memory channel by channel, as in a batch
        square[top - self.top : bottom - self.top, left - self.left : right - self.left] = part
        return square

    def labels(self, labels: np.ndarray, size: int) -> np.ndarray:
        """Cut the square out of a label map: nearest pixel, ignored beyond the borders.

        Args:
            labels: (H, W) uint8.
            size: side of the square.

        Returns:
            (size, size) uint8; the label map itself where the crop changes nothing.
        """
        if labels.shape == (size, size) and self == (size, size, 0, 0):
            return labels
        rows, row_inside = _nearest(self.top, self.height, labels.shape[0], size)
        columns, column_inside = _nearest(self.left, self.width, labels.shape[1], size)
        square = labels[rows].take(columns, axis=1)
        if not row_inside.all() or not column_inside.all():
            square[~row_inside] = IGNORE_INDEX
            square[:, ~column_inside] = IGNORE_INDEX
        return square

    def place(self, y: int, x: int, labels: np.ndarray, size: int) -> tuple[int, int]:
        """Where pixel (y, x) of the label map falls in the square; clipped to the square."""
        row = int((y + 0.5) * self.height / labels.shape[0]) - self.top
        column = int((x + 0.5) * self.width / labels.shape[1]) - self.left
        return min(max(row, 0), size - 1), min(max(column, 0), size - 1)


def fit_square(shape: tuple[int, ...], size: int) -> Crop:
    """The evaluation geometry: the long side becomes `size`, the picture lies in the upper left corner, the rest is
    padding.

    Args:
        shape: height and width of the picture.
        size: side of the square.

    Returns:
        a crop whose `height` and `width` are those of the content.
    """
    scale = size / max(shape)
    return Crop(max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))


def keep_concept(crop: Crop, labels: np.ndarray, class_id: int, size: int) -> np.ndarray:
    """The square's label map, in which the class occurs: where scaling lost a thin object, one pixel is put back."""
    square = crop.labels(labels, size)
    if not np.any(square == class_id) and np.any(labels == class_id):
        square = square.copy()
        square[crop.place(*a_pixel_of(labels, class_id), labels, size)] = class_id
    return square


def to_model_range(image: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1], which is what every module of the model side expects."""
    return image.float() / 255 * 2 - 1


def a_pixel_of(labels: np.ndarray, class_id: int) -> tuple[int, int]:
    """The middle one, in reading order, of the pixels of a class."""
    pixels = np.flatnonzero(labels == class_id)
    y, x = divmod(int(pixels[len(pixels) // 2]), labels.shape[1])
    return y, x


class _Stretch:
    """Pixels `start` to `end` of one axis of a scaled picture, and what they are made from.

    Scaling begins at a pixel of the scaled picture that lies on the grid of the original one's, so that a part of it is
    scaled as the whole would be; the pixels before `start` are dropped.

    Args:
        start, end: of the scaled picture.
        step: pixels of the original for one of the scaled picture.
        length: pixels of the original.

    Attributes:
        source: the part of the original that is needed.
        kept: the wanted part of what becomes of that.
        scale: 1 / step.
    """

    def __init__(self, start: int, end: int, step: float, length: int) -> None:
        reach = max(1.0, step)  # a pixel depends on so many pixels of the original on either side of its centre
        begin = max(start - math.ceil(reach / step), 0)
        while (begin * step + _ROUNDING) % 1 > _OFF_GRID:
            begin -= 1
        first = int(begin * step + _ROUNDING)
        self.source = slice(first, min(length, math.ceil(end * step + reach) + 1))
        self.kept = slice(start - begin, end - begin)
        self.scale = (1 + 10 * _ROUNDING) / step  # so that the last pixel is not lost to rounding


def _resized(image: np.ndarray, rows: _Stretch, columns: _Stretch) -> np.ndarray:
    """Part of a picture (H, W, 3) uint8, bilinear with antialiasing.

    Differs from Pillow's by one level at one pixel in a hundred, and takes a third of its time.

    Returns:
        (rows, columns, 3) uint8.
    """
    part = torch.from_numpy(image[rows.source, columns.source].copy())  # whole, or torch would do it in a slower way
    scaled = interpolate(
        part[None].permute(0, 3, 1, 2), scale_factor=(rows.scale, columns.scale), mode="bilinear", antialias=True
    )
    return scaled[0].permute(1, 2, 0)[rows.kept, columns.kept].numpy()


def _nearest(start: int, scaled: int, original: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `size` pixels from `start` on: its nearest original pixel, and whether it lies in the picture."""
    places = np.arange(start, start + size)
    inside = (places >= 0) & (places < scaled)
    nearest = ((places + 0.5) * (original / scaled)).astype(np.int64)
    return np.minimum(np.maximum(nearest, 0), original - 1), inside
