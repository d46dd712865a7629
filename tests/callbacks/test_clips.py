from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldis_lightning.callbacks.clips import MAX_NAME, ClipFiles, label_image, safe_name, voc_color_map
from ldis_lightning.callbacks.movies import Gif

LABELS = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)


def reopened(labels: np.ndarray, values: list[int], folder: Path) -> Image.Image:
    label_image(labels, values).save(folder / "labels.png")
    with Image.open(folder / "labels.png", formats=["PNG"]) as picture:
        picture.load()
        return picture


def test_colour_map_is_that_of_voc_and_davis() -> None:
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0),
             15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    colors = voc_color_map()
    assert {label: tuple(colors[label].tolist()) for label in known} == known


def test_pixels_are_the_data_sets_labels(tmp_path: Path) -> None:
    picture = reopened(LABELS, [7, 254], tmp_path)
    assert picture.mode == "P"
    assert np.asarray(picture).tolist() == [[0, 7, 254], [254, 255, 7]]
    assert picture.getpalette() == voc_color_map().flatten().tolist()


def test_large_labels_make_a_16_bit_picture(tmp_path: Path) -> None:
    picture = reopened(LABELS, [256, 65534], tmp_path)
    assert picture.mode == "I;16"
    assert np.asarray(picture).tolist() == [[0, 256, 65534], [65534, 255, 256]]


def test_as_many_concepts_as_a_label_map_holds(tmp_path: Path) -> None:
    labels = np.arange(255, dtype=np.uint8)[None]
    picture = reopened(labels, list(range(254, 0, -1)), tmp_path)
    assert np.asarray(picture)[0].tolist() == [0, *range(254, 0, -1)]


@pytest.mark.parametrize("name", ["bear", "0001TP", "1_abc-d.e", "été"])
def test_plain_names_stay(name: str) -> None:
    assert safe_name(name) == name


@given(st.text())
def test_names_are_safe_for_files(name: str) -> None:
    safe = safe_name(name)
    assert Path(safe).name == safe
    assert not safe.startswith(".")
    assert 0 < len(safe.encode()) <= MAX_NAME


@given(st.text(), st.text())
def test_two_clips_never_share_a_name(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_changed_names_are_told_apart() -> None:
    names = ["a/b", "a_b", "a b", "../a", "..", ".", "", "a" * 300, "a" * 301, ".a"]
    assert len({safe_name(name) for name in names}) == len(names)


def test_files_of_a_clip(tmp_path: Path) -> None:
    clip = ClipFiles(tmp_path, "bear", "the bear", ["cat", "dog"], [7, 9], Gif, fps=10)
    picture = np.zeros((2, 3, 3), np.uint8)
    clip.add(0, picture, LABELS, "prompt")
    assert [path.name for path in tmp_path.rglob("*.png")] == ["00000.png"]
    assert not (tmp_path / "bear.gif").exists()
    clip.add(12, picture, LABELS)
    clip.finish()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.png", "00012.png", "bear", "bear.gif"]
    with Image.open(tmp_path / "bear.gif", formats=["GIF"]) as movie:
        assert movie.n_frames == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_no_movie_where_none_is_wanted(tmp_path: Path) -> None:
    clip = ClipFiles(tmp_path, "bear", "bear", ["cat", "dog"], [7, 9], None, fps=10)
    clip.add(3, np.zeros((2, 3, 3), np.uint8), LABELS)
    clip.finish()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00003.png", "bear"]


def test_a_discarded_clip_keeps_its_whole_pngs_alone(tmp_path: Path) -> None:
    clip = ClipFiles(tmp_path, "bear", "bear", ["cat", "dog"], [7, 9], Gif, fps=10)
    clip.add(3, np.zeros((2, 3, 3), np.uint8), LABELS)
    clip.discard()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00003.png", "bear"]
