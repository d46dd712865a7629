"""From pictures of any size to squares of one size, on the host and in uint8.

Every geometry is a `Crop`: scale the picture, then cut a square that may reach beyond it. Only the square is computed.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ldis_lightning.datamodules.treatment import MID_GREY
from ldis_lightning.episode import IGNORE_INDEX


class Picture(NamedTuple):
    """A picture and its label map."""

    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) uint8, 0 none, 255 ignore
    in_clip: bool = False  # a frame of a clip


class Crop(NamedTuple):
    """The picture is scaled to height x width, and a square is cut whose corner is at (top, left) of it, in pixels."""

    height: int
    width: int
    top: int = 0
    left: int = 0

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """Cut the square out of a picture: bilinear with antialiasing, mid-grey beyond the borders.

        Args:
            image: (H, W, 3) uint8.
            size: side of the square.

        Returns:
            (size, size, 3) uint8; the picture itself where the crop changes nothing.
        """
        if image.shape[:2] == (size, size) and self == (size, size, 0, 0):
            return image
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + size, self.height), min(self.left + size, self.width)
        if image.shape[:2] == (self.height, self.width):
            part = image[top:bottom, left:right]
        else:
            y, x = image.shape[0] / self.height, image.shape[1] / self.width
            box = (left * x, top * y, right * x, bottom * y)
            part = np.asarray(
                Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=box)
            )
        square = np.full((size, size, 3), MID_GREY, np.uint8)
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
        square = labels[rows[:, None], columns[None]]
        square[~row_inside] = IGNORE_INDEX
        square[:, ~column_inside] = IGNORE_INDEX
        return square

    def place(self, y: int, x: int, labels: np.ndarray, size: int) -> tuple[int, int]:
        """Where pixel (y, x) of the label map falls in the square; clipped to the square."""
        row = int((y + 0.5) * self.height / labels.shape[0]) - self.top
        column = int((x + 0.5) * self.width / labels.shape[1]) - self.left
        return min(max(row, 0), size - 1), min(max(column, 0), size - 1)


class TrainingGeometry:
    """Makes a training square of a picture, at random. Subclass it for a geometry of your own."""

    def __call__(
        self, picture: Picture, class_id: int, size: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a square in which the class occurs.

        Args:
            picture: the picture. The class occurs in it.
            class_id: the class that must remain.
            size: side of the square in pixels.
            generator: the only source of randomness, seeded by the episode and the picture's role in it.

        Returns:
            image (size, size, 3) uint8 and labels (size, size) uint8.
        """
        raise NotImplementedError


class WholePicture(TrainingGeometry):
    """The whole picture as in evaluation, mirrored at random. A picture of the right size keeps every pixel.

    Args:
        flip: probability of a horizontal flip; frames of clips are never flipped.
    """

    def __init__(self, flip: float = 0.5) -> None:
        self.flip = flip

    def __call__(
        self, picture: Picture, class_id: int, size: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scale, pad and maybe mirror."""
        crop = fit_square(picture.labels.shape, size)
        labels = keep_concept(crop, picture.labels, class_id, size)
        return _maybe_flip(crop.image(picture.image, size), labels, picture, self.flip, generator)


class RandomCrop(TrainingGeometry):
    """METHOD section 4: scale so that the short side is about `size`, cut a random square, mirror at random.

    A square without the class, or with one class on more than `max_cover` of its labelled pixels, is drawn again; after
    `tries` of them the square is centred on the concept.

    Args:
        ratio: the short side becomes size * U(ratio), at random.
        long_side: bound of the long side, in the same units: the scale is lowered where it would be exceeded.
        max_cover: largest share of one class (0, none, is no class); 1 allows everything.
        flip: probability of a horizontal flip; frames of clips are never flipped.
        tries: squares drawn before centring.
    """

    def __init__(
        self,
        ratio: tuple[float, float] = (0.9, 1.1),
        long_side: float = 2.0,
        max_cover: float = 0.75,
        flip: float = 0.5,
        tries: int = 10,
    ) -> None:
        self.ratio, self.long_side, self.max_cover, self.flip, self.tries = ratio, long_side, max_cover, flip, tries

    def __call__(
        self, picture: Picture, class_id: int, size: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw, look at the labels, and only then cut the picture."""
        for _ in range(self.tries):
            crop = self._draw(picture.labels.shape, size, generator)
            labels = crop.labels(picture.labels, size)
            if np.any(labels == class_id) and largest_cover(labels) <= self.max_cover:
                break
        else:
            crop = self._centred(picture.labels, class_id, size)
            labels = keep_concept(crop, picture.labels, class_id, size)
        return _maybe_flip(crop.image(picture.image, size), labels, picture, self.flip, generator)

    def _scaled(self, shape: tuple[int, ...], size: float) -> tuple[int, int]:
        short, long = sorted(shape)
        scale = size * min(1 / short, self.long_side / long)
        return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))

    def _draw(self, shape: tuple[int, ...], size: int, generator: np.random.Generator) -> Crop:
        ratio, y, x = generator.random(3)
        height, width = self._scaled(shape, size * (self.ratio[0] + ratio * (self.ratio[1] - self.ratio[0])))
        # A picture smaller than the square lies somewhere inside it: its corner is at 0 .. size - height instead.
        return Crop(height, width, _between(height - size, y), _between(width - size, x))

    def _centred(self, labels: np.ndarray, class_id: int, size: int) -> Crop:
        height, width = self._scaled(labels.shape, size)
        y, x = _a_pixel_of(labels, class_id)
        top = round((y + 0.5) * height / labels.shape[0] - size / 2)
        left = round((x + 0.5) * width / labels.shape[1] - size / 2)
        return Crop(height, width, _clip(top, height - size), _clip(left, width - size))


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
        square[crop.place(*_a_pixel_of(labels, class_id), labels, size)] = class_id
    return square


def largest_cover(labels: np.ndarray) -> float:
    """Share of the most frequent class (not 0, not 255) among the pixels that are not ignored; 0 where all are."""
    counts = np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)
    counts[IGNORE_INDEX] = 0
    return float(counts[1:].max() / max(1, counts.sum()))


def _nearest(start: int, scaled: int, original: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `size` pixels from `start` on: its nearest original pixel, and whether it lies in the picture."""
    places = np.arange(start, start + size)
    inside = (places >= 0) & (places < scaled)
    nearest = ((places + 0.5) * (original / scaled)).astype(np.int64)
    return nearest.clip(0, original - 1), inside


def _between(end: int, draw: float) -> int:
    """A uniform number of 0 .. end, `end` included; `end` may be negative."""
    return min(0, end) + int(draw * (abs(end) + 1))


def _clip(value: int, end: int) -> int:
    return min(max(value, min(0, end)), max(0, end))


def _a_pixel_of(labels: np.ndarray, class_id: int) -> tuple[int, int]:
    """The middle one, in reading order, of the pixels of a class."""
    pixels = np.flatnonzero(labels == class_id)
    y, x = divmod(int(pixels[len(pixels) // 2]), labels.shape[1])
    return y, x


def _maybe_flip(
    image: np.ndarray, labels: np.ndarray, picture: Picture, probability: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if generator.random() < probability and not picture.in_clip:
        return image[:, ::-1], labels[:, ::-1]
    return image, labels
