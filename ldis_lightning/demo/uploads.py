"""Uploaded files, which may hold anything: read within bounds, by what they are and not by name, then deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldis_lightning.demo.session import MOST_FRAMES, MOST_PIXELS, Query
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import UNREADABLE, check_same_size, open_picture
from ldis_lightning.pipeline.inputs import STARTS, Pixels, read_mask, read_picture
from ldis_lightning.pipeline.video import VideoFile

FRAME_SIDE = 640
"""Frames of a clip are shrunk to this long side, so that a clip fits into memory."""
PAINTED = 64
"""Opacity from which a pixel of the brush's layer is painted. The brush's own is 153, at its soft edge less."""

Read = TypeVar("Read")


def read_upload(path: str | Path, read: Callable[[str], Read]) -> Read:
    """What `read` makes of an uploaded file, which is then deleted.

    Raises:
        UserError: with the name that the visitor knows in it. Also where the file is gone: whoever drops the same file
            at the same time is given the same path.
    """
    path = Path(path)
    try:
        return read(str(path))
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
    except OSError as error:
        raise UserError(f"{path.name} did not arrive: try again.") from error
    finally:
        path.unlink(missing_ok=True)


def read_mask_for(picture: Pixels) -> Callable[[str], NDArray[np.bool_]]:
    """A reader of masks of the size of a picture.

    Returns:
        path -> (H, W).
    """

    def read(path: str) -> NDArray[np.bool_]:
        mask = read_mask(path)
        check_same_size(picture.shape[:2], mask.shape, path)
        return mask == 1

    return read


def read_query(path: str) -> Query:
    """A picture or a clip.

    Raises:
        UserError: it is neither, damaged, or too large.
    """
    name = Path(path).stem or "query"
    with open(path, "rb") as file:
        start = file.read(12)
    if start.startswith(tuple(STARTS)) or start[8:12] == b"WEBP":
        return Query(name, [read_picture(path)])
    try:
        movie = VideoFile(path)
    except UserError as error:
        raise UserError(f"{path} is no picture (JPEG, PNG, WebP, BMP), and {error}") from error
    return Query(name, _frames(movie), min(max(movie.fps, 1.0), 60.0))


def _frames(movie: VideoFile) -> list[Pixels]:
    frames: list[Pixels] = []
    pixels = 0
    for frame in movie:
        small = shrunk(frame, FRAME_SIDE)
        pixels += small.shape[0] * small.shape[1]
        if len(frames) == MOST_FRAMES or pixels > MOST_PIXELS:
            break
        frames.append(small)
    return frames


def shrunk(picture: Pixels, side: int) -> Pixels:
    """A picture whose long side has at most `side` pixels."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(round(length * scale), 1) for length in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0))


def painted_layers(layers: list[bytes]) -> NDArray[np.bool_] | None:
    """What is painted on the layers of the brush.

    Args:
        layers: PNGs with transparency, from the browser.

    Returns:
        (h, w) of the last layer, and what is painted on those before it of that size; None without layers.

    Raises:
        UserError: one is no such PNG, or too large.
    """
    found: NDArray[np.bool_] | None = None
    for layer in layers:
        try:
            alpha = np.asarray(open_picture(layer, "PNG", "the painting").convert("RGBA"))[..., 3]
        except UNREADABLE as error:
            raise UserError("The painting did not arrive whole: try again.") from error
        marked = alpha >= PAINTED
        found = marked if found is None or found.shape != marked.shape else found | marked
    return found


def bytes_of_layer(layer: Any) -> bytes:
    """A layer as Gradio hands it over: bytes, or a file that it has checked to be one of its own."""
    return bytes(layer) if isinstance(layer, bytes | bytearray | memoryview) else Path(layer.path).read_bytes()
