"""Checks of an index: that its columns are the bytes that were written, and that no value in them leads astray.

Indexes come from elsewhere, like the shards. What these checks let pass may be used without looking again: every span
lies inside its shard, every row, clip and class exists, and both directions between rows and classes agree.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng import zlib_ng

_KINDS = ("images", "clips", "mixed")
_HIGHEST = 2**16 - 2  # class ids are 1 to this, without 255
_IGNORE = 255
_ROWS = 2**16  # rows, or entries of rows, that are looked at together
_CHUNK = 2**20  # bytes


def check_header(header: Mapping[str, Any]) -> None:
    """Check the types and values of an index's header, and that its names stay inside its folder.

    Raises:
        ValueError: one is wrong; the message names it.
    """
    _expect(is_name(header.get("name")), "`name` is no line of text")
    _expect(header.get("kind") in _KINDS, f"`kind` is none of {', '.join(_KINDS)}")
    _expect(_is_count(header.get("rows")), "`rows` is no number")
    _expect(_is_file_name(header.get("column_folder")), "`column_folder` is no folder name")
    for name, kind in {"columns": dict, "classes": dict, "shards": list}.items():
        _expect(isinstance(header.get(name), kind), f"`{name}` is missing or of another type")
    columns, classes, shards = header["columns"], header["classes"], header["shards"]
    for number, name in classes.items():
        _expect(is_class_id(number) and is_name(name), f"class {number[:20]!r}")
    for shard in shards:
        _expect(isinstance(shard, dict) and shard.keys() == {"name", "size", "sha256"}, "an entry of `shards`")
        _expect(_is_file_name(shard["name"]), f"the name of a shard, {str(shard['name'])[:80]!r}, is no file name")
        _expect(_is_count(shard["size"]) and isinstance(shard["sha256"], str), f"the entry of {shard['name']}")
    _expect(len({shard["name"] for shard in shards}) == len(shards), "a shard is listed twice")
    for name, column in columns.items():
        _expect(isinstance(column, dict) and column.keys() == {"dtype", "shape", "sha256", "crc32"}, f"column {name}")
        shape = column["shape"]
        _expect(isinstance(shape, list) and bool(shape) and all(map(_is_count, shape)), f"the shape of column {name}")


def check_columns(folder: Path, header: Mapping[str, Any], columns: Mapping[str, np.memmap]) -> None:
    """Check all columns of an index, in blocks, with memory that does not grow with them.

    They are read as files, not through their maps, whose pages would count as memory of this process.

    Args:
        folder: of the columns.
        header: the checked header.
        columns: name -> mapped column, of the right types and lengths.

    Raises:
        ValueError: a column is not what was written, or holds a value that cannot be; the message names it.
        OSError: one cannot be read.
    """
    files = {name: _File(folder / f"{name}.npy", values) for name, values in columns.items()}
    try:
        named = _check_classes(files["class_offset"], header["classes"])
        of_rows = _check_rows(files, header)
        of_classes = _check_class_entries(files, named, header["rows"])
        _expect(of_rows == of_classes, "the columns of classes do not agree with those of rows")
        _check_texts(files)
        for name, file in files.items():
            _expect(file.crc32() == header["columns"][name]["crc32"], f"{name}.npy is not what was written (CRC-32)")
    finally:
        for file in files.values():
            file.close()


class _File:
    """The file of a column, read from its beginning to its end."""

    def __init__(self, path: Path, values: np.memmap) -> None:
        self._dtype, self._trailing = values.dtype, values.shape[1:]
        self._left = values.shape[0]
        self._item = values.dtype.itemsize * int(np.prod(self._trailing, dtype=np.int64))
        self._stream = path.open("rb")
        self._crc = 0
        self._read(int(values.offset))
        self.name = path.stem
        self.length = values.shape[0]

    def take(self, count: int) -> np.ndarray:
        """The next values, so many or as many as there are."""
        count = min(count, self._left)
        self._left -= count
        data = self._read(count * self._item)
        _expect(len(data) == count * self._item, f"{self.name}.npy is cut short")
        return np.frombuffer(data, self._dtype).reshape(-1, *self._trailing)

    def blocks(self, count: int) -> Iterator[np.ndarray]:
        """What is left, so many values at a time."""
        while self._left:
            yield self.take(count)

    def crc32(self) -> int:
        """CRC-32 of the whole file; reads what is left."""
        while self._read(_CHUNK):
            pass
        return self._crc

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._crc = zlib_ng.crc32(data, self._crc)
        return data


class _Offsets:
    """An offset column, read as ranges of what it points to: they begin at 0, never fall, and end with that column."""

    def __init__(self, file: _File, end: int) -> None:
        self._file, self._end, self._last = file, end, file.take(1)
        _expect(self._last.tolist() == [0], f"{file.name} does not begin at 0")

    def take(self, count: int) -> np.ndarray:
        """The borders of the next ranges, one more than there are ranges."""
        offset = np.concatenate([self._last, self._file.take(count)])
        self._last = offset[-1:]
        _expect(bool((offset[1:] >= offset[:-1]).all()) and offset[-1] <= self._end, f"{self._file.name} is not sorted")
        return offset


def _check_classes(file: _File, classes: Mapping[str, str]) -> np.ndarray:
    """Check the classes that occur; returns the borders of their entries."""
    offset = file.take(file.length)
    _expect(offset[0] == 0 and bool((offset[1:] >= offset[:-1]).all()), "class_offset is not sorted")
    for number in np.flatnonzero(np.diff(offset)).tolist():
        _expect(str(number) in classes, f"class {number} occurs and has no name")
    return offset


def _check_rows(files: Mapping[str, _File], header: Mapping[str, Any]) -> int:
    """Check everything that is said of rows; returns the sum of all (row, class, pixels)."""
    sizes = np.array([shard["size"] for shard in header["shards"]], np.int64)
    clips, total, shard_before = files["clip_name_offset"].length - 1, 0, 0
    kinds = set[bool]()
    offsets = _Offsets(files["row_offset"], files["row_class"].length)
    for first in range(0, header["rows"], _ROWS):
        block = {name: files[name].take(_ROWS) for name in ("clip", "frame", "size", "shard")}
        shard = block["shard"]
        _expect(_within(shard, 0, len(sizes) - 1), "shard: a number of a shard that there is not")
        _expect(shard[0] >= shard_before and bool((shard[1:] >= shard[:-1]).all()), "shard: rows are not in its order")
        shard_before = shard[-1]
        _expect(_within(block["clip"], -1, clips - 1), "clip: a number of a clip that there is not")
        _expect(bool(((block["clip"] < 0) == (block["frame"] < 0)).all()), "frame: does not agree with clip")
        _expect(_within(block["size"], 1, 2**31), "size: a picture without pixels")
        kinds |= set(np.unique(block["clip"] >= 0).tolist())
        for name in ("image_span", "mask_span"):
            offset, length = files[name].take(_ROWS).T
            inside = (offset >= 0) & (length >= 0) & (offset <= sizes[shard]) & (length <= sizes[shard] - offset)
            _expect(bool(inside.all()), f"{name}: reaches outside its shard")
        for name in ("image_crc", "mask_crc"):
            files[name].take(_ROWS)
        total += _check_row_entries(files, offsets.take(_ROWS), first)
    kind = "mixed" if len(kinds) == 2 else "clips" if kinds == {True} else "images"
    _expect(not kinds or header["kind"] == kind, f"`kind` is not {kind}")
    return total % 2**64


def _check_row_entries(files: Mapping[str, _File], offset: np.ndarray, first: int) -> int:
    """Check the classes of some rows, the first of which has this number; returns the sum of (row, class, pixels)."""
    counts = np.diff(offset)
    _expect(_within(counts, 0, _HIGHEST), "row_offset: more classes than there are")
    total = 0
    for start, end in _portions(offset):
        entries = int(offset[end] - offset[start])
        row = np.repeat(np.arange(first + start, first + end), counts[start:end])
        class_id, pixels = files["row_class"].take(entries), files["row_pixels"].take(entries)
        valid = (class_id > 0) & (class_id <= _HIGHEST) & (class_id != _IGNORE)
        _expect(bool(valid.all()), "row_class: a number that is no class id")
        sorted_in_row = (class_id[1:] > class_id[:-1]) | (row[1:] != row[:-1])
        _expect(bool(sorted_in_row.all()), "row_class: the classes of a row are not sorted")
        _expect(_within(pixels, 1, 2**62), "row_pixels: a class without pixels")
        total += _sum(row, class_id, pixels)
    return total


def _portions(offset: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows with few entries together, so that a row with very many does not need memory for all."""
    start, end = 0, len(offset) - 1
    while start < end:
        last = max(start + 1, int(np.searchsorted(offset, offset[start] + _ROWS, side="right")) - 1)
        yield start, last
        start = last


