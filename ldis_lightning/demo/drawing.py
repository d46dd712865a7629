"""What the page shows and hands out: overlays, movies, masks."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldis_lightning.callbacks.movies import Mp4
from ldis_lightning.callbacks.overlay import shown_size, tinted
from ldis_lightning.demo.session import Query, Reference
from ldis_lightning.pipeline import Segmentation
from ldis_lightning.pipeline.inputs import Pixels

BRUSH = (238, 0, 0)
"""The colour that masks have everywhere on the page."""
OPACITY = 153
"""Of the brush, of 255."""
LEAST, MOST = 512, 1024
"""Long sides of pictures on the page, in pixels: small ones grow to a whole multiple, large ones shrink."""
CANVAS = 640
"""Longest side of the picture that is painted on."""
SHOWN_FRAMES = 6
"""Of a clip, beside its movie."""


def resized(picture: Pixels, least: int = LEAST, most: int = MOST) -> Pixels:
    """A picture as large as the page shows it."""
    height, width = shown_size((picture.shape[0], picture.shape[1]), least, most)
    how = Image.Resampling.NEAREST if picture.ndim == 2 else Image.Resampling.BICUBIC
    gap = None if picture.ndim == 2 else 2.0  # large photos are shrunk in two steps, which is several times as fast
    return np.asarray(Image.fromarray(picture).resize((width, height), how, reducing_gap=gap))


def overlay(picture: Pixels, labels: NDArray[np.integer]) -> Pixels:
    """A picture (H, W, 3) with its mask (H, W) over it, at the page's size."""
    small = resized(labels.astype(np.uint8))
    return tinted(resized(picture), small, outline=max(round(min(small.shape) / 200), 1))


def references_shown(references: Sequence[Reference]) -> list[tuple[Pixels, str]]:
    """Overlays with captions."""
    return [(overlay(one.picture, one.mask), f"reference {number}") for number, one in enumerate(references, start=1)]


def queries_shown(queries: Sequence[Query]) -> list[tuple[Pixels, str]]:
    """Queries that have not been segmented yet: of a clip its first frame."""
    return [(resized(query.frames[0]), query.name) for query in queries]


def results_shown(queries: Sequence[Query], results: Sequence[Sequence[Segmentation]]) -> list[tuple[Pixels, str]]:
    """Overlays with captions; of a clip some frames."""
    shown = []
    for query, frames in zip(queries, results, strict=False):
        count = min(SHOWN_FRAMES, len(frames))
        for place in np.linspace(0, len(frames) - 1, count).round().astype(int):
            share = float((frames[place].labels > 0).mean())
            frame = f", frame {place}" if query.fps is not None else ""
            shown.append((overlay(frames[place].picture, frames[place].labels), f"{query.name}{frame}: {share:.0%}"))
    return shown


def editor_value(picture: Pixels | None, mask: NDArray[np.bool_] | None = None) -> dict[str, object] | None:
    """A picture for the editor, with a mask (H, W) painted on it."""
    if picture is None:
        return None
    shown = resized(picture, CANVAS // 2, CANVAS)
    layer = np.zeros((*shown.shape[:2], 4), np.uint8)
    if mask is not None:
        layer[resized(mask.astype(np.uint8), CANVAS // 2, CANVAS) > 0] = (*BRUSH, OPACITY)
    together = Image.fromarray(shown).convert("RGBA")
    together.alpha_composite(Image.fromarray(layer))
    return {"background": shown, "layers": [layer], "composite": np.asarray(together.convert("RGB"))}


def write_movie(query: Query, frames: Sequence[Segmentation], folder: Path) -> Path:
    """A clip with its masks over it, as an mp4 in a new folder below `folder`."""
    size = (frames[0].picture.shape[0], frames[0].picture.shape[1])
    path = new_folder(folder) / f"{file_name(query.name)}.mp4"
    movie = Mp4(path, shown_size(size, Mp4.least, Mp4.most), query.fps or 25.0)
    try:
        for frame in frames:
            movie.add(tinted(resized(frame.picture, Mp4.least, Mp4.most), _labels(frame)))
        movie.finish()
    except BaseException:
        movie.discard()
        raise
    return path


def _labels(frame: Segmentation) -> NDArray[np.uint8]:
    return resized(frame.labels, Mp4.least, Mp4.most)


def write_masks(queries: Sequence[Query], results: Sequence[Sequence[Segmentation]], folder: Path) -> Path:
    """The masks as they are, 0 and 255, each of its query's size: one PNG, or a zip of several, in a new folder below
    `folder`."""
    files: dict[str, Segmentation] = {}
    for query, frames in zip(queries, results, strict=False):
        name = file_name(query.name)
        while any(taken.partition("/")[0].removesuffix(".png") == name for taken in files):
            name += "_"
        if query.fps is None:
            files[f"{name}.png"] = frames[0]
        else:
            files.update({f"{name}/{number:05d}.png": frame for number, frame in enumerate(frames)})
    if len(files) == 1:
        (name, result), *_ = files.items()
        path = new_folder(folder) / name.replace("/", "-")
        path.write_bytes(png_of(result))
        return path
    path = new_folder(folder) / "masks.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are packed already
        for name, result in files.items():
            archive.writestr(name, png_of(result))
    return path


def png_of(result: Segmentation) -> bytes:
    """A mask as a PNG of 0 and 255."""
    stream = BytesIO()
    Image.fromarray((result.labels > 0).astype(np.uint8) * 255).save(stream, "PNG")
    return stream.getvalue()


def file_name(name: str) -> str:
    """What is left of a visitor's name for a file when it must not name a folder, or nothing."""
    return re.sub(r"[^\w-]", "_", name)[:80] or "query"


def new_folder(folder: Path) -> Path:
    """A folder below `folder` that nobody can guess."""
    return Path(tempfile.mkdtemp(dir=folder))
