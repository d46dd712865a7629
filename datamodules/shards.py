"""Writing a data set: standard WebDataset tars of JPEG pictures and PNG label maps, with their index.

The same content gives the same bytes, so that a data set can be recognised by the hash of its index.
"""

import errno
import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from zlib_ng.zlib_ng import crc32

from ldis_lightning.datamodules.index import Row, Shard
from ldis_lightning.datamodules.index_builder import IndexBuilder
from ldis_lightning.datamodules.index_checks import is_name
from ldis_lightning.datamodules.out_folder import OutFolder
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError
from ldis_lightning.imaging.pictures import MAX_CLASS_ID, inspect_pair

_BUFFER = 2**20  # bytes
_BLOCK, _RECORD = 512, 10240  # a tar is made of blocks; its end is filled up to a record, as tar itself does


class ShardFile:
    """One shard being written: a WebDataset tar, hashed on its way to the disk, and the index rows of its frames.

    A sample that is refused leaves nothing behind, and writing may go on.

    Args:
        path: the file to write.
        dataset: name of the data set, for `KEY.json`.
        classes: class id -> name.

    Attributes:
        rows: of the frames so far, as those of shard 0.
    """

    def __init__(self, path: Path, dataset: str, classes: dict[int, str]) -> None:
        self.path, self.dataset, self.classes = path, dataset, classes
        self.rows = IndexBuilder()
        self._stream = path.open("wb", _BUFFER)
        self._hash, self._size, self._clips = hashlib.sha256(), 0, 0

    def add_image(self, key: str, jpg: bytes, png: bytes, source: str = "") -> None:
        """Append a picture and its label map, whose bytes are stored as they are.

        Args:
            key: name of the sample; no dots, because WebDataset cuts file names at the first one.
            jpg: the picture.
            png: its label map, see `pictures.read_label_map`.
            source: where the picture is from, for `KEY.json`.

        Raises:
            UserError: the key is not usable, or the two do not make a sample.
        """
        check_key(key)
        size, pixels = inspect_pair(jpg, png, key)
        image = self._write(f"{key}.jpg", jpg)  # in the order of the alphabet, as WebDataset's own writer has it
        self._write(f"{key}.json", self._description(list(pixels), size, source))
        mask = self._write(f"{key}.png", png)
        self.rows.add(Row(key, -1, -1, size, 0, image, mask, pixels, crc32(jpg), crc32(png)))

    def add_clip(self, clip: str, frames: Iterable[tuple[bytes, bytes]], count: int, source: str = "") -> None:
        """Append a clip as one sample of `count` frames `(jpg, png)` in order, one at a time; else as `add_image`."""
        check_key(clip)
        if not count:
            raise UserError(f"clip {clip} has no frames.")
        digits = max(5, len(str(count - 1)))
        keys = [f"{clip}.{number:0{digits}d}" for number in range(count)]
        rows = list[Row]()
        with self._undone_on_error():
            for key, (jpg, png) in zip(keys, frames, strict=True):
                size, pixels = inspect_pair(jpg, png, key)
                image, mask = self._write(f"{key}.jpg", jpg), self._write(f"{key}.png", png)
                sums = crc32(jpg), crc32(png)
                rows.append(Row(key, self._clips, len(rows), size, 0, image, mask, pixels, *sums))
            sizes = {row.size for row in rows}
            if len(sizes) > 1:
                raise UserError(f"clip {clip} has frames of different sizes (height, width): {sorted(sizes)}.")
            occurring = sorted({class_id for row in rows for class_id in row.pixels})
            self._write(f"{clip}.json", self._description(occurring, rows[0].size, source, frames=count))
        self._clips = self.rows.add_clip(clip) + 1
        for row in rows:
            self.rows.add(row)

    def close(self) -> Shard:
        """Write the end of the tar and return its name, size and SHA-256."""
        self._put(bytes(-(self._size + 2 * _BLOCK) % _RECORD + 2 * _BLOCK))
        self._stream.close()
        return Shard(self.path.name, self._size, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close the file as it is."""
        with suppress(OSError):  # a full disk must not hide the first error
            self._stream.close()

    def _write(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member and return its span."""
        self._put(_header(name, len(data)))
        span = self._size, len(data)
        self._put(data)
        self._put(bytes(-len(data) % _BLOCK))
        return span

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self._size += len(data)

    def _description(self, class_ids: list[int], size: tuple[int, int], source: str, **more: int) -> bytes:
        names = [self.classes.get(class_id, f"class {class_id}") for class_id in class_ids]
        described: dict[str, Any] = {"dataset": self.dataset, "class_ids": class_ids, "class_names": names}
        return json.dumps(described | {"size": size, "source": source} | more, ensure_ascii=False).encode()

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        before, size = self._hash.copy(), self._size
        try:
            yield
        except BaseException:
            self._stream.seek(size)
            self._stream.truncate()
            self._hash, self._size = before, size
            raise


class ShardWriter:
    """Writes a data set, sample by sample, into a folder of its own; use it in a `with` statement.

    Everything goes into a hidden folder, which takes the name `out` on a clean exit (see `OutFolder`). An exception
    leaves nothing behind. Large sources are packed faster by `packing.pack`, which uses all cores and can continue
    after an interruption.

    Args:
        out: the folder to make. It may exist if it is empty.
        name: name of the data set.
        classes: class id (1 to 65534, without 255) -> name. Ids that occur without a name are called `class N`.
        max_samples_per_shard: a new shard begins after so many frames. A clip is never split.
        overwrite: replace a data set of ours that is already at `out`.

    Raises:
        UserError: a setting is not valid; or, on entry, `out` cannot be written.
    """

    def __init__(
        self,
        out: str | Path,
        name: str,
        classes: dict[int, str],
        max_samples_per_shard: int = 1000,
        overwrite: bool = False,
    ) -> None:
        if max_samples_per_shard < 1:
            raise UserError(f"max_samples_per_shard is {max_samples_per_shard}, and must be 1 or more.")
        check_name(name)
        self._path, self._overwrite = out, overwrite
        self.name, self.classes, self.max_samples_per_shard = name, valid_class_ids(classes), max_samples_per_shard
        self._builder, self._shards, self._keys = IndexBuilder(), list[Shard](), set[str]()
        self._file: ShardFile | None = None

    def __enter__(self) -> Self:
        """Check `out` and make the temporary folder."""
        self.out = OutFolder(self._path, self._overwrite)
        self._temporary = self.out.prepare()
        self._folder = self._temporary / "new"
        self._folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Write the index and put the folder in place, or remove it after an exception."""
        try:
            if kind is None:
                self._finish()
            elif isinstance(error, OSError) and error.errno in DISK_FULL:
                raise UserError(f"{self.out.path} cannot be written: {error.strerror}. Choose another disk.") from error
        finally:
            if self._file is not None:
                self._file.abandon()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add_image(self, key: str, jpg: bytes, png: bytes, source: str = "") -> None:
        """Append a picture and its label map; see `ShardFile.add_image`.

        Raises:
            UserError: the key is not usable or not new, or the two do not make a sample.
        """
        self._claim(key)
        self._current().add_image(key, jpg, png, source)

    def add_clip(self, clip: str, frames: list[tuple[bytes, bytes]], source: str = "") -> None:
        """Append a clip as one sample of `(jpg, png)` frames in order; otherwise as `add_image`."""
        self._claim(clip)
        self._current().add_clip(clip, frames, len(frames), source)

    @property
    def labelled_frames(self) -> int:
        """Frames so far whose label map shows a class."""
        return self._builder.labelled_rows + (self._file.rows.labelled_rows if self._file else 0)

    def _claim(self, key: str) -> None:
        if key in self._keys:
            raise UserError(f"{key} occurs twice: keys of a data set must differ.")
        self._keys.add(key)

    def _current(self) -> ShardFile:
        """The shard to write into: a new one where the last is full."""
        if self._file is not None and len(self._file.rows) >= self.max_samples_per_shard:
            self._close_shard()
        if self._file is None:
            self._file = ShardFile(self._folder / shard_name(len(self._shards)), self.name, self.classes)
        return self._file

    def _close_shard(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            self._shards.append(file.close())
            self._builder.add_shard(file.rows)

    def _finish(self) -> None:
        self._close_shard()
        if not self._shards:
            raise UserError(f"{self.out.path}: no sample was added, so there is nothing to write.")
        self._builder.write(self._folder, self.name, self.classes, self._shards)
        self.out.publish(self._folder)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.tar"


def valid_class_ids(classes: dict[int, str]) -> dict[int, str]:
    """The same classes, after a check that each id is in 1 .. 65534 and not 255, and each name is a line of text.

    Raises:
        UserError: an id is out of range or a name is none.
    """
    for number, name in classes.items():
        if not 0 < number <= MAX_CLASS_ID or number == IGNORE_INDEX:
            raise UserError(
                f"class {number}={name}: class ids are 1 to {MAX_CLASS_ID} (0 is none) without 255, which is ignore."
            )
        if not is_name(name):
            raise UserError(f"class {number} has a blank name or one that cannot be printed: {name!r}.")
    return dict(classes)


def check_name(name: str) -> None:
    """Check that the name of a data set is a line of text.

    Raises:
        UserError: it is not.
    """
    if not is_name(name):
        raise UserError(f"the data set is named {name!r}: give a line of text.")


def check_key(key: str) -> None:
    """Check that a key gives member names that every reader of WebDatasets understands.

    Raises:
        UserError: it does not; the message says why.
    """
    if not key or any(not part or part.startswith("__") for part in key.split("/")):
        raise UserError(f"key {key!r}: a part of it is empty or begins with two underscores, which WebDataset skips.")
    if "." in key:
        raise UserError(
            f"key {key!r} holds a dot, at which WebDataset would cut it: replace it, e.g. by an underscore."
        )
    if not key.isprintable():
        raise UserError(f"key {key!r} holds characters that cannot be printed: rename the file.")


def _header(name: str, size: int) -> bytes:
    """What stands before a member of a tar, byte for byte as `tarfile` writes it, which takes ten times as long."""
    if len(name) > 100 or not name.isascii() or size >= 8**11:
        return _tar_info(name, size).tobuf(tarfile.PAX_FORMAT)
    block, total = _empty_header()
    text, digits = name.encode(), b"%011o" % size
    total += sum(text) + sum(digits) - 11 * ord("0")
    return b"".join((text, block[len(text) : 124], digits, block[135:148], b"%06o\0 " % total, block[156:]))


@cache
def _empty_header() -> tuple[bytes, int]:
    """The header of an empty member without a name, and its checksum."""
    block = _tar_info("", 0).tobuf(tarfile.PAX_FORMAT)
    return block, int(block[148:154], 8)


def _tar_info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    info.uname = info.gname = "ldis"  # fixed time and owner: the same content gives the same bytes
    return info
