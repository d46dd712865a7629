"""Reading COCO's JSON, and its masks as label maps."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ldis_lightning.datamodules.packing.coco_annotations import label_map, read_instances
from ldis_lightning.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2
HEIGHT, WIDTH = 10, 14


def instances(annotations: list[Any], **changes: Any) -> dict[str, Any]:
    """A file of one picture and two categories, in the official form."""
    image = {"id": 7, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH, "license": 1, "coco_url": "http://..."}
    categories = [{"id": 90, "name": "brush", "supercategory": "x"}, {"id": 3, "name": "car", "supercategory": "y"}]
    return {
        "info": {},
        "licenses": [],
        "images": [image],
        "annotations": annotations,
        "categories": categories,
    } | changes


def annotation(segmentation: Any, number: int | str = 1, **changes: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": 7, "category_id": 3, "iscrowd": 0, "area": 1.0, "bbox": [0, 0, 1, 1]}
    return entry | {"segmentation": segmentation} | changes


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """A mask as the official crowds have it: runs down the columns, the first of background."""
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    return {"counts": counts, "size": list(mask.shape)}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"counts": encoded["counts"].decode(), "size": list(mask.shape)}


def write(content: Any, folder: Path) -> Path:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def painted(annotations: list[dict[str, Any]], folder: Path, crowds_are_classes: bool = False) -> np.ndarray:
    (picture,) = read_instances(write(instances(annotations), folder)).pictures
    return label_map(picture, crowds_are_classes)


def official(content: dict[str, Any], folder: Path) -> list[np.ndarray]:
    """The masks of all annotations as pycocotools makes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(write(content, folder)))
    return [coco.annToMask(entry) for entry in content["annotations"]]


# ---- Masks

COORDINATES = st.lists(
    st.tuples(st.floats(-WIDTH, 2 * WIDTH), st.floats(-HEIGHT, 2 * HEIGHT)), min_size=3, max_size=9
).map(lambda points: [round(value, 2) for point in points for value in point])
MASKS = st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH).map(
    lambda bits: np.array(bits).reshape(HEIGHT, WIDTH)
)
SEGMENTATIONS = st.one_of(st.lists(COORDINATES, min_size=1, max_size=3), MASKS.map(uncompressed), MASKS.map(compressed))


@settings(max_examples=150, deadline=None)
@given(SEGMENTATIONS)
def test_masks_are_those_of_pycocotools(tmp_path_factory, segmentation):
    folder = tmp_path_factory.mktemp("coco")
    content = instances([annotation(segmentation)])
    (expected,) = official(content, folder)
    try:
        assert np.array_equal(painted(content["annotations"], folder), expected)
    except UserError as error:
        assert "outside" in str(error) and not expected.any()


@pytest.mark.parametrize("form", [uncompressed, compressed])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (300, 5)])
def test_runs_of_any_length(form, share, size, tmp_path):
    mask = np.random.default_rng(0).random(size) < share
    content = instances([annotation(form(mask))])
    content["images"][0] |= {"height": size[0], "width": size[1]}
    (picture,) = read_instances(write(content, tmp_path)).pictures
    assert np.array_equal(label_map(picture), mask)
    assert np.array_equal(official(content, tmp_path)[0], mask)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SEGMENTATIONS, st.sampled_from([3, 90]), st.booleans()), min_size=1, max_size=5), st.booleans()
)
def test_label_maps_are_made_of_these_masks(tmp_path_factory, drawn, crowds_are_classes):
    folder = tmp_path_factory.mktemp("coco")
    annotations = [
        annotation(segmentation, number, category_id=category, iscrowd=int(crowd))
        for number, (segmentation, category, crowd) in enumerate(drawn)
    ]
    content = instances(annotations)
    try:
        result = painted(annotations, folder, crowds_are_classes)
    except UserError as error:
        assert "outside" in str(error)
        return
    layers = zip(official(content, folder), annotations, strict=True)
    layers = sorted(layers, key=lambda layer: (not layer[1]["iscrowd"], -int(layer[0].sum())))
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    for mask, entry in layers:
        ignored = entry["iscrowd"] and not crowds_are_classes
        expected[mask == 1] = 255 if ignored else {3: 1, 90: 2}[entry["category_id"]]
    assert np.array_equal(result, expected)


def test_small_instances_lie_above_large_ones(tmp_path):
    table, plate = box(1, 1, 12, 9), box(4, 4, 6, 6)
    for annotations in (
        [annotation(table, 1), annotation(plate, 2, category_id=90)],
        [annotation(plate, 1, category_id=90), annotation(table, 2)],
    ):
        labels = painted(annotations, tmp_path)
        assert (labels == 2).sum() == 4 and (labels == 1).sum() == 11 * 8 - 4
        assert labels[5, 5] == 2 and labels[1, 1] == 1 and labels[0, 0] == 0