def _check_class_entries(files: Mapping[str, _File], offset: np.ndarray, rows: int) -> int:
    """Check the rows of all classes; returns the sum of (row, class, pixels)."""
    total, before, first = 0, np.array([-1, -1]), 0
    for row in files["class_row"].blocks(_ROWS):
        pixels = files["class_pixels"].take(_ROWS)
        counts = np.diff(np.clip(offset, first, first + len(row)))
        class_id = np.repeat(np.arange(len(counts)), counts)
        _expect(_within(row, 0, rows - 1), "class_row: a row that there is not")
        rising = (row[1:] > row[:-1]) | (class_id[1:] != class_id[:-1])
        _expect(bool(rising.all()) and (class_id[0] != before[0] or row[0] > before[1]), "class_row is not sorted")
        total += _sum(row, class_id, pixels)
        before, first = np.array([class_id[-1], row[-1]]), first + len(row)
    return total % 2**64


def _check_texts(files: Mapping[str, _File]) -> None:
    for name in ("key", "clip_name"):
        offsets = _Offsets(files[f"{name}_offset"], files[f"{name}_text"].length)
        for _ in range(0, files[f"{name}_offset"].length - 1, _ROWS):
            _expect(_within(np.diff(offsets.take(_ROWS)), 1, 2**20), f"{name}_offset: an empty or endless name")


def _sum(row: np.ndarray, class_id: np.ndarray, pixels: np.ndarray) -> int:
    """A sum over (row, class, pixels) in any order that two different sets of them will hardly share."""
    mixed = row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= class_id.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= pixels.astype(np.uint64) * np.uint64(0x165667B19E3779F9)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    return int(mixed.sum(dtype=np.uint64))


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return not len(values) or (int(values.min()) >= low and int(values.max()) <= high)


def is_class_id(text: object) -> bool:
    """Whether a text is the id of a class as headers write it: 1 to 65534, without 255."""
    text = str(text)
    return bool(re.fullmatch(r"[1-9][0-9]{0,4}", text)) and int(text) <= _HIGHEST and int(text) != _IGNORE


def is_name(text: object) -> bool:
    """Whether a value is a line of text that can be printed and is not blank."""
    return isinstance(text, str) and bool(text.strip()) and text.isprintable()


def _is_file_name(text: object) -> bool:
    return is_name(text) and Path(str(text)).name == text


def _is_count(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**62


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
