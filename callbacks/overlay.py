"""Concepts drawn over a frame: their colours, tinted masks with outlines, and the caption below the picture."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ldis_lightning.callbacks.pixels import Color, Pixels, font, shortened

COLORS: tuple[Color, ...] = (
    (238, 0, 0), (0, 255, 221), (136, 51, 255), (187, 255, 0), (102, 153, 255), (255, 85, 119), (255, 221, 136),
    (170, 85, 153), (221, 170, 0), (204, 17, 204), (0, 204, 153), (238, 136, 204), (204, 221, 85), (0, 136, 85),
    (187, 170, 255), (204, 85, 136), (187, 170, 68), (153, 238, 170), (136, 102, 255), (255, 34, 204), (136, 136, 68),
    (85, 136, 17), (153, 187, 102), (255, 187, 255),
)  # fmt: skip
"""Colours of a clip's concepts in order, from the start again where there are more.

Found by search: any two of the first 8 differ by at least 31 in CIELAB, to readers with protanopia, deuteranopia or
tritanopia (simulated after Machado et al. 2009) as to others; any two of all 24 by at least 13.
"""

BAND: Color = (22, 24, 28)
BAND_INK: Color = (232, 234, 237)
BAND_FAINT: Color = (154, 160, 168)
LONGEST_NOTE = "prompt"
NAME_SHARE = 0.42  # of the width: no name in a caption or legend is longer

Labels = NDArray[np.integer]  # (H, W): 0 none, c the c-th concept; what is ignored must be 0 already


def concept_color(concept: int) -> Color:
    """Of concept number 1, 2, ..."""
    return COLORS[(concept - 1) % len(COLORS)]


def tinted(picture: Pixels, labels: Labels, strength: float = 0.5, outline: int = 2) -> Pixels:
    """`picture` with each concept's pixels moved towards its colour by `strength`, its inner edge in the full colour.

    Args:
        picture: (H, W, 3).
        labels: (H, W), 0 none, 1, 2, ... the concepts.
        strength: in [0, 1].
        outline: width of the edge in pixels; 0 for none.
    """
    table = np.array([(0, 0, 0), *(concept_color(c) for c in range(1, int(labels.max()) + 1))], np.float32)
    color = table[labels]  # (H, W, 3)
    amount = np.where(labels > 0, np.float32(strength), 0)  # (H, W)
    amount[inner_edge(labels, outline)] = 1
    return (picture + (color - picture) * amount[..., None]).round().astype(np.uint8)


def inner_edge(labels: Labels, width: int) -> NDArray[np.bool_]:
    """(H, W): pixels of a concept with another label at most `width` pixels up, down, left or right of them."""
    edge = np.zeros(labels.shape, bool)
    for step in range(1, width + 1):
        rows, columns = labels[step:] != labels[:-step], labels[:, step:] != labels[:, :-step]
        edge[step:] |= rows
        edge[:-step] |= rows
        edge[:, step:] |= columns
        edge[:, :-step] |= columns
    return edge & (labels > 0)


class Legend:
    """Swatches with the names of a clip's concepts, in as many lines of a width as they need.

    Args:
        names: of the concepts, in order.
        width: of a line, in pixels.
        text_size: in pixels.
        indent: where the first line begins, in pixels.
        most_lines: concepts that need more are counted at the end, as `+3`.
    """

    def __init__(self, names: Sequence[str], width: int, text_size: int, indent: int = 0, most_lines: int = 4) -> None:
        self.font = font(text_size)
        self.swatch = round(text_size * 0.8)
        self.line_height = round(text_size * 1.5)
        self.rest = ""
        self._entries: list[tuple[int, int, str]] = []  # x, line, name
        x, line = indent, 0
        more = round(self.font.getlength("+000"))
        for count, name in enumerate(names):
            short = shortened(name, self.font, round(width * NAME_SHARE))
            needed = round(self.swatch * 1.4 + self.font.getlength(short))
            last = line == most_lines - 1 and count < len(names) - 1
            if x > 0 and x + needed + (more if last else 0) > width:
                if line == most_lines - 1:
                    self.rest = f"+{len(names) - count}"
                    break
                x, line = 0, line + 1
            self._entries.append((x, line, short))
            x += needed + round(text_size * 1.1)
        self._rest_at = (x, line)
        self.lines = line + 1

    @property
    def height(self) -> int:
        """Of all lines, in pixels."""
        return self.lines * self.line_height

    def draw(self, pen: ImageDraw.ImageDraw, x: int, y: int, ink: Color) -> None:
        """With its upper left corner at (x, y)."""
        for concept, (left, line, name) in enumerate(self._entries, start=1):
            middle = y + line * self.line_height + self.line_height // 2
            top = middle - self.swatch // 2
            box = (x + left, top, x + left + self.swatch - 1, top + self.swatch - 1)
            pen.rectangle(box, fill=concept_color(concept))
            pen.text((x + left + round(self.swatch * 1.4), middle), name, fill=ink, font=self.font, anchor="lm")
        left, line = self._rest_at
        middle = y + line * self.line_height + self.line_height // 2
        pen.text((x + left, middle), self.rest, fill=ink, font=self.font, anchor="lm")


class Overlay:
    """Draws the frames of one clip: the picture with its concepts, and a caption in a band below it.

    Args:
        clip: name of the clip.
        names: of its concepts, in order.
        size: (H0, W0) of its frames.
        least: frames with a long side below this many pixels grow to a whole multiple.
        most: frames with a longer side are shrunk to this.

    Attributes:
        shape: (H, W) of what is drawn, band included; both are even, as video encoders want them.
    """

    def __init__(
        self, clip: str, names: Sequence[str], size: tuple[int, int], least: int = 384, most: int = 1280
    ) -> None:
        height, width = shown_size(size, least, most)
        self._picture = (height, width)
        self._text_size = min(max(round(width / 50), 11), 18)
        self._margin = round(self._text_size * 0.6)
        self._font = font(self._text_size)
        self._clip = shortened(clip, self._font, round(width * NAME_SHARE))
        title = round(self._font.getlength(f"{self._clip}  88888") + 1.2 * self._text_size)
        note = round(self._font.getlength(f" {LONGEST_NOTE}"))
        legend = Legend(names, width - 2 * self._margin - note, self._text_size, indent=title)
        band = legend.height + self._margin
        self.shape = (height + band + (height + band) % 2, width)
        self._top = height + self._margin // 2
        self._middle = self._top + legend.line_height // 2  # of the first line
        self._page = Image.new("RGB", (self.shape[1], self.shape[0]), BAND)  # what all frames share
        legend.draw(ImageDraw.Draw(self._page), self._margin, self._top, BAND_INK)

    def draw(self, picture: Pixels, labels: Labels, frame: int, note: str = "") -> Pixels:
        """One frame.

        Args:
            picture: (h, w, 3) of the frame's aspect ratio, at any size.
            labels: (H0, W0) uint8, 0 none, 1, 2, ... the concepts.
            frame: its number.
            note: a word at the right, not longer than `prompt`.

        Returns:
            (*shape, 3).
        """
        height, width = self._picture
        image = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        small = Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST)
        drawn = tinted(image, np.asarray(small), outline=max(round(min(height, width) / 200), 1))
        page = self._page.copy()
        page.paste(Image.fromarray(drawn), (0, 0))
        pen = ImageDraw.Draw(page)
        title = f"{self._clip}  {frame:05d}"
        pen.text((self._margin, self._middle), title, fill=BAND_FAINT, font=self._font, anchor="lm")
        pen.text((width - self._margin, self._middle), note, fill=BAND_FAINT, font=self._font, anchor="rm")
        return np.asarray(page)


def shown_size(size: tuple[int, int], least: int, most: int) -> tuple[int, int]:
    """(height, width) at which a picture is shown: small ones grow to a whole multiple, large ones shrink; even."""
    long = max(size)
    scale = max(-(-least // long), 1) if long <= most else most / long
    height, width = (max(round(side * scale / 2) * 2, 2) for side in size)
    return height, width
