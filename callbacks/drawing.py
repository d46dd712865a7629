"""The picture of a few episodes: one row each, references, query, truth and prediction side by side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ldis_lightning.callbacks.pixels import FAINT, INK, PAGE, Color, Pixels, blend, font, grey, wrapped
from ldis_lightning.episode import IGNORE_INDEX

# Okabe and Ito's palette: told apart by colour-blind readers too.
HIT: Color = (0, 158, 115)
FALSE_ALARM: Color = (213, 66, 0)
MISSED: Color = (0, 114, 208)

MIN_TILE, MAX_TILE = 160, 256  # pixels
MAX_REFERENCES = 3
GAP, MARGIN, NAME_WIDTH, SCORE_WIDTH = 8, 20, 132, 84


@dataclass(frozen=True)
class EpisodePicture:
    """One episode on the host. Masks are uint8 {0, 1, 255}; the prediction is bool, of the query's size."""

    name: str
    references: list[tuple[Pixels, Pixels]]  # K of image (h, w, 3) and mask (h, w)
    query: Pixels  # (H, W, 3)
    truth: Pixels  # (H, W)
    prediction: NDArray[np.bool_]  # (H, W)

    @property
    def iou(self) -> float:
        """IoU of this one episode at the size shown, NaN if its union is empty. Sets are scored by a `Measure`."""
        scored, truth = self.truth != IGNORE_INDEX, self.truth == 1
        union = ((truth | self.prediction) & scored).sum()
        return float((truth & self.prediction).sum() / union) if union else float("nan")


