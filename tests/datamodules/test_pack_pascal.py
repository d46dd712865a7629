"""Packing VOC 2012 and SBD from miniature trees in their owners' formats."""

import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed import check_usable, stored, stored_labels, stripes, write_picture
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.packing.datasets import pascal as pack_pascal
from ldis_lightning.datamodules.packing.datasets.pascal import CLASSES, PascalPacker, read_sbd
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.errors import UserError

TRAIN, VAL, SBD_TRAIN, SBD_VAL = (
    ["2007_01", "2007_02"],
    ["2007_03", "2007_04"],
    ["2007_01", "2008_05"],
    ["2007_03", "2008_06"],
)
ORDER = ["2007_01", "2007_02", "2008_05", "2008_06"]  # of the training set
LABELS = stripes(0, 15, 255, 3)
PALETTE = [channel for number in range(256) for channel in (number, number * 7 % 256, 255 - number)]


@pytest.fixture
def voc(tmp_path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "SegmentationClass").mkdir(parents=True)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL}.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    for name in TRAIN + VAL:
        write_picture(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(LABELS)
        mask.putpalette(PALETTE)  # as VOC's are: the border of objects has the index 255
        mask.save(root / "SegmentationClass" / f"{name}.png")
    return tmp_path


@pytest.fixture
def sbd(tmp_path) -> Path:
    root = tmp_path / "benchmark_RELEASE" / "dataset"
    (root / "cls").mkdir(parents=True)
    for split, names in {"train": SBD_TRAIN, "val": SBD_VAL}.items():
        (root / f"{split}.txt").write_text("".join(f"{name} \n" for name in names))
        for name in names:
            write_picture(root / "img" / f"{name}.jpg")
            savemat(root / "cls" / f"{name}.mat", {"GTcls": ground_truth(stripes(0, 20, 3))}, do_compression=True)
    return tmp_path


def ground_truth(segmentation: np.ndarray) -> dict[str, Any]:
    """The struct of an SBD file: a cell of 20 sparse boundary maps, the segmentation, the classes that occur."""
    boundaries = np.empty((20, 1), object)
    for number in range(20):
        boundaries[number, 0] = sparse.csc_matrix(segmentation == number + 1)
    present = np.unique(segmentation[segmentation > 0])[:, None]
    return {"Boundaries": boundaries, "Segmentation": segmentation, "CategoriesPresent": present}


@pytest.fixture(autouse=True)
def _miniature_totals(monkeypatch):
    monkeypatch.setattr(pack_pascal, "TOTALS", {"train": 4, "val": 2})


def test_training_joins_voc_and_sbd(voc, sbd, tmp_path):
    index, skipped = pack(PascalPacker(voc, "train", sbd), tmp_path / "out", name="voc", workers=1)
    assert [index.key(row) for row in range(len(index))] == ORDER
    assert (len(index.classes), index.classes[1], index.classes[20]) == (20, "aeroplane", "tvmonitor")
    folder = tmp_path / "VOCdevkit/VOC2012"
    for name in TRAIN:  # 2007_01 is in SBD, too: VOC's own annotation goes first
        expected = [
            (folder / path).read_bytes() for path in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png")
        ]
        assert list(stored(index, name)) == expected
        assert np.array_equal(stored_labels(index, name), LABELS)
    for name in ORDER[2:]:
        assert np.array_equal(stored_labels(index, name), stripes(0, 20, 3))
        assert stored(index, name)[0] == (sbd / f"benchmark_RELEASE/dataset/img/{name}.jpg").read_bytes()
    assert sorted(skipped.values()) == [1, 1]
    check_usable(tmp_path / "out")


def test_validation_needs_no_sbd(voc, tmp_path):
    index, _ = pack(PascalPacker(voc / "VOCdevkit", "val"), tmp_path / "out", name="voc", workers=1)
    assert [index.key(row) for row in range(len(index))] == VAL
    assert index.classes_of_row(0)[0].tolist() == [3, 15]  # borders are no class
    check_usable(tmp_path / "out")


@pytest.mark.parametrize("depth", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_any_folder_around_the_tree_will_do(voc, depth):
    assert [item.key for item in PascalPacker(voc / depth, "val").survey().items] == VAL


def test_totals_are_compared(voc, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_pascal, "TOTALS", {"train": 10_582, "val": 1_449})
    with pytest.raises(UserError, match=r"2 pictures for val were found, 1449 published"):
        pack(PascalPacker(voc, "val"), tmp_path / "out", name="voc", workers=1)


def test_what_is_missing_is_said_with_its_source(voc, sbd, tmp_path):
    with pytest.raises(UserError, match=r"--split train needs --sbd(.|\n)*SBD/download.html"):
        PascalPacker(voc, "train").survey()
    with pytest.raises(UserError, match=r"typo: there is no such folder(.|\n)*VOCtrainval_11-May-2012.tar"):
        PascalPacker(tmp_path / "typo", "val").survey()
    with pytest.raises(UserError, match="there is no cls in it"):
        PascalPacker(voc, "train", voc / "VOCdevkit").survey()
    root = voc / "VOCdevkit/VOC2012"
    (root / f"SegmentationClass/{VAL[0]}.png").unlink()
    (root / f"JPEGImages/{VAL[1]}.jpg").unlink()
    with pytest.raises(UserError) as error:
        PascalPacker(voc, "val").survey()
    assert all(
        text in str(error.value) for text in ("2 files are missing", f"{VAL[0]}.png", f"{VAL[1]}.jpg", "host.robots")
    )
    (root / "ImageSets/Segmentation/val.txt").write_text("../../etc/passwd\n")
    with pytest.raises(UserError, match=r"val.txt holds '../../etc/passwd'"):
        PascalPacker(voc, "val").survey()
    (root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match=r"val.txt is missing"):
        PascalPacker(voc, "val").survey()


def test_an_annotation_of_another_size_is_refused(voc, sbd, tmp_path):
    path = sbd / "benchmark_RELEASE/dataset/cls/2008_05.mat"
    savemat(path, {"GTcls": ground_truth(stripes(0, 1, size=(10, 10)))})
    with pytest.raises(UserError, match=r"2008_05.mat is 10 x 10 pixels, but its image 20 x 24"):
        pack(PascalPacker(voc, "train", sbd), tmp_path / "out", name="voc", workers=1)


# ---- Files that are none of SBD's


def mat(variables: dict[str, Any], path: Path) -> bytes:
    savemat(path, variables)
    return path.read_bytes()


def element(kind: int, data: bytes) -> bytes:
    """A data element of MATLAB's format 5."""
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(array_class: int, name: bytes, body: bytes) -> bytes:
    """A 1 x 1 array of a class, in MATLAB's format 5."""
    return element(
        14,
        element(6, struct.pack("<II", array_class, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, name) + body,
    )


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
NUMBER = matrix(6, b"", element(9, struct.pack("<d", 1.0)))
OBJECT = matrix(
    3,
    b"GTcls",
    element(1, b"os.system")
    + element(5, struct.pack("<i", 32))
    + element(1, b"Segmentation".ljust(32, b"\0"))
    + NUMBER,
)
FUNCTION = matrix(16, b"GTcls", matrix(6, b"", element(9, struct.pack("<d", 1.0))))
OPAQUE = element(
    14,
    element(6, struct.pack("<II", 17, 0))
    + element(1, b"GTcls")
    + element(1, b"MCOS")
    + element(1, b"os.system")
    + NUMBER,
)


@pytest.mark.parametrize("body", [OBJECT, FUNCTION, OPAQUE], ids=["object", "function", "opaque"])
@pytest.mark.parametrize("compressed", [False, True])
def test_objects_and_functions_are_refused_and_never_made(body, compressed):
    data = HEADER + (struct.pack("<II", 15, len(zlib.compress(body))) + zlib.compress(body) if compressed else body)
    with pytest.raises(UserError, match=r"x\.mat(: its| holds no| cannot)"):
        read_sbd(data, "x.mat")


def test_pickles_do_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    text = np.array([pickle.dumps(Bomb()).decode("latin-1")])
    for data in (pickle.dumps(Bomb()), mat({"GTcls": {"Segmentation": text}}, tmp_path / "x.mat")):
        with pytest.raises(UserError):
            read_sbd(data, "x.mat")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"GTinst": ground_truth(LABELS)}, "holds no struct GTcls"),
        ({"GTcls": LABELS}, "holds no struct GTcls"),
        ({"GTcls": {"Boundaries": LABELS}}, "holds no struct GTcls"),
        ({"GTcls": {"Segmentation": LABELS.astype(float)}}, "no picture of bytes"),
        ({"GTcls": {"Segmentation": np.zeros((3, 3, 3), np.uint8)}}, "no picture of bytes"),
        ({"GTcls": {"Segmentation": sparse.csc_matrix(LABELS)}}, "no picture of bytes"),
        ({"GTcls": {"Segmentation": np.full((3, 3), 21, np.uint8)}}, "other labels than 0 to 20"),
    ],
)
def test_other_contents_are_refused(variables, message, tmp_path):
    with pytest.raises(UserError, match=rf"x\.mat.*{message}"):
        read_sbd(mat(variables, tmp_path / "x.mat"), "x.mat")


