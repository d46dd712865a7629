"""The index of a data set: which frames its shards hold, where their bytes lie and which classes they show.

One row a frame, for images and for clips alike. The index is a small JSON header, `index.json`, and one `.npy` file a
column in a folder beside it. Columns are memory-mapped, so that ten million rows open at once, and training plans are
computed from the index alone, without reading data.
"""

import hashlib
import json
import math
import os
import re
import struct
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldis_lightning.datamodules.index_checks import check_columns, check_header
from ldis_lightning.errors import UserError

FORMAT = "ldis_lightning index"
VERSION = 3
HEADER = "index.json"
MAX_HEADER_BYTES = 2**26
LABELS = 2**16  # values that a label may have
_NPY = b"\x93NUMPY\x01\x00"  # how a file of `np.save` begins, before the length of what it says of itself

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
    "image_crc": ("<u4", ()),  # CRC-32 of the member's bytes
    "mask_crc": ("<u4", ()),
    "row_offset": ("<i8", ()),  # (rows + 1,): row -> its entries in row_class and row_pixels
    "row_class": ("<u2", ()),
    "row_pixels": ("<i8", ()),
    "class_offset": ("<i8", ()),  # (LABELS + 1,): class -> its entries in class_row and class_pixels
    "class_row": ("<i8", ()),
    "class_pixels": ("<i8", ()),
}


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
    image_crc: int  # CRC-32 of the member's bytes
    mask_crc: int


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
        classes: class id (1 to 65534, without 255) -> name.
        shards: name, size and SHA-256 of every shard.
        clip: (rows,) int32, number of its clip (see `clip_name`), -1 for an image that is no frame of a clip.
        frame: (rows,) int32, number of the frame in its clip, -1 for an image.
        size: (rows, 2) int32, height and width in pixels.
        shard: (rows,) int32, position in `shards` and `shard_paths`.
        image_span: (rows, 2) int64, byte offset and length of the JPEG in the shard.
        mask_span: (rows, 2) int64, byte offset and length of the PNG label map.
        image_crc: (rows,) uint32, CRC-32 of the JPEG.
        mask_crc: (rows,) uint32, CRC-32 of the PNG.
        row_offset: (rows + 1,) int64: the entries of row r in `row_class` and `row_pixels` end where those of r + 1
            begin.
        row_class: (entries,) uint16, ids of the classes that each row shows, ascending, without 0 and 255.
        row_pixels: (entries,) int64, their pixels.
        clips: number of clips.
    """

    def __init__(self, folder: Path, header: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
        self.folder = folder
        self.name: str = header["name"]
        self.kind: str = header["kind"]
        self.hash = hash_of_header(header)
        self.classes = {int(number): str(name) for number, name in header["classes"].items()}
        self.shards = [Shard(**shard) for shard in header["shards"]]
        self.clips = len(columns["clip_name_offset"]) - 1
        self.clip, self.frame, self.size = columns["clip"], columns["frame"], columns["size"]
        self.shard, self.image_span, self.mask_span = columns["shard"], columns["image_span"], columns["mask_span"]
        self.image_crc, self.mask_crc = columns["image_crc"], columns["mask_crc"]
        self.row_offset, self.row_class, self.row_pixels = (
            columns[f"row_{name}"] for name in ("offset", "class", "pixels")
        )
        self._columns = columns
        self._column_hashes = {name: header["columns"][name]["sha256"] for name in COLUMNS}
        self._column_folder = folder / header["column_folder"]

    @classmethod
    def open(cls, folder: str | Path) -> "ShardIndex":
        """Open the index of a folder and check all of it. Shards are checked for presence and size; `verify` checks
        every byte.

        Raises:
            UserError: the folder or its index is missing, of another version or damaged, or a shard is missing or
                changed.
        """
        folder = local_folder(folder)
        header = read_header(folder)
        for shard in header["shards"]:
            _check_shard(folder, Shard(**shard))
        return cls(folder, header, load_columns(folder, header))

    def __len__(self) -> int:
        """Number of rows, that is, of frames."""
        return len(self.clip)

    def __repr__(self) -> str:
        """Name, rows and classes, for people."""
        return f"ShardIndex({self.name!r}, {len(self)} rows, {len(self.classes)} classes, {str(self.folder)!r})"

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        """Pickle as the folder alone: a worker maps the columns again instead of receiving copies of them."""
        return _open_again, (self.folder, self.hash)

    def key(self, row: int) -> str:
        """Key of a row: the names of its members in the shard without `.jpg` and `.png`."""
        return _text(self._columns["key_text"], self._columns["key_offset"], row)

    def clip_name(self, number: int) -> str:
        """Name of a clip; `clip` holds their numbers."""
        return _text(self._columns["clip_name_text"], self._columns["clip_name_offset"], number)

    @cached_property
    def clip_names(self) -> list[str]:
        """Names of all clips, for people and small data sets."""
        return [self.clip_name(number) for number in range(self.clips)]

    @cached_property
    def shard_paths(self) -> list[Path]:
        """Paths of the shards, for messages; `shard` holds positions in this list."""
        return [self.folder / shard.name for shard in self.shards]

    def shard_file(self, number: int) -> Path:
        """The local file of a shard. Where shards lie elsewhere, this fetches it first.

        Raises:
            UserError: it cannot be fetched.
        """
        return self.shard_paths[number]

    def rows_of_class(self, class_id: int) -> np.ndarray:
        """The rows that show a class, int64 and sorted; empty where no row does."""
        return self._columns["class_row"][self.entries_of_class(class_id)]

    def pixels(self, class_id: int) -> np.ndarray:
        """Pixels of a class in each of `rows_of_class(class_id)`, int64."""
        return self._columns["class_pixels"][self.entries_of_class(class_id)]

    def entries_of_class(self, class_id: int) -> slice:
        """Where a class stands among all (class, row) pairs, sorted by class and then by row."""
        if not 0 <= class_id < LABELS:
            raise ValueError(f"class id {class_id} is not in 0 .. {LABELS - 1}")
        return slice(*self._columns["class_offset"][class_id : class_id + 2].tolist())

    def classes_of_row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the classes that a row shows, sorted, and their pixels, both int64. 0 and 255 are never listed."""
        entries = slice(self.row_offset[row], self.row_offset[row + 1])
        return self.row_class[entries].astype(np.int64), self.row_pixels[entries]

    def classes_per_row(self) -> np.ndarray:
        """(rows,) int64: how many classes each row shows."""
        return np.diff(self.row_offset)

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


