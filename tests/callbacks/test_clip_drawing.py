import math

import numpy as np
import pytest

from ldis_lightning.callbacks.clip_drawing import GAP, MARGIN, NAME_WIDTH, TILE, ClipPicture, concept_tile, draw_clips
from ldis_lightning.callbacks.overlay import COLORS


def make_row(height: int = 36, width: int = 64, concepts: int = 2, clip: str = "bear") -> ClipPicture:
    """Truth: the first concept left, ignored in the last row; prediction: the first concept above, the second below."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    truth, prediction = np.zeros((height, width), np.uint8), np.ones((height, width), np.uint8)
    truth[:, : width // 2] = 1
    truth[-1] = 255
    prediction[height // 2 :] = 2
    names = [f"concept {number}" for number in range(concepts)]
    return ClipPicture(clip, 12, names, (image, truth), image, truth, prediction)


def labelled(truth: list[int], prediction: list[int]) -> ClipPicture:
    rows = [np.array([labels], np.uint8) for labels in (truth, prediction)]
    image = np.zeros((1, len(truth), 3), np.uint8)
    return ClipPicture("", 0, ["a", "b", "c"], (image, rows[0]), image, rows[0], rows[1])


@pytest.mark.parametrize(
    ("truth", "prediction", "miou"),
    [
        ([1, 1, 2, 0], [1, 1, 2, 0], 1.0),
        ([1, 1, 2, 0], [1, 2, 2, 0], (1 / 2 + 1 / 2) / 2),
        ([1, 1, 0, 0], [1, 1, 3, 0], (1 + 0) / 2),  # a false alarm is a concept, too
        ([1, 255, 255, 0], [1, 2, 1, 0], 1.0),
    ],
)
def test_miou_is_over_the_concepts_of_the_frame(truth: list[int], prediction: list[int], miou: float) -> None:
    assert labelled(truth, prediction).miou == miou


def test_miou_of_nothing_is_nan() -> None:
    assert math.isnan(labelled([0, 255], [0, 1]).miou)


def test_a_tile_keeps_the_aspect_ratio_and_shows_concepts_in_their_colours() -> None:
    row = make_row()
    tile = np.asarray(concept_tile(row.query, row.prediction, (200, 128), 1.0))
    assert tile.shape == (72, 128, 3)
    assert tuple(tile[10, 60]) == COLORS[0]
    assert tuple(tile[60, 60]) == COLORS[1]
    plain = np.asarray(concept_tile(row.query, None, (36, 64), 0.0))
    assert np.array_equal(plain, row.query)


def test_the_page_has_a_row_of_four_tiles_for_each_frame() -> None:
    one, two = draw_clips([make_row()], "val / davis"), draw_clips([make_row(), make_row(64, 64)], "val / davis")
    assert one.width == two.width
    assert two.height > one.height + 36 * TILE // 64
    page = np.asarray(one)
    left = MARGIN + NAME_WIDTH + TILE + GAP  # the query, four times its size
    found = [
        y
        for y in range(one.height - 144)
        if np.array_equal(page[y : y + 144 : 4, left : left + TILE : 4], make_row().query)
    ]
    assert found
    prediction = page[found[0] : found[0] + 144, left + 2 * (TILE + GAP) :][:, :TILE]
    assert (prediction == COLORS[0]).all(-1)[:72].any()
    assert (prediction == COLORS[1]).all(-1)[72:].any()


def test_what_is_ignored_fades() -> None:
    page = np.asarray(draw_clips([make_row(64, 64)], ""))
    left = MARGIN + NAME_WIDTH + 2 * (TILE + GAP)
    truth = page[page.shape[0] - 320 :, left + TILE // 2 + 8 : left + TILE]
    assert (truth.reshape(len(truth), -1) > 215).all(1).any()


@pytest.mark.parametrize(("size", "concepts"), [((1, 1), 1), ((3, 400), 30), ((400, 3), 254)])
def test_odd_frames_are_drawn(size: tuple[int, int], concepts: int) -> None:
    page = draw_clips([make_row(*size, concepts, clip="long/name of a clip " * 9)] * 2, "title")
    assert page.width < 2000
    assert page.height < 2000
