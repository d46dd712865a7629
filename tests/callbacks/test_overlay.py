import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldis_lightning.callbacks.overlay import (
    BAND,
    COLORS,
    Legend,
    Overlay,
    concept_color,
    inner_edge,
    shown_size,
    tinted,
)

# Machado et al. 2009, severity 1: how linear RGB looks with protanopia, deuteranopia and tritanopia.
VISION = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colors: np.ndarray, vision: np.ndarray) -> np.ndarray:
    """sRGB (n, 3) in [0, 1] as seen -> CIELAB (n, 3), white D65."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = np.clip(linear @ vision.T, 0, 1) @ to_xyz.T / to_xyz.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("count", "least"), [(8, 31), (24, 13)])
def test_colours_differ_as_the_docstring_says(vision: str, count: int, least: float) -> None:
    seen = lab(np.array(COLORS[:count]) / 255, np.array(VISION[vision]))
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert distance[~np.eye(count, dtype=bool)].min() >= least


def test_there_are_colours_for_any_number_of_concepts() -> None:
    assert concept_color(1) == COLORS[0]
    assert concept_color(len(COLORS) + 2) == COLORS[1]


def test_tint_keeps_the_background_and_outlines_in_the_full_colour() -> None:
    picture = np.full((12, 12, 3), 100, np.uint8)
    labels = np.zeros((12, 12), np.uint8)
    labels[2:10, 2:10] = 2
    drawn = tinted(picture, labels, strength=0.5, outline=1)
    assert np.array_equal(drawn[labels == 0], picture[labels == 0])
    assert tuple(drawn[2, 5]) == tuple(drawn[5, 9]) == COLORS[1]
    assert np.allclose(drawn[5, 5], (np.array(COLORS[1]) + 100) / 2, atol=0.5)


def test_touching_concepts_each_have_their_edge() -> None:
    labels = np.repeat([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], 10, axis=0)
    assert inner_edge(labels, 1)[5].tolist() == [label in "<>" for label in "..<..><..."]
    assert not inner_edge(np.ones((4, 4), int), 2).any()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((360, 480), (360, 480)), ((64, 64), (384, 384)), ((48, 100), (192, 400)), ((1080, 1920), (720, 1280)),
     ((361, 641), (360, 640)), ((2000, 3), (1280, 2))],
)  # fmt: skip
def test_shown_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert shown_size(size, least=384, most=1280) == shown


def test_overlay_draws_the_picture_whole_and_the_caption_below() -> None:
    overlay = Overlay("bear", ["cat", "dog"], (200, 400))
    assert overlay.shape[0] % 2 == overlay.shape[1] % 2 == 0
    picture = np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    labels = np.zeros((200, 400), np.uint8)
    labels[50:100, 50:100] = 1
    frame = overlay.draw(picture, labels, 7, "prompt")
    assert frame.shape == (*overlay.shape, 3)
    assert np.array_equal(frame[:200][labels == 0], picture[labels == 0])
    band = frame[200:].reshape(-1, 3)
    assert (band == BAND).all(1).mean() > 0.7  # little ink
    for color in COLORS[:2]:
        assert (band == color).all(1).any()
    assert not (band == COLORS[2]).all(1).any()
    assert not np.array_equal(frame, overlay.draw(picture, labels, 8, "prompt"))
    assert not np.array_equal(frame, overlay.draw(picture, labels, 7))


def test_overlay_takes_pictures_of_another_size_than_the_labels() -> None:
    overlay = Overlay("bear", ["cat"], (400, 500))
    labels = np.ones((400, 500), np.uint8)
    frame = overlay.draw(np.zeros((16, 20, 3), np.uint8), labels, 0)
    assert np.allclose(frame[100, 100], np.array(COLORS[0]) / 2, atol=1)


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (64, 64)])
@pytest.mark.parametrize("concepts", [1, 40])
def test_overlay_of_odd_frames(size: tuple[int, int], concepts: int) -> None:
    overlay = Overlay("a very long name of a clip " * 9, ["concept " * 20] * concepts, size)
    frame = overlay.draw(np.zeros((*size, 3), np.uint8), np.full(size, concepts, np.uint8), 123456, "prompt")
    assert frame.shape == (*overlay.shape, 3)
    assert max(overlay.shape) < 1500


def drawn(legend: Legend, width: int) -> np.ndarray:
    page = Image.new("RGB", (width, legend.height), (255, 255, 255))
    legend.draw(ImageDraw.Draw(page), 0, 0, (0, 0, 0))
    return np.asarray(page)


def test_legend_shows_every_concept_that_fits_and_counts_the_rest() -> None:
    few, many = Legend(["cat", "dog"], 300, 12), Legend([f"concept {i}" for i in range(24)], 300, 12, most_lines=2)
    assert (few.lines, few.rest) == (1, "")
    assert many.lines == 2
    pixels = drawn(many, 300)
    shown = sum(bool((pixels == color).all(-1).any()) for color in COLORS)
    assert 4 < shown < 24
    assert many.rest == f"+{24 - shown}"
    assert (pixels[:, -1] == 255).all()  # nothing runs out of the picture


def test_legend_begins_after_its_indent() -> None:
    pixels = drawn(Legend(["cat"] * 8, 200, 12, indent=90), 200)
    assert (pixels[:18, :90] == 255).all()
    assert (pixels[18:, :90] != 255).any()
