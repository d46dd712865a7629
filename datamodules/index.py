"""The index of a data set: which frames its shards hold, where their bytes lie and which classes they show.

One row a frame, for images and for clips alike. The index is a small JSON header, `index.json`, and one `.npy` file a
column in a folder beside it. Columns are memory-mapped, so that ten million rows open at once, and training plans are
computed from the index alone, without reading data.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldis_lightning.errors import UserError

FORMAT = "ldis_lightning index"
VERSION = 2  # what this module reads; an index without class ids above 254 is written as version 1
HEADER = "index.json"

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # name -> data type, trailing shape
    "key_text": ("|u1", ()),  # UTF-8 of all keys, one after the other
    "key_offset": ("<i8", ()),  # (rows + 1,)
    "clip": ("<i4", ()),  # (rows,)
    "frame": ("<i4", ()),
    "clip_name_text": ("|u1", ()),
    "clip_name_offset": ("<i8", ()),  # (clips + 1,)
    "size": ("<i4", (2,)),
    "shard": ("<i4", ()),
    "image_span": ("<i8", (2,)),
    "mask_span": ("<i8", (2,)),
    "row_offset": ("<i8", ()),  # (rows + 1,): row -> its entries in row_class and row_pixels
    "row_class": ("|u1", ()),
    "row_pixels": ("<i8", ()),
    "class_offset": ("<i8", ()),  # (labels + 1,): class -> its entries in class_row and class_pixels
    "class_row": ("<i8", ()),
    "class_pixels": ("<i8", ()),
}
LABELS = {1: 2**8, 2: 2**16}  # version -> values that a label may have
WIDE_COLUMNS = COLUMNS | {"row_class": ("<u2", ())}  # of version 2


class Shard(NamedTuple):
    """A tar file of a data set: its name in the folder, size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str


