"""From pictures of any size to training squares, on the host and in uint8."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.imaging.jpeg import Jpeg
from ldis_lightning.imaging.pictures import label_counts
from ldis_lightning.imaging.squares import Crop, a_pixel_of, fit_square, keep_concept


@dataclass
class Picture:
    """A picture and its label map.

    Args:
        source: (H, W, 3) uint8, or a JPEG. `Crop.image` takes either and decodes no more than it needs.
        labels: (H, W) uint8 or uint16, 0 none, 255 ignore.
        in_clip: it is a frame of a clip.
    """

    source: np.ndarray | Jpeg
    labels: np.ndarray
    in_clip: bool = False

    @cached_property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8, decoded at its whole size. Raises what `Jpeg.decode` raises."""
        return self.source.decode() if isinstance(self.source, Jpeg) else self.source


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
        return _maybe_flip(crop.image(picture.source, size), labels, picture, self.flip, generator)


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
            if np.any(labels == class_id) and not _one_class_fills(labels, self.max_cover):
                break
        else:
            crop = self._centred(picture.labels, class_id, size)
            labels = keep_concept(crop, picture.labels, class_id, size)
        return _maybe_flip(crop.image(picture.source, size), labels, picture, self.flip, generator)

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
        y, x = a_pixel_of(labels, class_id)
        top = round((y + 0.5) * height / labels.shape[0] - size / 2)
        left = round((x + 0.5) * width / labels.shape[1] - size / 2)
        return Crop(height, width, _clip(top, height - size), _clip(left, width - size))


def largest_cover(labels: np.ndarray) -> float:
    """Share of the most frequent class (not 0, not 255) among the pixels that are not ignored; 0 where all are."""
    counts = label_counts(labels)
    counts[IGNORE_INDEX] = 0
    return float(counts[1:].max() / max(1, counts.sum()))


def _one_class_fills(labels: np.ndarray, most: float) -> bool:
    """Whether `largest_cover` is more than `most`."""
    if np.count_nonzero(labels == 0) >= (1 - most) * labels.size:  # usual, and seen at once
        return False
    return largest_cover(labels) > most


def _between(end: int, draw: float) -> int:
    """A uniform number of 0 .. end, `end` included; `end` may be negative."""
    return min(0, end) + int(draw * (abs(end) + 1))


def _clip(value: int, end: int) -> int:
    return min(max(value, min(0, end)), max(0, end))


def _maybe_flip(
    image: np.ndarray, labels: np.ndarray, picture: Picture, probability: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if generator.random() < probability and not picture.in_clip:
        return image[:, ::-1], labels[:, ::-1]
    return image, labels
