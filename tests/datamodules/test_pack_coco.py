"""Packing COCO, and anyone's data in its format, from miniature trees."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed import SIZE, check_usable, stored, stored_labels, write_picture
from PIL import Image
from test_coco import annotation, box, compressed, uncompressed

from ldis_lightning.datamodules.commands import main
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.packing.coco_packer import InstancesPacker
from ldis_lightning.datamodules.packing.datasets import coco as pack_coco
from ldis_lightning.datamodules.packing.datasets.coco import CocoPacker
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2
NAME = "COCO_val2014_00000000000"
CATEGORIES = [
    *range(1, 12),
    *range(13, 26),
    *range(27, 29),
    *range(31, 45),
    *range(46, 66),
    67,
    70,
    *range(72, 83),
    *range(84, 91),
]


def crowd() -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[15:, :] = True
    return mask


def content() -> dict[str, Any]:
    """Four pictures: polygons and a crowd, uncompressed runs, compressed runs, nothing."""
    height, width = SIZE
    images = [{"id": n, "file_name": f"{NAME}{n}.jpg", "height": height, "width": width} for n in (3, 1, 2, 4)]
    annotations = [
        annotation(box(2, 2, 12, 20), 1, image_id=1, category_id=90),
        annotation(box(4, 4, 8, 8), 2, image_id=1, category_id=1),
        annotation(uncompressed(crowd()), 900100000001, image_id=1, category_id=1, iscrowd=1),
        annotation(uncompressed(crowd()), 3, image_id=2, category_id=90),
        annotation(compressed(crowd()), 4, image_id=3, category_id=1),
        annotation(box(1, 1, 5, 5), 5, image_id=3, category_id=1),
    ]
    names = [{"id": number, "name": f"thing {number}", "supercategory": "x"} for number in reversed(CATEGORIES)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": names}


@pytest.fixture
def coco(tmp_path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2014.json").write_text(json.dumps(content()))
    for number in range(1, 5):
        write_picture(tmp_path / f"val2014/{NAME}{number}.jpg", mode="L" if number == 2 else "RGB")
    return tmp_path


@pytest.fixture(autouse=True)
def _miniature_totals(monkeypatch):
    monkeypatch.setitem(pack_coco.TOTALS, (2014, "val"), (4, 3))


def test_coco_from_its_json_alone(coco, tmp_path):
    index, skipped = pack(CocoPacker(coco, 2014, "val"), tmp_path / "out", name="coco", workers=2)
    assert [index.key(row) for row in range(len(index))] == [f"{NAME}{number}" for number in (1, 2, 3)]
    assert len(index.classes) == 80
    assert (index.classes[1], index.classes[12], index.classes[80]) == ("thing 1", "thing 13", "thing 90")
    for number in (1, 2, 3):
        assert stored(index, f"{NAME}{number}")[0] == (coco / f"val2014/{NAME}{number}.jpg").read_bytes()
    expected = np.zeros(SIZE, np.uint8)
    expected[15:] = 255
    expected[2:20, 2:12] = 80
    expected[4:8, 4:8] = 1
    assert np.array_equal(stored_labels(index, f"{NAME}1"), expected)
    assert np.array_equal(stored_labels(index, f"{NAME}2"), np.where(crowd(), 80, 0))
    assert +skipped == {"pictures without annotations": 1}
    check_usable(tmp_path / "out")


def test_crowds_as_their_class(coco, tmp_path):
    index, _ = pack(CocoPacker(coco, 2014, "val", crowds_are_classes=True), tmp_path / "out", name="coco", workers=1)
    labels = stored_labels(index, f"{NAME}1")
    assert (labels[20:] == 1).all() and (labels[15:20, 2:12] == 80).all()


def test_the_result_does_not_depend_on_workers(coco, tmp_path):
    one, many = (pack(CocoPacker(coco, 2014, "val"), tmp_path / str(n), name="coco", workers=n) for n in (1, 3))
    assert one.index.hash == many.index.hash


def test_a_worker_that_unpickles_the_packer_can_read(coco):
    packer = CocoPacker(coco, 2014, "val")
    (part,) = packer.survey().items[0].parts
    assert len(pickle.dumps(part)) < 1000
    assert pickle.loads(pickle.dumps(packer)).read(part) == packer.read(part)


def test_a_changed_json_is_another_job(coco):
    packer = CocoPacker(coco, 2014, "val")
    packer.survey()
    before = {name: value for name, value in vars(packer).items() if not name.startswith("_")}
    path = coco / "annotations/instances_val2014.json"
    path.write_text(path.read_text().replace("[2, 2,", "[2, 3,"))
    packer.survey()
    assert before != {name: value for name, value in vars(packer).items() if not name.startswith("_")}


def test_pictures_may_lie_in_a_folder_images(coco, tmp_path):
    (coco / "images").mkdir()
    (coco / "val2014").rename(coco / "images/val2014")
    assert len(CocoPacker(coco, 2014, "val").survey().items) == 3


def test_totals_are_compared(coco, tmp_path, monkeypatch):
    monkeypatch.setitem(pack_coco.TOTALS, (2014, "val"), (40_504, 40_137))
    with pytest.raises(UserError) as error:
        pack(CocoPacker(coco, 2014, "val"), tmp_path / "out", name="coco", workers=1)
    assert "4 pictures were found, 40504 published" in str(error.value)
    assert "3 pictures with annotations were found, 40137 published" in str(error.value)
    pack(CocoPacker(coco, 2014, "val"), tmp_path / "out", name="coco", workers=1, allow_partial=True)


def test_what_is_missing_is_said_with_its_source(coco, tmp_path):
    with pytest.raises(
        UserError, match=r"no annotations/instances_train2017.json in it(.|\n)*train2017.zip(.|\n)*cocodataset"
    ):
        CocoPacker(coco, 2017, "train")
    with pytest.raises(UserError, match="typo: there is no such folder"):
        CocoPacker(tmp_path / "typo", 2014, "val")
    (coco / f"val2014/{NAME}2.jpg").unlink()
    with pytest.raises(UserError, match=rf"a file is missing:\n.*val2014/{NAME}2.jpg\n(.|\n)*val2014.zip"):
        CocoPacker(coco, 2014, "val").survey()


def test_a_picture_of_another_size_than_the_json_says(coco, tmp_path):
    write_picture(coco / f"val2014/{NAME}1.jpg", (10, 10))
    with pytest.raises(UserError, match=rf"the mask of {NAME}1 is 20 x 24 pixels, but its image 10 x 10"):
        pack(CocoPacker(coco, 2014, "val"), tmp_path / "out", name="coco", workers=1)


# ---- Anyone's data


@pytest.fixture
def own(tmp_path) -> Path:
    """A JSON beside a folder of pictures in several formats, one of them in a folder of its own."""
    height, width = SIZE
    names = ["b.x.png", "a.jpg", "more/c.JPEG", "d.bmp", "e.tif", "f.webp", "g.ppm"]
    for name in names:
        path = tmp_path / "pictures" / name
        if name.endswith("JPEG"):
            path.parent.mkdir()
            path.write_bytes(write_picture(tmp_path / "c.jpg"))
        else:
            write_picture(path)
    images = [{"id": name, "file_name": name, "height": height, "width": width} for name in names]
    annotations = [annotation(box(1, 1, 9, 9), n, image_id=name, category_id=5) for n, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "cup"}]}
    (tmp_path / "own.json").write_text(json.dumps(content))
    return tmp_path


def test_anyones_pictures(own, tmp_path):
    index, skipped = pack(InstancesPacker(own / "own.json", own / "pictures"), tmp_path / "out", name="own", workers=1)
    assert [index.key(row) for row in range(len(index))] == ["a", "b_x", "d", "e", "f", "g", "more/c"]
    assert index.classes == {1: "cup"}
    assert stored(index, "a")[0] == (own / "pictures/a.jpg").read_bytes()
    assert stored(index, "more/c")[0] == (own / "pictures/more/c.JPEG").read_bytes()
    assert +skipped == {"originals that are no JPEG, packed as JPEG of quality 95": 5}
    check_usable(tmp_path / "out")


def test_categories_above_254(own, tmp_path):
    entry = json.loads((own / "own.json").read_text())
    entry["categories"] = [{"id": number, "name": f"c{number}"} for number in range(400)]
    entry["annotations"] += [annotation(box(10, 10, 15, 15), 90, image_id="a.jpg", category_id=399)]
    (own / "own.json").write_text(json.dumps(entry))
    index, _ = pack(InstancesPacker(own / "own.json", own / "pictures"), tmp_path / "out", name="own", workers=1)
    assert index.classes[401] == "c399" and index.rows_of_class(401).tolist() == [0]
    assert set(np.unique(stored_labels(index, "a"))) == {0, 6, 401}


def test_pictures_that_cannot_be_read(own, tmp_path):
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(own / "pictures/e.tif")
    (own / "pictures/d.bmp").write_bytes((own / "pictures/b.x.png").read_bytes())
    with pytest.raises(UserError) as error:
        pack(InstancesPacker(own / "own.json", own / "pictures"), tmp_path / "out", name="own", workers=1)
    assert "e.tif is a TIFF of I;16 colours" in str(error.value)
    assert "d.bmp cannot be read as BMP" in str(error.value)


def test_pictures_whose_keys_would_be_equal(own, tmp_path):
    entry = json.loads((own / "own.json").read_text())
    (own / "pictures/a.jpg").rename(own / "pictures/b_x.jpg")
    entry["images"][1]["file_name"] = "b_x.jpg"
    (own / "own.json").write_text(json.dumps(entry))
    with pytest.raises(UserError, match="b_x occurs twice"):
        pack(InstancesPacker(own / "own.json", own / "pictures"), tmp_path / "out", name="own", workers=1)


def test_the_commands(coco, own, tmp_path, capsys):
    options = ["--crowds", "class", "--workers", "1", "--out"]
    assert main(["pack", "coco", str(coco), "--year", "2014", "--split", "val", *options, str(tmp_path / "coco")]) == 0
    assert "coco2014: 3 frames, 80 classes" in capsys.readouterr().out
    assert 255 not in stored_labels(ShardIndex.open(tmp_path / "coco"), f"{NAME}1")
    images = ["--images", str(own / "pictures")]
    assert main(["pack", "coco-json", str(own / "own.json"), *images, *options, str(tmp_path / "own")]) == 0
    assert "own: 7 frames, 1 classes" in capsys.readouterr().out
    for name in ("coco", "coco-json"):
        with pytest.raises(SystemExit):
            main(["pack", name, "--help"])
        assert "cocodataset.org" in capsys.readouterr().out
