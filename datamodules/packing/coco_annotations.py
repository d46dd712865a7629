"""Instance annotations in COCO's JSON format: read compactly, checked, and painted as label maps.

The file is untrusted: pycocotools' C code writes beyond its buffers where the runs of a mask do not fit the picture, so
that every polygon and every mask is checked before it gets there.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np

from ldis_lightning.datamodules.packing.convert import FORMATS, JPEG
from ldis_lightning.datamodules.packing.trees import number_classes
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import MAX_CLASS_ID, MAX_PIXELS

_KEYS = ("id", "image_id", "category_id", "iscrowd", "segmentation")  # of an annotation; areas, boxes, ... are dropped


class Shape(NamedTuple):
    """The mask of one annotation: polygons, or else runs."""

    class_id: int
    crowd: bool
    polygons: tuple["array[float]", ...]  # each x, y, x, y, ... in pixels
    runs: "array[int]"  # lengths of the alternating runs of background and mask, column by column; else empty


class Annotated(NamedTuple):
    """A picture and its annotations."""

    name: str  # as in the file, a path in the folder of the pictures
    size: tuple[int, int]  # height, width
    shapes: tuple[Shape, ...]


class Instances(NamedTuple):
    """What a file holds."""

    pictures: list[Annotated]  # those with annotations, in the order of their names
    classes: dict[int, str]  # class id -> name
    listed: int  # pictures in the file, with annotations or without
    annotated: int  # pictures of which there is an annotation, even one without a mask
    skipped: Counter[str]


def read_instances(file: Path) -> Instances:
    """Read a file of instance annotations.

    Classes are numbered 1, 2, ... in the order of their category ids, without 255: for COCO, 1 to 80.

    Raises:
        UserError: the file cannot be read, a key is missing or wrong, an id is unknown or given twice, or an
            annotation does not fit its picture; the message names the file and the id.
    """
    content = _load(file)
    names = _category_names(content["categories"], file)
    classes = number_classes([names[category] for category in sorted(names)])
    pictures = _pictures(content["images"], file)
    skipped: Counter[str] = Counter()
    class_ids = dict(zip(sorted(names), classes, strict=True))
    shapes = _shapes(content["annotations"], file, pictures, class_ids, skipped)
    usable = [picture._replace(shapes=tuple(shapes[id_])) for id_, picture in pictures.items() if shapes.get(id_)]
    skipped["pictures without annotations"] += len(pictures) - len(shapes)
    skipped["pictures whose annotations have no masks"] += len(shapes) - len(usable)
    usable.sort(key=lambda picture: picture.name)
    return Instances(usable, classes, len(pictures), len(shapes), skipped)


def label_map(picture: Annotated, crowds_are_classes: bool = False) -> np.ndarray:
    """Paint the annotations of a picture as a label map.

    Args:
        picture: the picture, with at least one annotation.
        crowds_are_classes: crowds get their class; by default they are ignored (255). Instances lie above them
            either way.

    Returns:
        (H, W) of 0 none, 255 ignore, else class ids; uint8 where all ids of the picture are below 255, else uint16.
    """
    from pycocotools import mask as coco_mask

    height, width = picture.size
    encoded: Any = [_encode(shape, height, width) for shape in picture.shapes]
    areas: Any = coco_mask.area(encoded)  # (n,) uint32
    # Crowds at the bottom, then the larger before the smaller. Annotations overlap: the polygons of a table hold the
    # plates on it, too. A pixel has one label, and a large thing that loses a small one's pixels is still there, while
    # the small one would be gone. Equal areas stay in the order of the file.
    order = sorted(range(len(encoded)), key=lambda i: (not picture.shapes[i].crowd, -int(areas[i])))
    wide = any(shape.class_id > IGNORE_INDEX for shape in picture.shapes)
    labels = np.zeros(picture.size, np.uint16 if wide else np.uint8, order="F")  # column by column, as the masks are
    for i in order:
        shape, mask = picture.shapes[i], cast(np.ndarray, coco_mask.decode(encoded[i]))
        ignored = shape.crowd and not crowds_are_classes
        np.copyto(labels, IGNORE_INDEX if ignored else shape.class_id, where=mask.view(bool), casting="unsafe")
    return np.ascontiguousarray(labels)


def _encode(shape: Shape, height: int, width: int) -> Any:
    """The mask in pycocotools' own form. Overlapping polygons of one annotation are joined."""
    from pycocotools import mask as coco_mask

    form: Any = {"counts": shape.runs, "size": [height, width]} if shape.runs else list(shape.polygons)
    encoded: Any = coco_mask.frPyObjects(form, height, width)
    return encoded if shape.runs else coco_mask.merge(encoded)