def draw_episodes(episodes: list[EpisodePicture], title: str) -> Image.Image:
    """The whole picture, RGB. `episodes` must not be empty; all rows share the tile size of the first."""
    side = tile_side(max(episodes[0].query.shape[:2]))
    references = max(min(len(episode.references), MAX_REFERENCES) for episode in episodes)
    left = MARGIN + NAME_WIDTH
    columns = [left + k * (side + GAP) for k in range(references + 3)]
    top = MARGIN + 68
    width = columns[-1] + side + SCORE_WIDTH + MARGIN
    page = Image.new("RGB", (width, top + len(episodes) * (side + GAP) + MARGIN - GAP), PAGE)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 4), title, fill=INK, font=font(20))
    _draw_legend(pen, right=columns[-1] + side, y=MARGIN)
    prompts = ["reference"] if references == 1 else [f"reference {k + 1}" for k in range(references)]
    captions = [*prompts, "query", "truth", "prediction"]
    for x, caption in zip(columns, captions, strict=True):
        pen.text((x + side // 2, top - 10), caption, fill=FAINT, font=font(15), anchor="ms")
    for row, episode in enumerate(episodes):
        _draw_row(page, pen, episode, columns, top + row * (side + GAP), side)
    return page


def tile_side(size: int) -> int:
    """Side of a tile in pixels: small pictures grow to a whole multiple of their `size`, large ones shrink."""
    return min(size * -(-MIN_TILE // size), MAX_TILE)


def _draw_row(
    page: Image.Image, pen: ImageDraw.ImageDraw, episode: EpisodePicture, columns: list[int], y: int, side: int
) -> None:
    middle = y + side // 2
    name = wrapped(episode.name, font(15), NAME_WIDTH - 12)
    pen.multiline_text((MARGIN, middle), name, fill=INK, font=font(15), anchor="lm", spacing=5)
    *references, query, truth, prediction = episode_tiles(episode, side).values()
    for x, tile in [
        *zip(columns, references, strict=False),
        *zip(columns[-3:], (query, truth, prediction), strict=True),
    ]:
        page.paste(tile, (x, y))
    score = (columns[-1] + side + 14, middle)
    pen.text(score, f"{episode.iou:.2f}", fill=INK, font=font(26), anchor="ls")
    pen.text((score[0], score[1] + 18), "IoU", fill=FAINT, font=font(14), anchor="ls")


def episode_tiles(episode: EpisodePicture, side: int) -> dict[str, Image.Image]:
    """The squares of a row, `side` pixels each, by caption: `reference 1`, ..., then `query`, `truth`, `prediction`."""
    references = enumerate(episode.references[:MAX_REFERENCES], start=1)
    return {
        **{f"reference {k}": reference_tile(image, mask, side) for k, (image, mask) in references},
        "query": _resize(episode.query, side),
        "truth": truth_tile(episode, side),
        "prediction": prediction_tile(episode, side),
    }


def reference_tile(image: Pixels, mask: Pixels, side: int) -> Image.Image:
    """The reference in colour inside its mask, faded outside, with an outline around the mask."""
    inside = _resize_mask(mask == 1, side)
    picture = np.asarray(_resize(image, side))
    faded = blend(picture, PAGE, 0.6)
    return _outlined(np.where(inside[..., None], picture, faded), inside, INK)


def truth_tile(episode: EpisodePicture, side: int) -> Image.Image:
    """The query in grey, the true mask tinted; what is ignored fades into the page."""
    truth = _resize_mask(episode.truth == 1, side)
    canvas = _paint(_canvas(episode, side), truth, HIT)
    return _outlined(canvas, truth, HIT)


def prediction_tile(episode: EpisodePicture, side: int) -> Image.Image:
    """The query in grey; hits, false alarms and misses tinted; what is ignored fades into the page."""
    scored = episode.truth != IGNORE_INDEX
    truth, prediction = episode.truth == 1, episode.prediction & scored
    canvas = _canvas(episode, side)
    parts = [(truth & prediction, HIT), (prediction & ~truth, FALSE_ALARM), (truth & ~prediction, MISSED)]
    for part, color in parts:
        canvas = _paint(canvas, _resize_mask(part, side), color)
    return _outlined(canvas, _resize_mask(prediction, side), INK)


def _canvas(episode: EpisodePicture, side: int) -> Pixels:
    """The query in light grey, ignored pixels nearly white: (side, side, 3)."""
    query = blend(grey(np.asarray(_resize(episode.query, side))), PAGE, 0.35)
    ignored = _resize_mask(episode.truth == IGNORE_INDEX, side)
    return np.where(ignored[..., None], blend(query, PAGE, 0.8), query)


def _paint(picture: Pixels, mask: NDArray[np.bool_], color: Color) -> Pixels:
    """`picture` tinted where `mask` is True."""
    return np.where(mask[..., None], blend(picture, color, 0.65), picture)


def _outlined(picture: Pixels, mask: NDArray[np.bool_], color: Color) -> Image.Image:
    """`picture` with the inner edge of `mask`, 2 pixels wide."""
    solid = Image.fromarray(mask.astype(np.uint8) * 255)
    inner = np.asarray(solid.filter(ImageFilter.MinFilter(5))) > 0
    edge = mask & ~inner
    return Image.fromarray(np.where(edge[..., None], np.array(color, np.uint8), picture))


def _resize(picture: Pixels, side: int) -> Image.Image:
    """(H, W, 3) -> a square tile: nearest neighbour when it grows (pixels stay visible), smooth when it shrinks."""
    grows = side >= max(picture.shape[:2])
    method = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((side, side), method)


def _resize_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """(H, W) -> (side, side), nearest neighbour."""
    tile = Image.fromarray(mask.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    return np.asarray(tile) > 0


def _draw_legend(pen: ImageDraw.ImageDraw, right: int, y: int) -> None:
    """Colour swatches with their meaning, flush right."""
    shape = font(15)
    for label, color in [("missed", MISSED), ("false alarm", FALSE_ALARM), ("hit", HIT)]:
        right -= round(shape.getlength(label))
        pen.text((right, y + 7), label, fill=FAINT, font=shape, anchor="lm")
        pen.rectangle((right - 20, y, right - 7, y + 13), fill=color)
        right -= 40
