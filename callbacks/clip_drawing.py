"""The picture of a few frames of clips: one row each, the prompt, the query, truth and prediction side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ldis_lightning.callbacks.overlay import Legend, tinted
from ldis_lightning.callbacks.pixels import FAINT, INK, PAGE, Pixels, blend, font, grey, wrapped
from ldis_lightning.episode import IGNORE_INDEX

TILE = 256  # pixels of a tile's width
GAP, MARGIN, NAME_WIDTH, SCORE_WIDTH = 8, 20, 132, 84
LEGEND_SIZE, ROW_GAP = 14, 16

Labels = NDArray[np.uint8]  # (H, W): 0 none, c the c-th concept, 255 ignore


@dataclass(frozen=True)
class ClipPicture:
    """A frame of a clip, on the host, with what prompted it."""

    clip: str
    frame: int
    concepts: Sequence[str]  # names, in order
    prompt: tuple[Pixels, Labels]  # (h, w, 3) and (h, w)
    query: Pixels  # (H, W, 3)
    truth: Labels  # (H, W)
    prediction: Labels  # (H, W), without 255

    @property
    def miou(self) -> float:
        """Mean IoU of the concepts that the frame's truth or prediction shows, at the size shown; NaN without any."""
        scored = self.truth != IGNORE_INDEX
        truth, prediction = self.truth[scored], self.prediction[scored]
        shown = (set(np.unique(truth)) | set(np.unique(prediction))) - {0}
        ious = [((truth == c) & (prediction == c)).sum() / ((truth == c) | (prediction == c)).sum() for c in shown]
        return float(np.mean(ious)) if ious else float("nan")


def draw_clips(rows: Sequence[ClipPicture], title: str) -> Image.Image:
    """The whole picture, RGB. `rows` must not be empty. Tiles have the first query's aspect ratio; others fit in."""
    height, width = rows[0].query.shape[:2]
    tile = (min(max(round(TILE * height / width), TILE // 2), TILE), TILE)  # (height, width)
    left = MARGIN + NAME_WIDTH
    columns = [left + k * (TILE + GAP) for k in range(4)]
    legends = [Legend(row.concepts, columns[-1] + TILE - left, LEGEND_SIZE) for row in rows]
    top = MARGIN + 68
    heights = [tile[0] + GAP // 2 + legend.height + ROW_GAP for legend in legends]
    page = Image.new("RGB", (columns[-1] + TILE + SCORE_WIDTH + MARGIN, top + sum(heights) + MARGIN - ROW_GAP), PAGE)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 4), title, fill=INK, font=font(20))
    for x, caption in zip(columns, ("prompt", "query", "truth", "prediction"), strict=True):
        pen.text((x + TILE // 2, top - 10), caption, fill=FAINT, font=font(15), anchor="ms")
    for row, legend, space in zip(rows, legends, heights, strict=True):
        _draw_row(page, pen, row, columns, top, tile)
        legend.draw(pen, left, top + tile[0] + GAP // 2, INK)
        top += space
    return page


def _draw_row(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: ClipPicture,
    columns: list[int],
    y: int,
    tile: tuple[int, int],
) -> None:
    middle = y + tile[0] // 2
    name = wrapped(row.clip, font(15), NAME_WIDTH - 12, most=4)
    pen.multiline_text((MARGIN, middle - 8), name, fill=INK, font=font(15), anchor="lm", spacing=5)
    below = 8 + 10 * len(name.split("\n"))
    pen.text((MARGIN, middle + below), f"frame {row.frame}", fill=FAINT, font=font(14), anchor="lm")
    for x, part in zip(columns, clip_tiles(row, tile).values(), strict=True):
        page.paste(part, (x + (tile[1] - part.width) // 2, y + (tile[0] - part.height) // 2))
    score = (columns[-1] + TILE + 14, middle)
    pen.text(score, f"{row.miou:.2f}", fill=INK, font=font(26), anchor="ls")
    pen.text((score[0], score[1] + 18), "mIoU", fill=FAINT, font=font(14), anchor="ls")


def clip_tiles(row: ClipPicture, tile: tuple[int, int]) -> dict[str, Image.Image]:
    """The pictures of a row, each made to fit into `tile` (height, width), by caption."""
    image, labels = row.prompt
    faded, ignored = blend(grey(row.query), PAGE, 0.35), row.truth == IGNORE_INDEX
    faded = np.where(ignored[..., None], blend(faded, PAGE, 0.8), faded)
    return {
        "prompt": concept_tile(image, labels, tile, 0.5),
        "query": concept_tile(row.query, None, tile, 0.0),
        "truth": concept_tile(faded, row.truth, tile, 0.65),
        "prediction": concept_tile(faded, row.prediction, tile, 0.65),
    }


def concept_tile(picture: Pixels, labels: Labels | None, tile: tuple[int, int], strength: float) -> Image.Image:
    """A picture made to fit into `tile` (height, width), its concepts tinted by `strength`."""
    height, width = picture.shape[:2]
    scale = min(tile[0] / height, tile[1] / width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    shown = np.asarray(Image.fromarray(picture).resize(size, method))
    if labels is not None:
        concepts = Image.fromarray(np.where(labels == IGNORE_INDEX, 0, labels).astype(np.uint8))
        shown = tinted(shown, np.asarray(concepts.resize(size, Image.Resampling.NEAREST)), strength)
    return Image.fromarray(shown)
