"""Drawn pictures with the statistics of photographs: as many details at every size, edges and smooth areas.

Leaves of all sizes that fall on each other (the dead leaves model: Lee, Mumford and Huang, "Occlusion models for
natural images", IJCV 2001), with noise of many octaves on them. JPEG needs as many bytes for one as for a photograph,
and scaling changes it as much, which is what matters where speed and scaling are measured.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

from ldis_lightning.imaging.pictures import write_label_map

LEAVES = 300
CLASSES = 8
QUALITY = 90
"""Of the JPEGs."""


def draw(generator: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a picture of leaves.

    Returns:
        the picture (H, W, 3) uint8 and its label map (H, W) uint8: each large leaf is of a class 1 .. `CLASSES`, and a
        tenth of the picture at least is of none.
    """
    colours = Image.new("RGB", (2 * width, 2 * height), (120, 120, 120))  # at twice the size, so that edges are smooth
    labels = Image.new("L", (width, height))
    pens = ImageDraw.Draw(colours), ImageDraw.Draw(labels)
    smallest, largest = min(height, width) / 90, min(height, width) / 3
    radii = np.sort((smallest**-1.5 + generator.random(LEAVES) * (largest**-1.5 - smallest**-1.5)) ** (-1 / 1.5))[::-1]
    for radius in radii.tolist():
        outline = _outline(generator, radius) + generator.random(2) * (width, height)
        grey, tint = generator.normal(115, 55), generator.normal(0, 16, 3)
        pens[0].polygon((2 * outline).ravel().tolist(), tuple((grey + tint).clip(0, 255).astype(int).tolist()))
        if radius > largest / 8:
            pens[1].polygon(outline.ravel().tolist(), int(generator.integers(0, CLASSES + 1)))
    picture = np.asarray(colours.reduce(2), np.float32) + 5 * _noise(generator, height, width)[..., None]
    label_map = np.array(labels)
    label_map[: -(-height // 10)] = 0
    return picture.clip(0, 255).astype(np.uint8), label_map


def encoded(generator: np.random.Generator, height: int, width: int) -> tuple[bytes, bytes]:
    """A drawn picture as JPEG and its label map as PNG."""
    picture, labels = draw(generator, height, width)
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue(), write_label_map(labels)


def _outline(generator: np.random.Generator, radius: float) -> np.ndarray:
    """Corners (24, 2) of a leaf around 0: an ellipse, dented and turned."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    dents = 1 + 0.25 * np.sin(generator.integers(2, 6) * angle + generator.random() * 7)
    across = generator.uniform(0.4, 1)
    x, y = radius * dents * np.cos(angle), radius * across * dents * np.sin(angle)
    turn = generator.random() * np.pi
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=-1)


def _noise(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W) float32: the sum of noise of all octaves, of equal strength, as 1/f noise has."""
    total = np.zeros((height, width), np.float32)
    side = max(height, width)
    while side >= 3:  # finer noise is what cameras smooth away
        size = max(1, round(width / side)), max(1, round(height / side))
        octave = Image.fromarray(generator.standard_normal(size[::-1], np.float32))
        total += np.asarray(octave.resize((width, height), Image.Resampling.BICUBIC))
        side /= 2
    return total / 2
