"""Writing an index: rows are collected in compact arrays, by one process or one a shard, and written at the end."""

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from zlib_ng import zlib_ng

from ldis_lightning.datamodules.index import COLUMNS, FORMAT, HEADER, LABELS, VERSION, Row, Shard, hash_of_header

_ENDS = {
    "key_offset": "key_text",
    "clip_name_offset": "clip_name_text",
    "row_offset": "row_class",
}  # of what they index
_DERIVED = ("class_offset", "class_row", "class_pixels")  # sorted by class once all rows are there
_CHUNK = 2**20  # bytes


class IndexBuilder:
    """Collects rows in compact arrays and writes them as an index."""

    def __init__(self) -> None:
        typecodes = {"|u1": "B", "<u2": "H", "<u4": "I", "<i4": "i", "<i8": "q"}
        self._values = {name: array(typecodes[kind]) for name, (kind, _) in COLUMNS.items() if name not in _DERIVED}
        for offset in _ENDS:
            self._values[offset].append(0)

    def __len__(self) -> int:
        """Number of rows so far."""
        return len(self._values["clip"])

    @property
    def labelled_rows(self) -> int:
        """Number of rows so far that show a class."""
        return int(np.count_nonzero(np.diff(np.array(self._values["row_offset"]))))

    def add_clip(self, name: str) -> int:
        """Register a clip and return its number, for `Row.clip`."""
        values = self._values
        values["clip_name_text"].frombytes(name.encode())
        values["clip_name_offset"].append(len(values["clip_name_text"]))
        return len(values["clip_name_offset"]) - 2

    def add(self, row: Row) -> None:
        """Append a row."""
        values = self._values
        values["key_text"].frombytes(row.key.encode())
        values["key_offset"].append(len(values["key_text"]))
        values["clip"].append(row.clip)
        values["frame"].append(row.frame)
        values["shard"].append(row.shard)
        values["size"].extend(row.size)
        values["image_span"].extend(row.image_span)
        values["mask_span"].extend(row.mask_span)
        values["image_crc"].append(row.image_crc)
        values["mask_crc"].append(row.mask_crc)
        for class_id in sorted(row.pixels):
            values["row_class"].append(class_id)
            values["row_pixels"].append(row.pixels[class_id])
        values["row_offset"].append(len(values["row_class"]))

    def add_shard(self, rows: "IndexBuilder") -> None:
        """Append the rows of the next shard, which another builder has collected as those of shard 0."""
        self.add_arrays(rows.arrays())

    def save(self, path: Path) -> None:
        """Write the rows to a file, for `load_shard`: the sizes of all arrays in bytes, then the arrays."""
        arrays = self.arrays().values()
        with path.open("wb") as stream:
            np.array([values.nbytes for values in arrays], "<i8").tofile(stream)
            for values in arrays:
                values.tofile(stream)

    def load_shard(self, path: Path) -> int:
        """As `add_shard`, with the rows in a file; returns their number."""
        data = path.read_bytes()
        place, columns = 8 * len(self._values), dict[str, np.ndarray]()
        for name, size in zip(self._values, np.frombuffer(data, "<i8", len(self._values)), strict=True):
            columns[name] = np.frombuffer(data[place : place + size], COLUMNS[name][0])
            place += size
        self.add_arrays(columns)
        return len(columns["clip"])

    def write(self, folder: Path, name: str, classes: dict[int, str], shards: Iterable[Shard]) -> None:
        """Write the index into the folder of its shards: columns first, and the header last, atomically.

        Classes that occur but have no name are called `class N`.
        """
        columns = self._columns()
        temporary = Path(tempfile.mkdtemp(prefix=".index-", dir=folder))
        try:
            described = {}
            for column, values in columns.items():
                np.save(temporary / f"{column}.npy", values, allow_pickle=False)
                sums = _sums(temporary / f"{column}.npy")
                described[column] = {"dtype": values.dtype.str, "shape": list(values.shape), **sums}
            header = {
                "format": FORMAT,
                "version": VERSION,
                "name": name,
                "kind": _kind(columns["clip"]),
                "rows": len(self),
                "classes": {str(number): text for number, text in sorted((_unnamed(columns) | classes).items())},
                "shards": [shard._asdict() for shard in shards],
                "columns": described,
                "column_folder": f"index-{hash_of_header(described)[:12]}",
            }
            share(temporary)
            _put_in_place(temporary, folder / header["column_folder"])
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _write_atomically(folder / HEADER, json.dumps(header, indent=1, ensure_ascii=False) + "\n")
        for old in folder.glob("index-*"):
            if old.is_dir() and old.name != header["column_folder"]:
                shutil.rmtree(old)

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of what is collected: name of a column that is not derived from others -> its values, flat."""
        return {name: np.array(values, COLUMNS[name][0]) for name, values in self._values.items()}

    def add_arrays(self, columns: dict[str, np.ndarray]) -> None:
        """Append rows as `arrays` gives them, counting clips, shards and places from where the rows so far end."""
        values = self._values
        clips, shard = len(values["clip_name_offset"]) - 1, values["shard"][-1] + 1 if len(self) else 0
        clip = columns["clip"]
        moved = columns | {"shard": columns["shard"] + shard, "clip": np.where(clip < 0, clip, clip + clips)}
        moved |= {offset: columns[offset][1:] + len(values[ends]) for offset, ends in _ENDS.items()}
        for name, column in moved.items():
            values[name].frombytes(column.astype(COLUMNS[name][0]).tobytes())

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {name: np.asarray(values, COLUMNS[name][0]) for name, values in self._values.items()}
        # Grouping the entries by class keeps the rows of each sorted.
        order = np.argsort(columns["row_class"], kind="stable")
        entry_row = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(columns["row_offset"]))
        counts = np.bincount(columns["row_class"], minlength=LABELS)
        columns["class_offset"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        columns["class_row"], columns["class_pixels"] = entry_row[order], columns["row_pixels"][order]
        return {name: columns[name].reshape(-1, *trailing) for name, (_, trailing) in COLUMNS.items()}


def _unnamed(columns: dict[str, np.ndarray]) -> dict[int, str]:
    return {int(number): f"class {number}" for number in np.flatnonzero(np.diff(columns["class_offset"]))}


def _sums(path: Path) -> dict[str, str | int]:
    """SHA-256 and CRC-32 of a file."""
    sha256, crc32 = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while data := stream.read(_CHUNK):
            sha256.update(data)
            crc32 = zlib_ng.crc32(data, crc32)
    return {"sha256": sha256.hexdigest(), "crc32": crc32}


def _kind(clip: np.ndarray) -> str:
    in_clip = clip >= 0
    return "clips" if in_clip.all() else "mixed" if in_clip.any() else "images"


def share(folder: Path) -> None:
    """Give a folder of `tempfile.mkdtemp`, which is for its owner alone, the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)


def _put_in_place(temporary: Path, target: Path) -> None:
    if target.exists():  # the same columns, or a damaged copy of them
        shutil.rmtree(target)
    temporary.rename(target)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
