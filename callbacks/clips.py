"""The predictions of one clip as files: an indexed PNG a frame, and a movie to look at."""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldis_lightning.callbacks.movies import Movie
from ldis_lightning.callbacks.overlay import Overlay
from ldis_lightning.callbacks.pixels import Pixels
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.files import write_atomically

MAX_NAME = 120
"""Bytes of a clip's file name; file systems allow 255 with what is put around it."""

MAX_INDEXED = 254
"""Greatest label of an 8-bit label map, whose 255 is what is ignored."""


class ClipFiles:
    """Writes `<folder>/<name>/<frame>.png` and `<folder>/<name>.<movie's ending>` as the frames of a clip arrive.

    Args:
        folder: of the evaluation set.
        name: of the files, from `safe_name`.
        clip: name of the clip as the caption shows it.
        concepts: names of its C concepts, in order.
        values: the data set's own label of each, in 1 .. 65534 without 255.
        movie: `Mp4`, `Gif` or another `Movie` class; None for PNGs alone.
        fps: of the movie.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        clip: str,
        concepts: Sequence[str],
        values: Sequence[int],
        movie: type[Movie] | None,
        fps: float,
    ) -> None:
        self.folder, self.name, self.clip = folder, name, clip
        self.concepts, self.values = concepts, values
        self.format, self.fps = movie, fps
        self._overlay: Overlay | None = None  # made with the first frame, whose size it takes
        self._movie: Movie | None = None

    def add(self, frame: int, picture: Pixels, labels: NDArray[np.integer], note: str = "") -> None:
        """Write a frame.

        Args:
            frame: its number, which names the PNG.
            picture: (h, w, 3) of the frame's aspect ratio, at any size.
            labels: (H0, W0) at the original size: 0 none, 1 .. C the concepts, 255 ignore.
            note: a word for the movie's caption.

        Raises:
            UserError: the movie cannot be encoded here.
        """
        if self.format is not None:
            shown = np.where(labels == IGNORE_INDEX, 0, labels)
            if self._overlay is None or self._movie is None:
                size = (labels.shape[0], labels.shape[1])
                self._overlay = Overlay(self.clip, self.concepts, size, self.format.least, self.format.most)
                path = self.folder / f"{self.name}{self.format.ending}"
                self._movie = self.format(path, self._overlay.shape, self.fps)
            self._movie.add(self._overlay.draw(picture, shown, frame, note))
        write_atomically(self.folder / self.name / f"{frame:05d}.png", label_image(labels, self.values).save)

    def finish(self) -> None:
        """Complete the movie."""
        if self._movie is not None:
            self._movie.finish()

    def discard(self) -> None:
        """Give the unfinished movie up. The PNGs stay: each is whole."""
        if self._movie is not None:
            self._movie.discard()


def label_image(labels: NDArray[np.integer], values: Sequence[int]) -> Image.Image:
    """A label map as a PNG whose pixels are the data set's own labels.

    Args:
        labels: (H, W): 0 none, 1 .. C the concepts, 255 ignore.
        values: label of each concept, in 1 .. 65534 without 255.

    Returns:
        An 8-bit picture with the colour map of PASCAL VOC and DAVIS; 16-bit grey where a label is above 254.
    """
    depth = np.uint16 if max(values) > MAX_INDEXED else np.uint8
    table = np.zeros(max(IGNORE_INDEX, len(values)) + 1, depth)
    table[IGNORE_INDEX] = IGNORE_INDEX
    table[1 : len(values) + 1] = values
    picture = Image.fromarray(table[labels])
    if depth is np.uint8:
        picture.putpalette(voc_color_map().tobytes())  # "L" becomes "P"
    return picture


@functools.cache
def voc_color_map() -> NDArray[np.uint8]:
    """(256, 3): the bits of a label, three at a time from the lowest, are the high bits of red, green and blue down."""
    labels, colors = np.arange(256), np.zeros((256, 3), np.uint8)
    for position in range(8):
        for channel in range(3):
            bit = (labels >> (3 * position + channel)) & 1
            colors[:, channel] |= (bit << (7 - position)).astype(np.uint8)
    return colors


def safe_name(clip: str) -> str:
    """A file name for a clip: its own where that is short and of letters, digits, dashes and dots; else with a hash.

    No two clips get the same name, and none leaves its folder or is hidden.
    """
    plain = re.sub(r"[^\w.-]", "_", clip).lstrip(".")
    if plain == clip and 0 < len(plain.encode()) <= MAX_NAME:
        return plain
    return named_apart(plain, clip)


def named_apart(name: str, what: str) -> str:
    """`name` cut short, with a hash of `what` it stands for."""
    start = name.encode()[: MAX_NAME - 16].decode(errors="ignore")
    digest = hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()  # names of files may not be UTF-8
    return f"{start or 'clip'}-{digest[:12]}"
