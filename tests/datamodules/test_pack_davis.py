"""Packing DAVIS from miniature trees in its owners' formats of 2016 and 2017."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from packed import SIZE, check_usable, stored, stored_labels, stripes, write_picture, write_png
from PIL import Image

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.packing.datasets import davis as pack_davis
from ldis_lightning.datamodules.packing.datasets.davis import TOTALS, Davis
from ldis_lightning.datamodules.packing.engine import Packed, pack
from ldis_lightning.errors import UserError

CLIPS = {"bear": 4, "goat": 3}


def write_palette(path: Path, labels: np.ndarray) -> None:
    """An annotation as DAVIS 2017 has it: its values are indices into a palette of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(path)


@pytest.fixture
def davis16(tmp_path) -> Path:
    root, lines = tmp_path / "DAVIS", []
    for clip, frames in CLIPS.items():
        for frame in range(frames):
            write_picture(root / f"JPEGImages/480p/{clip}/{frame:05d}.jpg")
            write_png(root / f"Annotations/480p/{clip}/{frame:05d}.png", stripes(0, 255))
            lines.append(f"/JPEGImages/480p/{clip}/{frame:05d}.jpg /Annotations/480p/{clip}/{frame:05d}.png \n")
    (root / "ImageSets/480p").mkdir(parents=True)
    (root / "ImageSets/480p/val.txt").write_text("".join(lines))
    return root


@pytest.fixture
def davis17(tmp_path) -> Path:
    root = tmp_path / "DAVIS"
    for clip, frames in CLIPS.items():
        for frame in range(frames):
            write_picture(root / f"JPEGImages/480p/{clip}/{frame:05d}.jpg")
            labels = stripes(0, 1, 2) if clip == "bear" else stripes(0, 1, 2, 3, 0)
            write_palette(root / f"Annotations/480p/{clip}/{frame:05d}.png", labels)
    for folder in ("2016", "2017"):
        (root / "ImageSets" / folder).mkdir(parents=True)
    for split in ("train", "test-dev"):
        (root / f"ImageSets/2017/{split}.txt").write_text("goat\nbear\n")
    return root


@pytest.fixture(autouse=True)
def _miniature_totals(monkeypatch):
    monkeypatch.setattr(pack_davis, "TOTALS", dict.fromkeys(TOTALS, (2, 7)))


def pack_davis_of(root: Path, out: Path, year: int, split: str, **options) -> Packed:
    return pack(Davis(root, year, split), out, name="davis", workers=1, **options)


def test_2016_has_one_object(davis16, tmp_path):
    index, skipped = pack_davis_of(davis16, tmp_path / "out", 2016, "val")
    assert (index.kind, index.clip_names, index.classes, len(index)) == ("clips", ["bear", "goat"], {1: "object"}, 7)
    assert stored(index, "goat.00002")[0] == (davis16 / "JPEGImages/480p/goat/00002.jpg").read_bytes()
    assert np.array_equal(stored_labels(index, "goat.00002"), stripes(0, 1))
    assert not sum(skipped.values())
    check_usable(tmp_path / "out")