class Row(NamedTuple):
    """One frame. Spans are (byte offset, length) in its shard; `pixels` are those of each class, without 0 and 255."""

    key: str
    clip: int  # -1 where the frame belongs to no clip
    frame: int
    size: tuple[int, int]  # height, width
    shard: int
    image_span: tuple[int, int]
    mask_span: tuple[int, int]
    pixels: dict[int, int]


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class ShardIndex:
    """A data set on disk, seen through its index. `ShardIndex.open` makes one; arrays are read-only and memory-mapped.

    Attributes:
        folder: where the shards and the index lie.
        name: name of the data set.
        kind: `"images"`, `"clips"` or `"mixed"`.
        hash: SHA-256 of the header, which holds those of all shards and columns: two equal hashes are equal data.
        classes: class id (1 to 254; in version 2 to 65534, without 255) -> name.
        shards: name, size and SHA-256 of every shard.
        clip: (rows,) int32, position in `clip_names`, -1 for an image that is no frame of a clip.
        frame: (rows,) int32, number of the frame in its clip, -1 for an image.
        size: (rows, 2) int32, height and width in pixels.
        shard: (rows,) int32, position in `shards` and `shard_paths`.
        image_span: (rows, 2) int64, byte offset and length of the JPEG in the shard.
        mask_span: (rows, 2) int64, byte offset and length of the PNG label map.
    """

    def __init__(self, folder: Path, header: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        self.folder = folder
        self.name: str = header["name"]
        self.kind: str = header["kind"]
        self.hash = hash_of_header(header)
        self.classes = {int(number): str(name) for number, name in header["classes"].items()}
        self.shards = [Shard(**shard) for shard in header["shards"]]
        self.clip, self.frame, self.size = columns["clip"], columns["frame"], columns["size"]
        self.shard, self.image_span, self.mask_span = columns["shard"], columns["image_span"], columns["mask_span"]
        self._columns = columns
        self._column_hashes = {name: column["sha256"] for name, column in header["columns"].items()}
        self._column_folder = folder / header["column_folder"]

    @classmethod
    def open(cls, folder: str | Path) -> "ShardIndex":
        """Open the index of a folder. Shards are checked for presence and size; `verify` checks every byte.

        Raises:
            UserError: the folder or its index is missing, from a newer version or damaged, or a shard is missing or
                changed.
        """
        folder = Path(folder)
        header = read_header(folder)
        try:
            for shard in header["shards"]:
                _check_shard(folder, Shard(**shard))
            columns = {name: _load_column(folder, header, name) for name in COLUMNS}
            _check_lengths(folder, columns, header)
            return cls(folder, header, columns)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{folder / HEADER} is damaged ({error!r}): {_again(folder)}") from error

    def __len__(self) -> int:
        """Number of rows, that is, of frames."""
        return len(self.clip)

    def __repr__(self) -> str:
        """Name, rows and classes, for people."""
        return f"ShardIndex({self.name!r}, {len(self)} rows, {len(self.classes)} classes, {str(self.folder)!r})"

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        """Pickle as the folder alone: a worker maps the columns again instead of receiving copies of them."""
        return ShardIndex.open, (self.folder,)

    def key(self, row: int) -> str:
        """Key of a row: the names of its members in the shard without `.jpg` and `.png`."""
        return _text(self._columns["key_text"], self._columns["key_offset"], row)

    @cached_property
    def clip_names(self) -> list[str]:
        """Names of the clips; `clip` holds positions in this list."""
        text, offset = self._columns["clip_name_text"], self._columns["clip_name_offset"]
        return [_text(text, offset, number) for number in range(len(offset) - 1)]

    @cached_property
    def shard_paths(self) -> list[Path]:
        """Paths of the shards; `shard` holds positions in this list."""
        return [self.folder / shard.name for shard in self.shards]

    def rows_of_class(self, class_id: int) -> np.ndarray:
        """The rows that show a class, int64 and sorted; empty where no row does."""
        return self._columns["class_row"][self._entries_of_class(class_id)]

    def pixels(self, class_id: int) -> np.ndarray:
        """Pixels of a class in each of `rows_of_class(class_id)`, int64."""
        return self._columns["class_pixels"][self._entries_of_class(class_id)]

    def classes_of_row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the classes that a row shows, sorted, and their pixels, both int64. 0 and 255 are never listed."""
        offset = self._columns["row_offset"]
        entries = slice(offset[row], offset[row + 1])
        return self._columns["row_class"][entries].astype(np.int64), self._columns["row_pixels"][entries]

    def classes_per_row(self) -> np.ndarray:
        """(rows,) int64: how many classes each row shows."""
        return np.diff(self._columns["row_offset"])

    def verify(self) -> None:
        """Read every column and shard and compare it with its SHA-256.

        Raises:
            UserError: one differs; the message names it.
        """
        paths = [(self._column_folder / f"{name}.npy", value) for name, value in self._column_hashes.items()]
        paths += [(self.folder / shard.name, shard.sha256) for shard in self.shards]
        for path, expected in paths:
            if sha256_of_file(path) != expected:
                raise UserError(f"{path} is not what was indexed (its SHA-256 differs): {_again(self.folder)}")

    def _entries_of_class(self, class_id: int) -> slice:
        offset = self._columns["class_offset"]
        if not 0 <= class_id < len(offset) - 1:
            raise ValueError(f"class id {class_id} is not in 0 .. {len(offset) - 2}")
        return slice(offset[class_id], offset[class_id + 1])


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a folder's index.

    Raises:
        UserError: there is no such folder, no index in it, or one that this version cannot read.
    """
    path = folder / HEADER
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. Give the folder that holds the shards.")
    if not path.is_file():
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder} holds shards but no index: run `ldis data index {folder}` once.")
        below = sorted(str(found.parent) for pattern in ("*", "*/*") for found in folder.glob(f"{pattern}/{HEADER}"))
        hint = f" Data sets below it: {', '.join(below[:8])}." if below else ""
        raise UserError(f"{folder} is no data set: it holds neither {HEADER} nor .tar shards.{hint}")
    try:
        header = parse_header(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {_again(folder)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if header["version"] > VERSION:
        raise UserError(
            f"{path} has index format {header['version']}, and this version reads up to {VERSION}: "
            f"update ldis_lightning or {_again(folder)}"
        )
    return header


def parse_header(path: Path) -> dict[str, Any]:
    """The header in a file, of whatever version.

    Raises:
        UserError: the file is JSON that something else wrote.
        ValueError: it is not JSON.
    """
    header = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(header, dict) or header.get("format") != FORMAT or not isinstance(header.get("version"), int):
        raise UserError(f"{path} is not an index of ldis; something else wrote it. Move it away, or keep shards apart.")
    return header


def hash_of_header(header: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever its spacing and order of keys."""
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _again(folder: Path) -> str:
    return f"fetch or pack the data again, or, if the shards are right, run `ldis data index {folder}`."


def _text(text: np.ndarray, offset: np.ndarray, number: int) -> str:
    if not 0 <= number < len(offset) - 1:
        raise IndexError(f"{number} is not in 0 .. {len(offset) - 2}")
    return text[offset[number] : offset[number + 1]].tobytes().decode()


def _check_shard(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    if Path(shard.name).name != shard.name:  # an index from elsewhere must not point outside its folder
        raise ValueError(f"{shard.name} is no file name")
    if not path.is_file():
        raise UserError(f"{path} is missing, but the index lists it: {_again(folder)}")
    if path.stat().st_size != shard.size:
        raise UserError(f"{path} has {path.stat().st_size} bytes where the index says {shard.size}: {_again(folder)}")


def _load_column(folder: Path, header: dict[str, Any], name: str) -> np.ndarray:
    described = header["columns"][name]
    path = folder / header["column_folder"] / f"{name}.npy"
    if Path(header["column_folder"]).name != header["column_folder"]:
        raise ValueError(f"{header['column_folder']} is no folder name")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_again(folder)}") from error
    kind, trailing = columns_of(header["version"])[name]
    found = (values.dtype.str, list(values.shape))
    if found != (described["dtype"], described["shape"]) or found[0] != kind or values.shape[1:] != trailing:
        raise UserError(f"{path} does not fit {HEADER} ({found[0]} {found[1]}): {_again(folder)}")
    return values.view(np.ndarray)  # still mapped; without the class, slicing costs a tenth


def columns_of(version: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Data type and trailing shape of each column of an index of this version."""
    return COLUMNS if version == 1 else WIDE_COLUMNS


def _check_lengths(folder: Path, columns: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    """Columns of one index must fit each other: an offset column ends where its values do."""
    rows = header["rows"]
    lengths = {name: rows for name in ("clip", "frame", "size", "shard", "image_span", "mask_span")}
    lengths |= {"key_offset": rows + 1, "row_offset": rows + 1, "class_offset": LABELS[header["version"]] + 1}
    ends = {"key_offset": "key_text", "clip_name_offset": "clip_name_text", "row_offset": "row_class"}
    ends |= {"class_offset": "class_row"}
    lengths |= {"row_pixels": len(columns["row_class"]), "class_pixels": len(columns["class_row"])}
    wrong = [name for name, length in lengths.items() if len(columns[name]) != length]
    wrong += [
        name for name, values in ends.items() if len(columns[name]) < 1 or columns[name][-1] != len(columns[values])
    ]
    if wrong:
        raise UserError(
            f"the columns of {folder / HEADER} do not fit each other ({', '.join(wrong)}): {_again(folder)}"
        )
