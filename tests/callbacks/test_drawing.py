import math

import numpy as np
import pytest
from PIL import Image, ImageFont

from ldis_lightning.callbacks import drawing
from ldis_lightning.callbacks.drawing import EpisodePicture, draw_episodes, prediction_tile, reference_tile, truth_tile
from ldis_lightning.callbacks.pixels import wrapped


def make_episode(side: int = 64, references: int = 1, name: str = "ring / striped / red") -> EpisodePicture:
    """A black picture; the truth is its left half, the prediction its upper half, the last column is ignored."""
    image = np.zeros((side, side, 3), np.uint8)
    truth = np.zeros((side, side), np.uint8)
    truth[:, : side // 2] = 1
    truth[:, -1] = 255
    prediction = np.zeros((side, side), bool)
    prediction[: side // 2] = True
    return EpisodePicture(name, [(image, truth)] * references, image, truth, prediction)


def hue(tile: Image.Image, y: float, x: float) -> str:
    """Which of the colours of the legend the pixel at relative position (y, x) is closest to in direction from grey."""
    pixel = np.asarray(tile)[int(y * tile.height), int(x * tile.width)].astype(float)
    if np.ptp(pixel) < 8:
        return "grey"
    colors = {"hit": drawing.HIT, "false alarm": drawing.FALSE_ALARM, "missed": drawing.MISSED}

    def direction(color: np.ndarray) -> np.ndarray:
        centred = color - color.mean()
        return centred / np.linalg.norm(centred)

    return max(colors, key=lambda name: direction(pixel) @ direction(np.array(colors[name], float)))


def test_iou_ignores_255() -> None:
    episode = make_episode(4)  # truth 4 x 2, prediction 2 x 3 that count, both 2 x 2
    assert episode.iou == 4 / (8 + 6 - 4)


def test_iou_of_nothing_is_nan() -> None:
    blank = np.zeros((4, 4), np.uint8)
    episode = EpisodePicture("", [], np.zeros((4, 4, 3), np.uint8), blank, blank > 0)
    assert math.isnan(episode.iou)


@pytest.mark.parametrize(
    ("size", "side"), [(64, 192), (32, 160), (160, 160), (200, 200), (512, 256), (100, 200), (1, 160)]
)
def test_tiles_are_large_enough_to_see(size: int, side: int) -> None:
    assert drawing.tile_side(size) == side


def test_prediction_tile_tells_hits_false_alarms_and_misses_apart() -> None:
    tile = prediction_tile(make_episode(), 192)
    assert tile.size == (192, 192)
    assert hue(tile, 0.25, 0.25) == "hit"
    assert hue(tile, 0.25, 0.75) == "false alarm"
    assert hue(tile, 0.75, 0.25) == "missed"
    assert hue(tile, 0.75, 0.75) == "grey"
    assert hue(tile, 0.25, 0.999) == "grey"  # predicted there, but ignored


def test_truth_tile_tints_the_truth_and_fades_what_is_ignored() -> None:
    tile = truth_tile(make_episode(), 192)
    assert hue(tile, 0.25, 0.25) == hue(tile, 0.75, 0.25) == "hit"
    assert hue(tile, 0.5, 0.75) == "grey"
    pixels = np.asarray(tile)
    assert pixels[96, 191].min() > pixels[96, 150].max()


def test_reference_tile_keeps_the_inside_and_fades_the_outside() -> None:
    image = np.full((64, 64, 3), (200, 40, 90), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    mask[:, :8] = 255  # background inside a reference
    pixels = np.asarray(reference_tile(image, mask, 192))
    assert tuple(pixels[96, 96]) == (200, 40, 90)
    assert tuple(pixels[96, 49]) == drawing.INK  # the outline's left edge
    assert tuple(pixels[96, 4]) == tuple(pixels[4, 96])  # ignored and background alike
    assert pixels[4, 96].min() > 100


@pytest.mark.parametrize(("references", "shown"), [(1, 1), (2, 2), (5, 3)])
def test_columns_follow_the_references_up_to_three(references: int, shown: int) -> None:
    page = draw_episodes([make_episode(references=references)] * 2, "val / novel, step 10")
    narrow = draw_episodes([make_episode()] * 2, "val / novel, step 10")
    assert page.width - narrow.width == (shown - 1) * (192 + drawing.GAP)
    assert page.height == narrow.height
    assert page.height > 2 * 192


def test_query_pixels_appear_unchanged_and_square() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    truth = np.zeros((64, 64), np.uint8)
    page = np.asarray(draw_episodes([EpisodePicture("x", [(image, truth)], image, truth, truth > 0)], "title"))
    left = drawing.MARGIN + drawing.NAME_WIDTH + 192 + drawing.GAP
    top = page.shape[0] - drawing.MARGIN - 192
    assert np.array_equal(page[top : top + 192 : 3, left : left + 192 : 3], image)


def test_long_and_foreign_names_stay_in_their_column() -> None:
    font = ImageFont.load_default(15)
    for name in ["a_long_name with/several-parts", "unbreakable" * 12, "", " ", "été 猫"]:
        lines = wrapped(name, font, 120).split("\n")
        assert len(lines) <= 5
        assert max(font.getlength(line.removesuffix("...")) for line in lines) <= 120
        draw_episodes([make_episode(name=name)], "title")
    assert wrapped("ring / striped", font, 500) == "ring / striped"
    assert "".join(wrapped("star_dotted_teal_large", font, 120).split("\n")) == "star_dotted_teal_large"
