"""Packing VSPW from a miniature tree in its owners' format."""

import json
from pathlib import Path

import numpy as np
import pytest
from packed import check_usable, stored, stored_labels, stripes, write_picture, write_png

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.packing.datasets import vspw as pack_vspw
from ldis_lightning.datamodules.packing.datasets.vspw import CLASSES, VIDEOS, Vspw
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.errors import UserError

NUMBERS = {"others": "0"} | {f"kind_{number}": str(number) for number in range(1, CLASSES + 1)}


@pytest.fixture
def vspw(tmp_path) -> Path:
    root = tmp_path / "VSPW_480p"
    for video, labels in {"0_wHveSGjXyDY": (1, 124), "1001_5z-ijQjUf_0": (0, 7, 255, 252, 1)}.items():
        for frame in (103, 118, 133):  # every fifteenth of the film
            write_picture(root / f"data/{video}/origin/{frame:08d}.jpg")
            write_png(root / f"data/{video}/mask/{frame:08d}.png", stripes(*labels))
    for split in VIDEOS:
        (root / f"{split}.txt").write_text("1001_5z-ijQjUf_0\n0_wHveSGjXyDY\n")
    (root / "label_num_dic_final.json").write_text(json.dumps(NUMBERS))
    return root


@pytest.fixture(autouse=True)
def _miniature_totals(monkeypatch):
    monkeypatch.setattr(pack_vspw, "VIDEOS", dict.fromkeys(VIDEOS, 2))


def test_others_and_void_and_stray_labels_count_nowhere(vspw, tmp_path):
    index, _ = pack(Vspw(vspw, "val"), tmp_path / "out", name="vspw", workers=1)
    assert (index.kind, index.clip_names) == ("clips", ["1001_5z-ijQjUf_0", "0_wHveSGjXyDY"])
    assert (len(index.classes), index.classes[1], index.classes[124]) == (124, "kind 1", "kind 124")
    assert np.array_equal(stored_labels(index, "1001_5z-ijQjUf_0.00001"), stripes(255, 7, 255, 255, 1))
    original = vspw / "data/0_wHveSGjXyDY"
    assert stored(index, "0_wHveSGjXyDY.00002") == (
        (original / "origin/00000133.jpg").read_bytes(),
        (original / "mask/00000133.png").read_bytes(),
    )
    check_usable(tmp_path / "out")


def test_others_may_count_as_background(vspw, tmp_path):
    index, _ = pack(Vspw(vspw, "val", count_others=True), tmp_path / "out", name="vspw", workers=1)
    assert np.array_equal(stored_labels(index, "1001_5z-ijQjUf_0.00001"), stripes(0, 7, 255, 255, 1))


@pytest.mark.parametrize("given", [".", "VSPW_480p"])
def test_the_command(vspw, tmp_path, given, capsys):
    arguments = ["--split", "train", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["pack", "vspw", str(tmp_path / given), *arguments]) == 0
    assert "vspw-train: 6 frames of 2 clips, 124 classes" in capsys.readouterr().out


def test_totals_are_those_of_the_owners(vspw, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_vspw, "VIDEOS", VIDEOS)
    with pytest.raises(UserError, match="vspw is not complete: 2 videos were found, 343 published"):
        pack(Vspw(vspw, "val"), tmp_path / "out", name="vspw")


def test_what_is_missing_is_named(vspw, tmp_path):
    (vspw / "data/0_wHveSGjXyDY/mask/00000118.png").unlink()
    with pytest.raises(UserError, match=r"missing(.|\n)*0_wHveSGjXyDY/mask/00000118\.png\n(.|\n)*vspwdataset"):
        Vspw(vspw, "val").survey()
    (vspw / "val.txt").write_text("nowhere\n")
    with pytest.raises(UserError, match=r"nowhere/origin(.|\n)*vspwdataset"):
        Vspw(vspw, "val").survey()
    (vspw / "val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt is missing"):
        Vspw(vspw, "val").survey()
    with pytest.raises(UserError, match=r"there is no data in it(.|\n)*VSPW/\{data/<video>"):
        Vspw(vspw / "data", "val").survey()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as class names"),
        ('["wall"]', "cannot be read as class names"),
        ('{"wall": "one"}', "cannot be read as class names"),
        ('{"wall": "1"}', "does not number the classes 1 to 124"),
        (None, "is missing"),
    ],
)
def test_class_names_that_are_none(vspw, text, message):
    file = vspw / "label_num_dic_final.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=rf"label_num_dic_final\.json {message}"):
        Vspw(vspw, "val").survey()


def test_damaged_maps_are_named(vspw, tmp_path):
    mask = vspw / "data/0_wHveSGjXyDY/mask/00000118.png"
    write_png(mask, np.zeros((24, 20, 3), np.uint8))
    with pytest.raises(UserError, match=rf"1 of its frames:\n  {mask} is a PNG of RGB colours"):
        pack(Vspw(vspw, "val"), tmp_path / "out", name="vspw", workers=1)
    index, skipped = pack(Vspw(vspw, "val"), tmp_path / "out", name="vspw", workers=1, skip_damaged=True)
    assert index.clip_names == ["1001_5z-ijQjUf_0"]
    assert sum(skipped.values()) == 1