def test_crowds_never_lie_above_an_instance(tmp_path):
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[2:8, 3:9] = True
    annotations = [annotation(box(1, 1, 12, 9), 1), annotation(uncompressed(crowd), 2, category_id=90, iscrowd=1)]
    assert set(np.unique(painted(annotations, tmp_path))) == {0, 1}  # the instance is larger, and covers it
    annotations[0]["segmentation"] = box(4, 3, 6, 5)
    labels = painted(annotations, tmp_path)
    assert (labels == 255).sum() == 36 - 4 and (labels == 1).sum() == 4
    assert set(np.unique(painted(annotations, tmp_path, crowds_are_classes=True))) == {0, 1, 2}


# ---- The file


def test_classes_are_numbered_by_category_id_without_255(tmp_path):
    categories = [{"id": number * 3, "name": f"c{number}"} for number in range(300, 0, -1)]
    entries = [annotation(box(1, 1, 3, 3), 1, category_id=765), annotation(box(5, 5, 7, 7), 2, category_id=900)]
    found = read_instances(write(instances(entries, categories=categories), tmp_path))
    assert list(found.classes) == [*range(1, 255), *range(256, 302)]
    assert (found.classes[1], found.classes[254], found.classes[256], found.classes[301]) == (
        "c1",
        "c254",
        "c255",
        "c300",
    )
    labels = label_map(found.pictures[0])
    assert labels.dtype == np.uint16 and set(np.unique(labels)) == {0, 256, 301}
    narrow = instances([annotation(box(1, 1, 3, 3), category_id=762)], categories=categories)
    assert label_map(read_instances(write(narrow, tmp_path)).pictures[0]).dtype == np.uint8


def test_too_many_categories(tmp_path):
    categories = [{"id": number, "name": "x"} for number in range(65_533)]
    assert max(read_instances(write(instances([], categories=categories), tmp_path)).classes) == 65_534
    categories.append({"id": 65_533, "name": "x"})
    with pytest.raises(UserError, match="65534 classes, and a label map holds 65533"):
        read_instances(write(instances([], categories=categories), tmp_path))


def test_what_cannot_be_used_is_counted(tmp_path):
    images = [{"id": number, "file_name": f"{number}.jpg", "height": 10, "width": 14} for number in range(4)]
    entries = [
        annotation([[1, 1, 5, 5]], 1, image_id=0),
        annotation([], 2, image_id=0),
        annotation([[1, 1, 5, 5], *box(1, 1, 5, 5)], 3, image_id=1),
        annotation([[]], 4, image_id=2),
    ]
    found = read_instances(write(instances(entries, images=images), tmp_path))
    assert [picture.name for picture in found.pictures] == ["1.jpg"]
    assert (found.listed, found.annotated) == (4, 3)
    assert found.skipped == {
        "polygons of fewer than three points": 3,
        "annotations without a mask": 3,
        "pictures without annotations": 1,
        "pictures whose annotations have no masks": 2,
    }


def test_slightly_outside_is_cut_off(tmp_path):
    labels = painted([annotation(box(-2, -1, WIDTH + 3, HEIGHT + 0.5))], tmp_path)
    assert (labels == 1).all()


def test_a_byte_order_mark_and_ids_that_are_texts(tmp_path):
    content = instances([annotation(box(1, 1, 3, 3), "a1", image_id="i")])
    content["images"][0]["id"] = "i"
    path = write("\ufeff" + json.dumps(content), tmp_path)
    assert len(read_instances(path).pictures) == 1