# ---- Reading the file


def _load(file: Path) -> dict[str, list[Any]]:
    """The three lists of the file, annotations in their compact form."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file. Give the JSON of the instance annotations.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_hook=_compact)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): is it whole?") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{file} has no list `{key}`: a COCO file of instances is {{images: [...], annotations: [...], "
                "categories: [...]}."
            )
    return content


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Shrink an annotation as soon as it is parsed: COCO's 860,000 would fill several times their file's size."""
    if isinstance(entry.get("counts"), list):
        entry["counts"] = _numbers("I", entry["counts"])
    if "segmentation" not in entry:
        return entry
    if isinstance(entry["segmentation"], list):
        entry["segmentation"] = [_numbers("d", polygon) for polygon in entry["segmentation"]]
    return {key: entry[key] for key in _KEYS if key in entry}


def _numbers(typecode: str, values: Any) -> Any:
    """The values as an array, or as they are where they are no list of such numbers: that is reported with the id."""
    try:
        return array(typecode, values) if isinstance(values, list) else values
    except (TypeError, OverflowError):
        return values


def _entries(entries: list[Any], what: str, keys: tuple[str, ...], file: Path) -> Iterable[tuple[Any, dict[str, Any]]]:
    """The id of each entry and the entry, after a check that it has these keys and that no id occurs twice."""
    seen = set()
    for place, entry in enumerate(entries):
        number = entry.get("id") if isinstance(entry, dict) else None
        where = f"{file}: {what}s[{place}]" if number is None else f"{file}: {what} {number}"
        for key in ("id", *keys):
            if not isinstance(entry, dict) or key not in entry:
                raise UserError(f"{where} has no `{key}`.")
        if not isinstance(number, (int, str)) or (isinstance(number, int) and not -(2**63) <= number < 2**63):
            raise UserError(f"{where}: its id is neither a number of 64 bits nor a text.")
        if number in seen:
            raise UserError(f"{where} occurs twice: ids must differ.")
        seen.add(number)
        yield number, entry


def _category_names(categories: list[Any], file: Path) -> dict[int, str]:
    """Category id -> name."""
    names: dict[int, str] = {}
    for number, entry in _entries(categories, "category", ("name",), file):
        if not isinstance(number, int):
            raise UserError(f"{file}: category {number}: its id is no whole number.")
        if len(names) > MAX_CLASS_ID:
            raise UserError(f"{file} has more categories than a label map can hold.")
        if not isinstance(entry["name"], str) or not entry["name"].strip():
            raise UserError(f"{file}: category {number} has a blank name.")
        names[number] = entry["name"].strip()
    return names


def _pictures(entries: list[Any], file: Path) -> dict[Any, Annotated]:
    """Image id -> picture, without its annotations."""
    pictures: dict[Any, Annotated] = {}
    named: dict[str, Any] = {}
    for number, entry in _entries(entries, "image", ("file_name", "height", "width"), file):
        where = f"{file}: image {number}"
        name, height, width = entry["file_name"], entry["height"], entry["width"]
        if not all(isinstance(side, int) and side > 0 for side in (height, width)):
            raise UserError(f"{where}: its height is {height!r} and its width {width!r}; they must be whole pixels.")
        if height * width > MAX_PIXELS:
            raise UserError(f"{where} has {width} x {height} pixels, more than {MAX_PIXELS}: scale it down.")
        if not isinstance(name, str) or not _is_inside(name):
            raise UserError(f"{where}: its file_name {name!r} is no path inside the folder of the pictures.")
        if Path(name).suffix.lower() not in (*JPEG, *FORMATS):
            raise UserError(f"{where}: {name} is no picture that can be packed ({', '.join((*JPEG, *FORMATS))}).")
        if name in named:
            raise UserError(f"{where} has the same file_name as image {named[name]}: {name}.")
        named[name] = number
        pictures[number] = Annotated(name, (height, width), ())
    return pictures


