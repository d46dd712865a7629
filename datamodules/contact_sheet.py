"""A contact sheet: a few episodes of a data set, drawn as the plan draws them, to see whether the data are right."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.evaluation_set import EvaluationSource, draw_manifest
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.pairing import AcrossImages, Pairing, WithinClip
from ldis_lightning.datamodules.remote import open_index
from ldis_lightning.datamodules.source import Episode
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError

Color = tuple[int, int, int]
PAGE, INK, FAINT, MARK = (255, 255, 255), (28, 32, 38), (112, 118, 126), (0, 158, 115)
TILE = 300  # width of a tile and its largest height, in pixels
GAP, MARGIN, CAPTION, HEADING = 10, 24, 46, 84
LEGEND = (
    "reference: the concept in colour, the rest faded    query: the concept outlined in green, ignored pixels white"
)
DRAWN_PER_SHOWN = 16  # so many more episodes are drawn than shown, to show different classes


def contact_sheet(
    folder: str | Path,
    episodes: int = 8,
    references: int = 1,
    seed: int = 0,
    classes: list[int] | None = None,
    pairing: Pairing | None = None,
) -> Image.Image:
    """Draw a few episodes, each a row: references in colour inside their masks, and the query with its mask outlined.

    Args:
        folder: the data set.
        episodes: how many, at most. Different classes come first.
        references: references of each.
        seed: of the draw.
        classes: ids of the classes to show; by default all.
        pairing: which images may be references; by default other frames of the clip for clips, other images for images.

    Raises:
        UserError: the data set cannot be read or allows no such episode.
    """
    index = open_index(str(folder))
    for class_id in classes or ():
        if class_id not in index.classes:
            known = ", ".join(f"{number}={name}" for number, name in sorted(index.classes.items()))
            raise UserError(f"{folder} has no class {class_id}; it has {known}.")
    pairing = pairing or (WithinClip() if index.kind == "clips" else AcrossImages())
    source = EvaluationSource(str(folder), pairing, classes=classes, episodes=episodes * DRAWN_PER_SHOWN, seed=seed)
    chosen = _varied(draw_manifest(index, source, references).episodes, episodes)
    reader = FrameReader(index)
    rows = [_draw_row(index, reader, episode) for episode in chosen]
    return _page(index, rows)


def _varied(episodes: list[Episode], wanted: int) -> list[Episode]:
    """So many of the episodes, each class before any class again, in the order of their classes."""
    episodes = sorted(
        episodes, key=lambda episode: episode.seed
    )  # a random order: they come in the order of their rows
    seen: Counter[int] = Counter()
    turns = []
    for episode in episodes:
        turns.append(seen[episode.class_id])
        seen[episode.class_id] += 1
    order = np.argsort(turns, kind="stable")[:wanted]
    return sorted((episodes[i] for i in order), key=lambda episode: episode.class_id)


def _draw_row(index: ShardIndex, reader: FrameReader, episode: Episode) -> Image.Image:
    """A row: the name of the class above its tiles, and under each tile what it is and its key."""
    rows = [*episode.references, episode.query]
    tiles = [_reference_tile(*reader.read(row), episode.reference_class) for row in episode.references]
    tiles.append(_query_tile(*reader.read(episode.query), episode.class_id))
    height = max(tile.height for tile in tiles)
    canvas = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, 30 + height + CAPTION), PAGE)
    pen = ImageDraw.Draw(canvas)
    title = f"{index.classes.get(episode.class_id, '?')}"
    pen.text((0, 22), _shortened(title, _font(19), canvas.width - 90), fill=INK, font=_font(19), anchor="ls")
    pen.text((canvas.width, 22), f"class {episode.class_id}", fill=FAINT, font=_font(14), anchor="rs")
    for number, (row, tile) in enumerate(zip(rows, tiles, strict=True)):
        x = number * (TILE + GAP)
        canvas.paste(tile, (x + (TILE - tile.width) // 2, 30 + (height - tile.height) // 2))
        what = "query" if number == len(tiles) - 1 else "reference"
        pen.text((x, 30 + height + 17), what, fill=FAINT, font=_font(14), anchor="ls")
        offset = pen.textlength(what + "  ", font=_font(14))
        key = _shortened(index.key(row), _font(14), TILE - offset)
        pen.text((x + offset, 30 + height + 17), key, fill=INK, font=_font(14), anchor="ls")
    return canvas


def _page(index: ShardIndex, rows: list[Image.Image]) -> Image.Image:
    """All rows in two columns (one where there is one row) under a heading."""
    columns = min(2, len(rows))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    width = columns * (rows[0].width + MARGIN) + MARGIN
    heights = [max(row.height for row in line) for line in lines]
    page = Image.new("RGB", (max(width, 2 * TILE + 2 * MARGIN + GAP), HEADING + MARGIN + sum(heights)), PAGE)
    pen = ImageDraw.Draw(page)
    clips = f" of {index.clips} clips" if index.clips else ""
    summary = f"{len(index)} frames{clips}, {len(index.classes)} classes"
    heading = _shortened(index.name, _font(24), page.width - 2 * MARGIN - pen.textlength(summary, font=_font(15)) - 20)
    pen.text((MARGIN, MARGIN + 20), heading, fill=INK, font=_font(24), anchor="ls")
    pen.text((page.width - MARGIN, MARGIN + 20), summary, fill=FAINT, font=_font(15), anchor="rs")
    pen.text((MARGIN, MARGIN + 44), LEGEND, fill=FAINT, font=_font(14), anchor="ls")
    y = HEADING
    for line, height in zip(lines, heights, strict=True):
        for column, row in enumerate(line):
            page.paste(row, (MARGIN + column * (rows[0].width + MARGIN), y))
        y += height
    return page


def _reference_tile(image: NDArray[np.uint8], labels: NDArray[np.uint8], class_id: int) -> Image.Image:
    """In colour inside the mask, faded outside, the mask outlined."""
    picture, scaled = _scaled(image, labels)
    inside = scaled == class_id
    faded = _blend(picture, PAGE, 0.6)
    return _outlined(np.where(inside[..., None], picture, faded), inside)


def _query_tile(image: NDArray[np.uint8], labels: NDArray[np.uint8], class_id: int) -> Image.Image:
    """The mask outlined and tinted just a little, to keep its colours; what is ignored fades into the page."""
    picture, scaled = _scaled(image, labels)
    inside = scaled == class_id
    picture = np.where((scaled == IGNORE_INDEX)[..., None], _blend(picture, PAGE, 0.8), picture)
    return _outlined(np.where(inside[..., None], _blend(picture, MARK, 0.2), picture), inside)


def _scaled(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture and label map at the size of a tile. Small pictures keep square pixels."""
    height, width = labels.shape
    scale = TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    picture = Image.fromarray(image).resize(size, how)
    return np.asarray(picture), np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _blend(picture: NDArray[np.uint8], color: Color, share: float) -> NDArray[np.uint8]:
    return (picture * (1 - share) + np.array(color) * share).astype(np.uint8)


def _outlined(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Image.Image:
    """A green line around the mask and a white one around that, so that it shows on any colour."""
    grown = Image.fromarray(mask.astype(np.uint8) * 255)
    for width, color in ((7, PAGE), (5, MARK)):
        line = (np.asarray(grown.filter(ImageFilter.MaxFilter(width))) > 0) & ~mask
        picture = np.where(line[..., None], np.array(color, np.uint8), picture)
    return Image.fromarray(picture)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, or as much of its end as fits after an ellipsis: the ends of keys tell them apart."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept and (length := font.getlength("..." + text[-kept:])) > width:
        kept = max(0, min(kept - 1, int(kept * width / length)))
    return "..." + text[len(text) - kept :]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