GOOD = annotation(box(1, 1, 3, 3))
FLAT = [1, 1, 3, 1, 3, 3]
IMAGE = instances([])["images"][0]
WRONG = {
    "no JSON": ('{"images": [', "cannot be read as JSON"),
    "deeply nested": ("[" * 200_000, "cannot be read as JSON"),
    "no object": ([], "no list `images`"),
    "no annotations": ({"images": [], "categories": []}, "no list `annotations`"),
    "a mapping of images": (instances([], images={}), "no list `images`"),
    "annotation without id": (instances([{"image_id": 7}]), r"annotations\[0\] has no `id`"),
    "annotation that is none": (instances([5]), r"annotations\[0\] has no `id`"),
    "annotation without image": (instances([{"id": 4, "segmentation": []}]), "annotation 4 has no `image_id`"),
    "annotation without mask": (
        instances([{key: value for key, value in GOOD.items() if key != "segmentation"}]),
        "annotation 1 has no `segmentation`",
    ),
    "image without size": (instances([], images=[{"id": 2, "file_name": "x.jpg"}]), "image 2 has no `height`"),
    "category without name": (instances([], categories=[{"id": 2}]), "category 2 has no `name`"),
    "nameless category": (instances([], categories=[{"id": 2, "name": " "}]), "category 2 has a blank name"),
    "category id": (instances([], categories=[{"id": "a", "name": "a"}]), "category a: its id is no whole number"),
    "list as id": (instances([], images=[IMAGE | {"id": [1]}]), r"image \[1\]: its id is neither"),
    "annotation twice": (instances([GOOD, GOOD]), "annotation 1 occurs twice"),
    "image twice": (instances([], images=[IMAGE, IMAGE]), "image 7 occurs twice"),
    "category twice": (instances([], categories=[{"id": 2, "name": "a"}] * 2), "category 2 occurs twice"),
    "file name twice": (
        instances([], images=[IMAGE, IMAGE | {"id": 8}]),
        "image 8 has the same file_name as image 7: a.jpg",
    ),
    "unknown image": (instances([GOOD | {"image_id": 70}]), "annotation 1 is of image 70, which is not"),
    "unknown category": (instances([GOOD | {"category_id": 4}]), "annotation 1 is of category 4, which is not"),
    "category of no sense": (instances([GOOD | {"category_id": {}}]), "annotation 1 is of category {}, which is not"),
    "outside": (instances([annotation(box(16, 2, 18, 4))]), "annotation 1 lies outside its image: x is 16 to 18"),
    "far outside": (
        instances([annotation([[1, 1, 5, 1, 5, 9e9]])]),
        "annotation 1 lies outside its image: y is 1 to 9e",
    ),
    "not a number": (instances([annotation([[1, 1, 5, 1, 5, float("nan")]])]), "coordinates that are no numbers"),
    "infinite": (instances([annotation([[1, 1, 5, 1, 5, float("inf")]])]), "coordinates that are no numbers"),
    "odd polygon": (instances([annotation([[1, 1, 5, 1, 5, 5, 2]])]), "annotation 1: a polygon of 7 numbers"),
    "flat polygon": (instances([annotation(FLAT)]), "annotation 1: its segmentation is neither"),
    "words": (instances([annotation([["a", "b"] * 3])]), "annotation 1: its segmentation is neither"),
    "text": (instances([annotation("mask.png")]), "annotation 1: its segmentation is neither"),
    "no size": (instances([annotation({"counts": [140]})]), "annotation 1: its mask has the size None"),
    "wrong size": (
        instances([annotation({"counts": [140], "size": [14, 10]})]),
        r"size \[14, 10\], and its image \[10, 14\]",
    ),
    "too many pixels": (
        instances([annotation({"counts": [9, 200], "size": [10, 14]})]),
        "are 209 pixels, and its image 140",
    ),
    "negative runs": (instances([annotation({"counts": [150, -10], "size": [10, 14]})]), "neither whole numbers"),
    "huge runs": (instances([annotation({"counts": [2**40], "size": [10, 14]})]), "neither whole numbers"),
    "no runs": (instances([annotation({"counts": None, "size": [10, 14]})]), "neither whole numbers"),
    "cut text": (instances([annotation({"counts": "P", "size": [10, 14]})]), "neither whole numbers"),
    "endless text": (instances([annotation({"counts": "o" * 99, "size": [10, 14]})]), "neither whole numbers"),
    "other text": (instances([annotation({"counts": "zü", "size": [10, 14]})]), "neither whole numbers"),
    "short text": (instances([annotation({"counts": "1", "size": [10, 14]})]), "are 1 pixels, and its image 140"),
    "no pixels": (instances([], images=[IMAGE | {"height": 0}]), "image 7: its height is 0"),
    "fractions": (instances([], images=[IMAGE | {"width": 14.5}]), "image 7: its height is 10 and its width 14.5"),
    "vast": (instances([], images=[IMAGE | {"width": 10**9}]), "image 7 has 1000000000 x 10 pixels, more than"),
    "parent folder": (instances([], images=[IMAGE | {"file_name": "../a.jpg"}]), "no path inside the folder"),
    "root folder": (instances([], images=[IMAGE | {"file_name": "/etc/a.jpg"}]), "no path inside the folder"),
    "no file name": (instances([], images=[IMAGE | {"file_name": None}]), "no path inside the folder"),
    "movie": (
        instances([], images=[IMAGE | {"file_name": "a.mp4"}]),
        "image 7: a.mp4 is no picture that can be packed",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_file_and_id(what, tmp_path):
    content, message = WRONG[what]
    with pytest.raises(UserError, match=rf"instances\.json.*{message}"):
        read_instances(write(content, tmp_path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_instances(tmp_path / "typo.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"x.json cannot be read as JSON"):
        read_instances(tmp_path / "x.json")
