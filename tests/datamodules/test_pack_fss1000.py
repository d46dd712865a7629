"""Packing FSS-1000 from a miniature tree in its authors' format."""

from pathlib import Path

import numpy as np
import pytest
from packed import SIZE, check_usable, stored, stored_labels, stripes, write_picture, write_png

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.packing.datasets import fss1000 as pack_fss1000
from ldis_lightning.datamodules.packing.datasets.fss1000 import FSS1000Packer, classes_of_split, read_mask
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.datamodules.packing.trees import read_list
from ldis_lightning.errors import UserError

TEST, VAL, TRAIN = ["abe's_flyingfish", "bus"], ["abacus"], ["zebra", "one-armed_bandit"]
WHITE = stripes(0, 255)


@pytest.fixture
def fss(tmp_path) -> Path:
    for name in TEST + VAL + TRAIN:
        for number in range(1, 11):
            folder = tmp_path / "fewshot_data" / name
            write_picture(folder / f"{number}.jpg")
            write_png(folder / f"{number}.png", np.repeat(WHITE[..., None], 3, axis=2))
    return tmp_path


@pytest.fixture(autouse=True)
def _miniature_totals(monkeypatch):
    monkeypatch.setattr(pack_fss1000, "SPLITS", {"train": 2, "val": 1, "test": 2})


@pytest.mark.parametrize(("split", "names"), [("train", sorted(TRAIN)), ("val", VAL), ("test", TEST)])
def test_splits(fss, split, names, tmp_path):
    index, _ = pack(FSS1000Packer(fss, split), tmp_path / "out", name="fss", workers=1)
    assert index.classes == dict(enumerate(names, start=1))
    assert sorted(index.key(row) for row in range(len(index))) == sorted(
        f"{n}/{i}" for n in names for i in range(1, 11)
    )
    for class_id, name in index.classes.items():
        assert len(index.rows_of_class(class_id)) == 10
        assert np.array_equal(stored_labels(index, f"{name}/10"), stripes(0, class_id))
        assert stored(index, f"{name}/10")[0] == (fss / f"fewshot_data/{name}/10.jpg").read_bytes()
    check_usable(tmp_path / "out")


def test_lists_are_of_240_other_classes():
    test, val = (
        {*read_list(Path(pack_fss1000.__file__).parent / f"splits/fss1000_{s}.txt", "")} for s in ("test", "val")
    )
    assert len(test) == len(val) == 240 and not test & val
    present = test | val | {f"other {number}" for number in range(520)}
    assert [len(classes_of_split(split, present)) for split in ("train", "val", "test")] == [520, 240, 240]


def test_ids_of_many_classes_leave_255_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pack_fss1000, "PICTURES", 1)
    monkeypatch.setattr(pack_fss1000, "SPLITS", {"train": 300})
    for number in range(300):
        write_picture(tmp_path / f"src/c{number:03d}/1.jpg", (4, 4))
        write_png(tmp_path / f"src/c{number:03d}/1.png", np.full((4, 4), 255, np.uint8))
    index, _ = pack(FSS1000Packer(tmp_path / "src", "train"), tmp_path / "out", name="fss", workers=1)
    assert (index.classes[254], index.classes[256], index.classes[301]) == ("c253", "c254", "c299")
    assert (stored_labels(index, "c254/1") == 256).all() and (stored_labels(index, "c253/1") == 254).all()


def png(pixels: np.ndarray, tmp_path: Path) -> bytes:
    return write_png(tmp_path / "mask.png", pixels)


@pytest.mark.parametrize("channels", [0, 3, 4])
def test_masks_are_cut_at_half(channels, tmp_path):
    values = np.tile(np.array([0, 60, 127, 128, 200, 255], np.uint8), (3, 1))
    pixels = np.repeat(values[..., None], channels, axis=2) if channels else values
    assert np.array_equal(read_mask(png(pixels, tmp_path), (3, 6), "x"), values >= 128)


def test_masks_of_0_and_1(tmp_path):
    assert np.array_equal(read_mask(png(stripes(0, 1), tmp_path), SIZE, "x"), stripes(0, 1) == 1)
    assert not read_mask(png(stripes(0, 0), tmp_path), SIZE, "x").any()


def test_masks_of_another_size_are_scaled(tmp_path):
    large = np.kron(WHITE, np.ones((2, 3), np.uint8))
    assert np.array_equal(read_mask(png(large, tmp_path), SIZE, "x"), WHITE == 255)


def test_what_is_missing_is_said_with_its_source(fss, tmp_path):
    with pytest.raises(UserError, match=r"typo: there is no such folder(.|\n)*HKUSTCV/FSS-1000"):
        FSS1000Packer(tmp_path / "typo", "test").survey()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: there is no \*/1.jpg in it"):
        FSS1000Packer(tmp_path / "empty", "test").survey()
    (fss / "fewshot_data/bus/7.png").unlink()
    with pytest.raises(UserError, match=r"a file is missing:\n.*bus/7.png\n(.|\n)*fewshot_data.zip"):
        FSS1000Packer(fss, "test").survey()


def test_missing_classes_show_in_the_totals(fss, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_fss1000, "SPLITS", {"train": 520, "val": 240, "test": 240})
    with pytest.raises(UserError, match="2 classes for test were found, 240 published"):
        pack(FSS1000Packer(fss, "test"), tmp_path / "out", name="fss", workers=1)
    pack(FSS1000Packer(fss, "test"), tmp_path / "out", name="fss", workers=1, allow_partial=True)


def test_other_files_are_counted(fss):
    write_picture(fss / "fewshot_data/bus/1.jpeg")
    (fss / "fewshot_data/.cache").mkdir()  # no class
    assert FSS1000Packer(fss, "train").survey().classes == dict(enumerate(sorted(TRAIN), start=1))
    assert sum(FSS1000Packer(fss, "test").survey().skipped.values()) == 1


def test_damaged_masks_are_named(fss, tmp_path):
    (fss / "fewshot_data/bus/3.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"bus/3.png cannot be read as PNG"):
        pack(FSS1000Packer(fss, "test"), tmp_path / "out", name="fss", workers=1)


def test_the_command(fss, tmp_path, capsys):
    assert main(["pack", "fss1000", str(fss), "--split", "val", "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "fss1000: 10 frames, 1 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["pack", "fss1000", "--help"])
    assert "HKUSTCV/FSS-1000" in capsys.readouterr().out