def _is_inside(name: str) -> bool:
    """Whether a path from elsewhere stays in the folder that it is joined to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


# ---- The masks


def _shapes(
    annotations: list[Any],
    file: Path,
    pictures: dict[Any, Annotated],
    class_ids: dict[int, int],
    skipped: Counter[str],
) -> dict[Any, list[Shape]]:
    """Image id -> its masks, in the order of the file."""
    shapes: dict[Any, list[Shape]] = {}
    for number, entry in _entries(annotations, "annotation", ("image_id", "category_id", "segmentation"), file):
        where = f"{file}: annotation {number}"
        image, category = entry["image_id"], entry["category_id"]
        if not isinstance(image, (int, str)) or image not in pictures:
            raise UserError(f"{where} is of image {image}, which is not among the images.")
        if not isinstance(category, int) or category not in class_ids:
            raise UserError(f"{where} is of category {category}, which is not among the categories.")
        polygons, runs = _segmentation(entry["segmentation"], pictures[image].size, where)
        usable = tuple(polygon for polygon in polygons if len(polygon) >= 6)
        skipped["polygons of fewer than three points"] += len(polygons) - len(usable)
        masks = shapes.setdefault(image, [])
        if usable or runs:
            masks.append(Shape(class_ids[category], bool(entry.get("iscrowd", 0)), usable, runs))
        else:
            skipped["annotations without a mask"] += 1
    return shapes


def _segmentation(value: Any, size: tuple[int, int], where: str) -> tuple[list["array[float]"], "array[int]"]:
    """Polygons and runs of an annotation, one of them empty, after a check that they fit the picture."""
    if isinstance(value, dict):
        return [], _runs(value, size, where)
    if not isinstance(value, list) or not all(isinstance(polygon, array) for polygon in value):
        raise UserError(
            f"{where}: its segmentation is neither a list of polygons [[x, y, x, y, ...], ...] nor a mask "
            "{counts: ..., size: [height, width]}."
        )
    for polygon in value:
        if len(polygon) % 2:
            raise UserError(f"{where}: a polygon of {len(polygon)} numbers; they must be pairs of x and y.")
    _check_inside([polygon for polygon in value if polygon], size, where)
    return value, array("I")


def _check_inside(polygons: list["array[float]"], size: tuple[int, int], where: str) -> None:
    """Check that polygons touch the picture and reach no further beyond it than it is large."""
    if not polygons:
        return
    if not all(math.isfinite(sum(polygon)) for polygon in polygons):
        raise UserError(f"{where}: a polygon has coordinates that are no numbers.")
    for axis, side in (("x", size[1]), ("y", size[0])):
        start = "xy".index(axis)
        low = min(min(polygon[start::2]) for polygon in polygons)
        high = max(max(polygon[start::2]) for polygon in polygons)
        if high < 0 or low > side or low < -side or high > 2 * side:
            raise UserError(
                f"{where} lies outside its image: {axis} is {low:g} to {high:g}, the image's 0 to {side}. "
                "Are the polygons those of another size of the image?"
            )


def _runs(mask: dict[str, Any], size: tuple[int, int], where: str) -> "array[int]":
    """The runs of a mask, compressed or not."""
    if list(size) != mask.get("size"):
        raise UserError(f"{where}: its mask has the size {mask.get('size')}, and its image {list(size)}.")
    counts = mask.get("counts")
    try:
        runs = array("I", _decompress(counts)) if isinstance(counts, str) else counts
    except (ValueError, OverflowError):
        runs = None
    if not isinstance(runs, array):
        raise UserError(f"{where}: the counts of its mask are neither whole numbers nor COCO's compressed form.")
    if sum(runs) != size[0] * size[1]:
        raise UserError(f"{where}: the counts of its mask are {sum(runs)} pixels, and its image {size[0] * size[1]}.")
    return runs


def _decompress(text: str) -> list[int]:
    """COCO's compressed runs: 5 bits a character, lowest first, signed; from the fourth run on, the number is the
    difference to the run before the last.

    Raises:
        ValueError: it is no such text.
    """
    runs: list[int] = []
    value = bits = 0
    for code in text.encode("ascii"):
        if not 48 <= code < 112 or bits > 30:
            raise ValueError
        chunk = code - 48
        value |= (chunk & 31) << bits
        bits += 5
        if not chunk & 32:
            value -= (chunk & 16) << (bits - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError
    return runs