def test_2017_keeps_its_objects_and_bytes(davis17, tmp_path):
    index, _ = pack_davis_of(davis17, tmp_path / "out", 2017, "train")
    assert index.clip_names == ["goat", "bear"], "the order of the list"
    assert index.classes == {1: "object 1", 2: "object 2", 3: "object 3"}
    annotation = davis17 / "Annotations/480p/bear/00003.png"
    assert stored(index, "bear.00003")[1] == annotation.read_bytes()
    assert index.pixels(3).tolist() == [SIZE[0] * SIZE[1] // 5] * 3
    check_usable(tmp_path / "out")


def test_annotations_of_the_tests_are_those_of_first_frames(davis17, tmp_path):
    for clip in CLIPS:
        for path in (davis17 / f"Annotations/480p/{clip}").iterdir():
            if path.stem != "00000":
                path.unlink()
    index, skipped = pack_davis_of(davis17, tmp_path / "out", 2017, "test-dev")
    assert skipped == {"annotations that the owners keep: nothing counts in these frames": 5}
    assert index.rows_of_class(1).tolist() == [0, 3]
    assert (stored_labels(index, "bear.00002") == 255).all()


@pytest.mark.parametrize("given", [".", "DAVIS"])
def test_the_command(davis16, tmp_path, given, capsys):
    arguments = ["--year", "2016", "--split", "val", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["pack", "davis", str(tmp_path / given), *arguments]) == 0
    assert "davis2016-val: 7 frames of 2 clips, 1 classes" in capsys.readouterr().out
    assert ShardIndex.open(tmp_path / "out").name == "davis2016-val"


def test_other_resolutions_lie_in_other_folders(davis17, tmp_path):
    for folder in ("JPEGImages", "Annotations"):
        (davis17 / folder / "480p").rename(davis17 / folder / "Full-Resolution")
    with pytest.raises(UserError, match=r"there is no JPEGImages/480p in it(.|\n)*davischallenge\.org/davis2017"):
        Davis(davis17, 2017, "train").survey()
    assert len(Davis(davis17, 2017, "train", "Full-Resolution").survey().items) == 2


def test_totals_are_those_of_the_owners(davis16, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_davis, "TOTALS", TOTALS)
    message = r"2 sequences were found, 20 published; 7 frames were found, 1376 published(.|\n)*--allow_partial"
    with pytest.raises(UserError, match=message):
        pack_davis_of(davis16, tmp_path / "out", 2016, "val")
    assert len(pack_davis_of(davis16, tmp_path / "out", 2016, "val", allow_partial=True).index) == 7


def test_what_is_missing_is_named(davis16, davis17, tmp_path):
    (davis16 / "Annotations/480p/bear/00001.png").unlink()
    for year, split in ((2016, "val"), (2017, "train")):
        with pytest.raises(UserError, match=r"missing(.|\n)*bear/00001\.png\n(.|\n)*davischallenge"):
            Davis(davis16, year, split).survey()
    shutil.rmtree(davis17 / "JPEGImages/480p/goat")
    with pytest.raises(UserError, match=r"480p holds no pictures of goat\. It should be"):
        Davis(davis17, 2017, "train").survey()
    with pytest.raises(UserError, match=r"val\.txt is missing\. The tree should be"):
        Davis(davis17, 2017, "val").survey()
    with pytest.raises(UserError, match="typo: there is no such folder"):
        Davis(tmp_path / "typo", 2017, "val").survey()


def test_the_tree_of_2017_is_not_that_of_2016(davis17):
    with pytest.raises(UserError, match="is the tree of DAVIS 2017, whose annotations are not those of 2016"):
        Davis(davis17, 2016, "train").survey()
    with pytest.raises(UserError, match="DAVIS 2016 has no split test-dev: its splits are train, val"):
        Davis(davis17, 2016, "test-dev")


@pytest.mark.parametrize("line", ["bear", "/etc/passwd /etc/passwd", "/JPEGImages/480p/bear/0.jpg"])
def test_lists_of_2016_that_are_none(davis16, line):
    (davis16 / "ImageSets/480p/val.txt").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"val\.txt holds '.*', which is no picture with its annotation"):
        Davis(davis16, 2016, "val").survey()


def test_damaged_files_are_named(davis17, tmp_path):
    picture, annotation = davis17 / "JPEGImages/480p/bear/00001.jpg", davis17 / "Annotations/480p/goat/00002.png"
    picture.write_bytes(picture.read_bytes()[:-200])
    annotation.write_bytes(annotation.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"2 of its frames:\n  {annotation} (.|\n)*  {picture} is a damaged JPEG"):
        pack_davis_of(davis17, tmp_path / "out", 2017, "train")
    with pytest.raises(UserError, match="nothing is left to pack"):
        pack_davis_of(davis17, tmp_path / "out", 2017, "train", skip_damaged=True)
