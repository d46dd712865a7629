"""Tiny pictures, label maps, trees and tars for the tests of shards and indices."""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def jpg(size: tuple[int, int] = (12, 16), seed: int = 0, mode: str = "RGB") -> bytes:
    """A JPEG of (height, width)."""
    channels = {"RGB": (3,), "CMYK": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *channels), dtype=np.uint8)
    return _encoded(Image.fromarray(pixels, mode), "JPEG")


def labels(ids: tuple[int, ...] = (0, 1), size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """A label map of (height, width) in which the ids stand in equal vertical stripes, left to right."""
    columns = np.repeat(np.array(ids, np.uint8), -(-size[1] // len(ids)))[: size[1]]
    return np.tile(columns, (size[0], 1))


def png(ids: tuple[int, ...] = (0, 1), size: tuple[int, int] = (12, 16)) -> bytes:
    """`labels` as an 8-bit PNG."""
    return png_of(labels(ids, size))


def png_of(pixels: np.ndarray, palette: bool = False) -> bytes:
    """Any array as a PNG, optionally with a palette."""
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(list(range(256)) * 3)
    return _encoded(image, "PNG")


def tree(root: Path, clips: dict[str, int], ids: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A folder of `JPEGImages` and `Annotations` with so many frames a clip, named `f0`, `f1`, ..."""
    for clip, frames in clips.items():
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / clip).mkdir(parents=True)
        for frame in range(frames):
            (root / "JPEGImages" / clip / f"f{frame}.jpg").write_bytes(jpg(seed=frame))
            (root / "Annotations" / clip / f"f{frame}.png").write_bytes(png(ids))
    return root


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of such members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path


def _encoded(image: Image.Image, kind: str) -> bytes:
    stream = BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
