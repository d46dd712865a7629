"""Data sets as others distribute them, before they are packed: pictures, COCO's JSON, MATLAB files, lists of names."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import harm
import numpy as np
import pytest
from confined import Outcome, check_bounded, check_refused, confined, nothing_new, plant
from PIL import Image

from ldis_lightning.datamodules.packing.coco_annotations import label_map, read_instances
from ldis_lightning.datamodules.packing.datasets.folder import FolderPacker
from ldis_lightning.datamodules.packing.datasets.pascal import read_sbd
from ldis_lightning.datamodules.packing.engine import pack
from ldis_lightning.datamodules.packing.trees import read_list


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return plant(tmp_path, monkeypatch)


# ---- A folder of pictures and masks


def other(kind: str, size: tuple[int, int], **options: Any) -> bytes:
    """A small picture of a format whose header then claims another size, where that is possible."""
    stream = BytesIO()
    Image.fromarray(np.zeros((*harm.SIZE, 3), np.uint8)).save(stream, kind, **options)
    data = bytearray(stream.getvalue())
    if kind == "BMP":
        struct.pack_into("<ii", data, 18, size[1], size[0])
    if kind == "PPM":
        data[:13] = b"P6\n%d %d\n255\n" % size
    if kind == "TIFF":
        for tag, side in ((256, size[1]), (257, size[0])):
            place = next(at for k in (3, 4) if (at := data.find(struct.pack("<HHI", tag, k, 1))) >= 0)
            struct.pack_into("<HHII", data, place, tag, 4, 1, side)
    return bytes(data)


def pictures(canary: Path) -> dict[str, tuple[str, bytes]]:
    """Name and bytes of hostile pictures."""
    found = {f"label map: {name}": ("masks/a.png", data) for name, data in harm.label_bombs().items()}
    found |= {f"PNG: {name}": ("images/a.png", data) for name, data in harm.label_bombs().items()}
    found |= {f"JPEG: {name}": ("images/a.jpg", data) for name, data in harm.jpeg_bombs().items()}
    found |= {f"{name} as JPEG": ("images/a.jpg", data) for name, data in harm.strangers(canary).items()}
    found |= {f"{name} as PNG": ("masks/a.png", data) for name, data in harm.strangers(canary).items()}
    found |= {f"EPS as {end}": (f"images/a.{end}", harm.postscript(canary)) for end in ("tif", "bmp", "webp", "ppm")}
    found |= {
        "BMP of 60,000 x 60,000": ("images/a.bmp", other("BMP", (60_000, 60_000))),
        "PPM of 60,000 x 60,000": ("images/a.ppm", other("PPM", (60_000, 60_000))),
        "TIFF of 2**31 x 2**31": ("images/a.tif", other("TIFF", (2**31 - 1, 2**31 - 1))),
        "packed TIFF of 60,000 x 60,000": (
            "images/a.tif",
            other("TIFF", (60_000, 60_000), compression="tiff_adobe_deflate"),
        ),
        "half a WebP": ("images/a.webp", other("WEBP", harm.SIZE)[:40]),
    }
    return found


def check_listed(outcome: Outcome, name: str) -> None:
    """A packer lists what is wrong with its source, a line for each sample."""
    check_bounded(outcome)
    first, *lines = outcome.message.splitlines()
    assert outcome.error == "UserError" and first == "set was not packed, because of 1 of its frames:", outcome
    assert len(lines) == 1 and name.rpartition(".")[0].rpartition("/")[2] in lines[0], outcome


@pytest.mark.parametrize("name", pictures(Path("canary")))
@pytest.mark.parametrize("resize", [None, 8])
def test_pictures(tmp_path: Path, canary: Path, name: str, resize: int | None) -> None:
    place, data = pictures(canary)[name]
    source = tmp_path / "source"
    for good, content in {"images/b.jpg": harm.jpeg(), "masks/b.png": harm.label_map()}.items():
        (source / good).parent.mkdir(parents=True)
        (source / good).write_bytes(content)
    for partner, content in {"images/a.jpg": harm.jpeg(), "masks/a.png": harm.label_map()}.items():
        if partner.partition("/")[0] != place.partition("/")[0]:
            (source / partner).write_bytes(content)
    (source / place).write_bytes(data)

    def run() -> None:
        pack(FolderPacker(source), tmp_path / "out", name="set", workers=1, resize=resize)

    with nothing_new(source, canary):
        outcome = confined(run, may_write=tmp_path)
    check_bounded(outcome)
    if outcome.error:
        check_listed(outcome, place)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"source", "programs", "out", ".out.packing"}, left


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=["pipe", "link", "folder"]
)
@pytest.mark.parametrize("place", ["images/a.jpg", "masks/a.png"])
def test_pictures_that_are_no_files(tmp_path: Path, canary: Path, place: str, make: Callable[[Path], object]) -> None:
    source = tmp_path / "source"
    for good, content in {"images/a.jpg": harm.jpeg(), "masks/a.png": harm.label_map()}.items():
        (source / good).parent.mkdir(parents=True)
        if good != place:
            (source / good).write_bytes(content)
    make(source / place)
    with nothing_new(source, canary):
        outcome = confined(
            lambda: pack(FolderPacker(source), tmp_path / "out", name="set", workers=1), may_write=tmp_path
        )
    check_listed(outcome, place)


# ---- COCO's JSON

SQUARE = [[2, 2, 2, 8, 8, 8, 8, 2]]


def coco(**changes: Any) -> bytes:
    """A file of one picture and one annotation, of which some values are others."""
    image = {"id": 1, "file_name": "a.jpg", "height": 16, "width": 16}
    shape = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": SQUARE}
    category = {"id": 1, "name": "cat"}
    for entry, prefix in ((image, "image_"), (shape, "shape_"), (category, "category_")):
        entry |= {name[len(prefix) :]: value for name, value in changes.items() if name.startswith(prefix)}
    content = {"images": [image], "annotations": [shape], "categories": [category]}
    return json.dumps({**content, **{name: changes[name] for name in content if name in changes}}).encode()


def runs(counts: Any, size: Any = (16, 16)) -> dict[str, Any]:
    return {"counts": counts, "size": list(size)}


HUGE = [number * (2**61 - 1) for number in range(1, 30_000)]
COCO: dict[str, bytes] = {
    "nested": b"[" * 10**6,
    "nested in an annotation": b'{"annotations": [' + b'{"a": ' * 10**5,
    "an endless number": b'{"images": ' + b"9" * 10**6 + b"}",
    "a pickle": harm.pickled(Path("canary")),
    "a name above": coco(image_file_name="../../../etc/passwd.jpg"),
    "an absolute name": coco(image_file_name="/etc/passwd.jpg"),
    "a name with a zero": coco(image_file_name="a\0.jpg"),
    "a command": coco(image_file_name="pipe:touch canary"),
    "a picture of 10**5 x 10**5": coco(image_height=10**5, image_width=10**5),
    "a picture of 10**30": coco(image_height=10**30),
    "a picture of -1": coco(image_height=-1),
    "a picture of 1.5": coco(image_height=1.5),
    "a picture of true": coco(image_height="16"),
    "a polygon far outside": coco(shape_segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
    "a polygon at infinity": coco(shape_segmentation=[[0, 0, float("inf"), 0, 5, 5]]),
    "a polygon that is not a number": coco(shape_segmentation=[[0, 0, float("nan"), 0, 5, 5]]),
    "a polygon of texts": coco(shape_segmentation=[["a", "b", "c", "d", "e", "f"]]),
    "a polygon of five numbers": coco(shape_segmentation=[[1, 2, 3, 4, 5]]),
    "a polygon of polygons": coco(shape_segmentation=[[[1, 2], [3, 4], [5, 6]]]),
    "runs that end early": coco(shape_segmentation=runs([10])),
    "runs that go on": coco(shape_segmentation=runs([0, 2**32 - 1, 2**32 - 1])),
    "runs of -1": coco(shape_segmentation=runs([257, -1])),
    "runs of 2**64": coco(shape_segmentation=runs([2**64])),
    "runs of another size": coco(shape_segmentation=runs([256], (10**5, 10**5))),
    "a text of runs that goes on": coco(shape_segmentation=runs("o" * 10**5)),
    "a text of runs that overflows": coco(shape_segmentation=runs("oooooooooooooooooo0")),
    "a text of runs that is none": coco(shape_segmentation=runs("\u2603\0")),
    "a mask that is a list": coco(shape_segmentation={"counts": {}, "size": [16, 16]}),
    "a category of 2**80": coco(category_id=2**80, shape_category_id=2**81),
    "a category without a name": coco(category_name=" "),
    "an annotation of no picture": coco(shape_image_id=7),
    "an id that is a list": coco(image_id=[1]),
    "ids of one hash": coco(categories=[{"id": number, "name": "x"} for number in HUGE]),
    "pictures of one hash": coco(
        images=[{"id": number, "file_name": f"{number}.jpg", "height": 16, "width": 16} for number in HUGE]
    ),
    "100,000 categories": coco(categories=[{"id": number, "name": "x"} for number in range(1, 100_000)]),
}


@pytest.mark.parametrize("data", COCO.values(), ids=COCO.keys())
def test_coco(tmp_path: Path, canary: Path, data: bytes) -> None:
    path = tmp_path / "hostile.json"
    path.write_bytes(data)

    def use() -> None:
        for picture in read_instances(path).pictures:
            label_map(picture)

    with nothing_new(tmp_path, canary):
        outcome = confined(use)
    check_refused(outcome, "hostile.json")


# ---- MATLAB's format 5, in which SBD's annotations are

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"


def element(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)


def array(kind: int, shape: tuple[int, ...], values: bytes, name: bytes = b"") -> bytes:
    sides = struct.pack(f"<{len(shape)}i", *shape)
    parts = element(6, struct.pack("<II", kind, 0)) + element(5, sides) + element(1, name) + values
    return element(14, parts)


def struct_of(field: bytes, shape: tuple[int, ...] = (1, 1), names: bytes = b"Segmentation") -> bytes:
    width = struct.pack("<HHi", 5, 4, 32)
    return array(2, shape, width + element(1, names.ljust(32, b"\0")) + field, b"GTcls")


def packed(data: bytes) -> bytes:
    return struct.pack("<II", 15, len(zlib.compress(data))) + zlib.compress(data)


PIXELS = array(9, (4, 4), element(2, bytes(16)))
MANY = 2**31 - 1
MATS: dict[str, bytes] = {
    "2 GB of zeros": HEADER + struct.pack("<II", 15, len(harm.zeros(2**29))) + harm.zeros(2**29),
    "pixels that unpack to 512 MB": HEADER + packed(struct_of(array(9, (2**14, 2**15), element(2, bytes(2**29))))),
    "2**31 x 2**31 pixels": HEADER + struct_of(array(9, (MANY, MANY), element(2, bytes(16)))),
    "2**31 pixels": HEADER + struct_of(array(9, (MANY, 1), element(2, bytes(16), MANY))),
    "-4 x -4 pixels": HEADER + struct_of(array(9, (-4, -4), element(2, bytes(16)))),
    "0 x 0 pixels": HEADER + struct_of(array(9, (0, 0), element(2, b""))),
    "a hundred dimensions": HEADER + struct_of(array(9, (1,) * 100, element(2, bytes(1)))),
    "2**31 structs": HEADER + struct_of(PIXELS, (MANY, 1)),
    "2**31 cells": HEADER + struct_of(array(1, (MANY, 1), b"")),
    "a sparse array of 2**31": HEADER + struct_of(array(5, (MANY, MANY), element(5, bytes(4)) * 3)),
    "a text of 2**31": HEADER + struct_of(array(4, (1, MANY), element(4, bytes(4)))),
    "structs in each other": HEADER + struct_of(b"".join([struct_of(b"")[:-8]] * 5000)),
    "an element of 4 GB": HEADER + element(14, b"", 2**32 - 1),
    "a name of 4 GB": HEADER + element(14, element(6, bytes(8)) + element(5, bytes(8)) + element(1, b"", 2**32 - 1)),
    "fields without length": HEADER + array(2, (1, 1), struct.pack("<HHi", 5, 4, 0) + element(1, b""), b"GTcls"),
    "fields of -1": HEADER + array(2, (1, 1), struct.pack("<HHi", 5, 4, -1) + element(1, b"x"), b"GTcls"),
    "small elements of 60,000": HEADER + struct.pack("<HH4s", 14, 60_000, b"") * 1000,
    "packed in itself": HEADER + packed(packed(packed(struct_of(PIXELS)))),
    "a version of 2**16": HEADER[:124] + b"\xff\xffIM" + struct_of(PIXELS),
    "the other byte order": HEADER[:126] + b"MI" + struct_of(PIXELS),
    "format 4": struct.pack("<5i", 0, MANY, MANY, 0, 6) + b"GTcls\0" + bytes(200),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(2000),
    "a pickle": harm.pickled(Path("canary")),
    "nothing": b"",
    "more than a megabyte": HEADER + bytes(2**20),
}


@pytest.mark.parametrize("data", MATS.values(), ids=MATS.keys())
def test_matlab_files(tmp_path: Path, canary: Path, data: bytes) -> None:
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: read_sbd(data, "hostile.mat"))
    check_refused(outcome, "hostile.mat")


# ---- Lists of names

LISTS: dict[str, bytes] = {
    "a name above": b"../../etc/passwd\n",
    "an absolute name": b"/etc/passwd\n",
    "a folder": b"a/b\n",
    "two dots": b"..\n",
    "a zero": b"a\0b\n",
    "no text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("data", LISTS.values(), ids=LISTS.keys())
def test_lists(tmp_path: Path, canary: Path, data: bytes) -> None:
    path = tmp_path / "hostile.txt"
    path.write_bytes(data)
    with nothing_new(tmp_path, canary):
        outcome = confined(lambda: read_list(path, "tree"))
    check_refused(outcome, "hostile.txt")


def test_the_number_of_cases() -> None:
    """As docs/reliability.md states it."""
    assert (len(pictures(Path("canary"))), len(COCO), len(MATS), len(LISTS)) == (55, 35, 25, 6)