def local_folder(folder: str | Path) -> Path:
    """The folder that a text names, after a check that it names one of this machine.

    Raises:
        UserError: it is a command or an address; none of them is ever run or opened here.
    """
    text = str(folder)
    if text.startswith("pipe:") or "::" in text:
        raise UserError(f"{text}: data are never read through a command or a chain of addresses. Give a folder.")
    if address := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/+", text):
        rest = f"such as /{text[address.end() :]}" if address[0].lower().startswith("file:") else "of this machine"
        raise UserError(f"{text} is an address, where a folder is needed: give a folder {rest}.")
    return Path(folder)


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a folder's index, checked.

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
        if header["version"] == VERSION:
            check_header(header)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {_again(folder)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if header["version"] < VERSION:
        raise UserError(
            f"{path} has index format {header['version']}, and this version reads {VERSION}: run `ldis data index "
            f"{folder}` once, which takes the index's names over and reads every shard."
        )
    if header["version"] > VERSION:
        raise UserError(
            f"{path} has index format {header['version']}, and this version reads {VERSION}: "
            f"update ldis_lightning or {_again(folder)}"
        )
    return header


def parse_header(path: Path) -> dict[str, Any]:
    """The header in a file, of whatever version, unchecked.

    Raises:
        UserError: the file is JSON that something else wrote.
        ValueError: it is not JSON, or too large.
    """
    with path.open("rb") as stream:
        data = stream.read(MAX_HEADER_BYTES + 1)
    if len(data) > MAX_HEADER_BYTES:
        raise ValueError(f"it has more than {MAX_HEADER_BYTES} bytes")
    try:
        header = json.loads(data.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or type(header.get("version")) is not int:
        raise UserError(f"{path} is not an index of ldis; something else wrote it. Move it away, or keep shards apart.")
    return header


def is_outdated(folder: Path) -> bool:
    """Whether the index of a folder is of an earlier version, so that it must be made again; False for a damaged one.

    Raises:
        UserError: something else wrote it.
    """
    try:
        return parse_header(folder / HEADER)["version"] < VERSION
    except ValueError:
        return False


def hash_of_header(header: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever its spacing and order of keys."""
    return hashlib.sha256(json.dumps(header, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_columns(folder: Path, header: dict[str, Any], check: bool = True) -> dict[str, np.ndarray]:
    """Map the columns of an index: name -> read-only array.

    Args:
        folder: of the index.
        header: its header, of `read_header`.
        check: read them whole, compare them with their CRC-32 and look for values that cannot be.

    Raises:
        UserError: one is missing, damaged or does not fit; the message names it.
    """
    columns = {name: _load_column(folder, header, name) for name in COLUMNS}
    _check_lengths(folder, columns, header)
    if check:
        try:
            check_columns(folder / header["column_folder"], header, columns)
        except ValueError as error:
            raise UserError(f"the index of {folder} is damaged ({error}): {_again(folder)}") from error
        except OSError as error:
            raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}.") from error
    return {name: values.view(np.ndarray) for name, values in columns.items()}  # mapped, and slicing costs a tenth


def _open_again(folder: Path, expected: str) -> ShardIndex:
    """An index that another process has opened and checked."""
    header = read_header(folder)
    if hash_of_header(header) != expected:
        raise UserError(f"{folder / HEADER} was replaced while it was in use: start again.")
    return ShardIndex(folder, header, load_columns(folder, header, check=False))


def _again(folder: Path) -> str:
    return f"fetch or pack the data again, or, if the shards are right, run `ldis data index {folder}`."


def _text(text: np.ndarray, offset: np.ndarray, number: int) -> str:
    if not 0 <= number < len(offset) - 1:
        raise IndexError(f"{number} is not in 0 .. {len(offset) - 2}")
    return text[offset[number] : offset[number + 1]].tobytes().decode(errors="backslashreplace")


def _check_shard(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    if not path.is_file():
        raise UserError(f"{path} is missing, but the index lists it: {_again(folder)}")
    if path.stat().st_size != shard.size:
        raise UserError(f"{path} has {path.stat().st_size} bytes where the index says {shard.size}: {_again(folder)}")


def _load_column(folder: Path, header: dict[str, Any], name: str) -> np.memmap:
    """Map a column. What its file says of itself is not parsed: type and shape are those of the header."""
    path, (kind, trailing) = folder / header["column_folder"] / f"{name}.npy", COLUMNS[name]
    described = header["columns"].get(name, {"dtype": None, "shape": [0]})
    shape, dtype = tuple(described["shape"]), np.dtype(kind)
    if (described["dtype"], shape[1:]) != (kind, trailing):
        raise UserError(f"{folder / HEADER} is damaged (column {name} is missing or no {kind}): {_again(folder)}")
    try:
        if not path.is_file():  # anything else might never end
            raise ValueError("there is no such file")
        with path.open("rb") as stream:
            magic, size = struct.unpack("<8sH", stream.read(10).ljust(10))
            offset, length = 10 + size, stream.seek(0, os.SEEK_END)
        if magic != _NPY or length != offset + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"it is no column of {shape[0]} values")
        return np.memmap(path, dtype, "r", offset, shape)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {_again(folder)}") from error


def _check_lengths(folder: Path, columns: dict[str, np.memmap], header: dict[str, Any]) -> None:
    """Columns of one index must fit each other: an offset column ends where its values do."""
    rows = header["rows"]
    of_rows = ("clip", "frame", "size", "shard", "image_span", "mask_span", "image_crc", "mask_crc")
    lengths = dict.fromkeys(of_rows, rows)
    lengths |= {"key_offset": rows + 1, "row_offset": rows + 1, "class_offset": LABELS + 1}
    ends = {"key_offset": "key_text", "clip_name_offset": "clip_name_text", "row_offset": "row_class"}
    ends |= {"class_offset": "class_row"}
    lengths |= dict.fromkeys(("row_pixels", "class_row", "class_pixels"), len(columns["row_class"]))
    wrong = [name for name, length in lengths.items() if len(columns[name]) != length]
    wrong += [
        name for name, values in ends.items() if len(columns[name]) < 1 or columns[name][-1] != len(columns[values])
    ]
    if wrong:
        raise UserError(
            f"the columns of {folder / HEADER} do not fit each other ({', '.join(wrong)}): {_again(folder)}"
        )