def test_damaged_files_are_refused(tmp_path):
    whole = mat({"GTcls": ground_truth(stripes(0, 1))}, tmp_path / "x.mat")
    assert np.array_equal(read_sbd(whole, "x.mat"), stripes(0, 1))
    version_7_3 = b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    for data in (b"", b"\x89HDF\r\n\x1a\n", whole[:200], whole[:130] + bytes(70), version_7_3 + bytes(400)):
        with pytest.raises(UserError, match=r"x\.mat (cannot be read as a MATLAB file|holds no struct)"):
            read_sbd(data, "x.mat")
    with pytest.raises(UserError, match="more than 1048576"):
        read_sbd(whole + bytes(2**20), "x.mat")


def test_classes_are_those_of_voc():
    assert list(CLASSES) == list(range(1, 21)) and list(CLASSES.values()) == sorted(CLASSES.values())


def test_the_command(voc, sbd, tmp_path, capsys):
    split = ["--split", "train", "--sbd", str(sbd)]
    assert main(["pack", "pascal", str(voc), *split, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "pascal: 4 frames, 20 classes" in printed
    assert "left out: 1 annotations of SBD where VOC has its own" in printed
    with pytest.raises(SystemExit):
        main(["pack", "pascal", "--help"])
    printed = capsys.readouterr().out
    assert "VOCtrainval_11-May-2012.tar" in printed and "benchmark.tgz" in printed
