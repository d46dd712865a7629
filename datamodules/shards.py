"""Writing a data set: standard WebDataset tars of JPEG pictures and PNG label maps, with their index.

The same content gives the same bytes, so that a data set can be recognised by the hash of its index.
"""

import errno
import json
import os
import shutil
import struct
import tarfile
import tempfile
import warnings
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from ldis_lightning.datamodules import index
from ldis_lightning.datamodules.index import IndexBuilder, Row, Shard
from ldis_lightning.episode import IGNORE_INDEX
from ldis_lightning.errors import UserError

if TYPE_CHECKING:
    from webdataset.writer import TarWriter

MAX_PIXELS = 2**26
"""Larger pictures (8192 x 8192) are refused, because a few bytes of PNG can unpack into gigabytes."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What PIL raises on damaged files."""


class _Frame(NamedTuple):
    """A frame of the shard being written, whose place in the file is not known yet."""

    key: str
    clip: int
    frame: int
    size: tuple[int, int]
    pixels: dict[int, int]


class ShardWriter:
    """Writes a data set into a folder of its own; use it in a `with` statement.

    Everything goes into a hidden folder beside `out`, which takes the name `out` on a clean exit. Where `out` is an
    empty folder, perhaps a mounted one, the hidden folder lies in it, and its files are moved up, the index last. An
    exception leaves nothing behind.

    Args:
        out: the folder to make. It may exist if it is empty.
        name: name of the data set.
        classes: class id (1 to 254) -> name. Ids that occur without a name are called `class N`.
        max_samples_per_shard: a new shard begins after so many frames. A clip is never split.
        overwrite: replace a data set of ours that is already at `out`.

    Attributes:
        labelled_frames: frames so far whose label map shows a class.

    Raises:
        UserError: on entry, when `out` cannot be written.
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
        self.out, self.name, self.classes = Path(os.path.abspath(out)), name, valid_class_ids(classes)
        self.max_samples_per_shard, self.overwrite = max_samples_per_shard, overwrite
        self.labelled_frames = 0
        self._builder, self._shards, self._frames = IndexBuilder(), list[Shard](), list[_Frame]()
        self._keys = set[str]()
        self._stream: IO[bytes] | None = None
        self._tar: TarWriter | None = None

    def __enter__(self) -> Self:
        """Check `out` and make the temporary folder."""
        check_out(self.out, self.overwrite)
        from webdataset.writer import TarWriter  # takes seconds, which no progress bar should count

        self._make_tar = TarWriter
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._inside = self.out.is_dir() and not any(self.out.iterdir())
            place = self.out if self._inside else self.out.parent
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=place))
        except OSError as error:
            raise UserError(f"{self.out} cannot be written: {error.strerror}. Choose another folder.") from error
        self._folder = self._temporary / "new"
        self._folder.mkdir()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Write the index and put the folder in place, or remove it after an exception."""
        try:
            if kind is None:
                self._finish()
            elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"{self.out} cannot be written: {error.strerror}. Choose another disk.") from error
        finally:
            with suppress(OSError):  # a full disk must not hide the first error
                self._close_files()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add_image(self, key: str, jpg: bytes, png: bytes, source: str = "") -> None:
        """Append a picture and its label map, whose bytes are stored as they are.

        Args:
            key: name of the sample; no dots, because WebDataset cuts file names at the first one.
            jpg: the picture.
            png: its label map: 8-bit, 0 none, 255 ignore, else class ids.
            source: where the picture is from, for `KEY.json`.

        Raises:
            UserError: the key is not usable or not new, or the two do not make a sample.
        """
        self._claim(key)
        size, pixels = inspect_pair(jpg, png, key)
        self._write(key, {"jpg": jpg, "png": png}, self._description(list(pixels), size, source))
        self._append(_Frame(key, -1, -1, size, pixels))

    def add_clip(self, clip: str, frames: list[tuple[bytes, bytes]], source: str = "") -> None:
        """Append a clip as one sample of `(jpg, png)` frames in order; otherwise as `add_image`."""
        if not frames:
            raise UserError(f"clip {clip} has no frames.")
        self._claim(clip)
        digits = max(5, len(str(len(frames) - 1)))
        names = [f"{number:0{digits}d}" for number in range(len(frames))]
        found = [inspect_pair(jpg, png, f"{clip}.{name}") for name, (jpg, png) in zip(names, frames, strict=True)]
        sizes = {size for size, _ in found}
        if len(sizes) > 1:
            raise UserError(f"clip {clip} has frames of different sizes (height, width): {sorted(sizes)}.")
        members = {f"{name}.jpg": jpg for name, (jpg, _) in zip(names, frames, strict=True)}
        members |= {f"{name}.png": png for name, (_, png) in zip(names, frames, strict=True)}
        occurring = sorted({class_id for _, pixels in found for class_id in pixels})
        description = self._description(occurring, found[0][0], source) | {"frames": len(frames)}
        self._write(clip, members, description)
        number = self._builder.add_clip(clip)
        for frame, (name, (size, pixels)) in enumerate(zip(names, found, strict=True)):
            self._append(_Frame(f"{clip}.{name}", number, frame, size, pixels))

    def _claim(self, key: str) -> None:
        check_key(key)
        if key in self._keys:
            raise UserError(f"{key} occurs twice: keys of a data set must differ.")
        self._keys.add(key)

    def _append(self, frame: _Frame) -> None:
        self._frames.append(frame)
        self.labelled_frames += bool(frame.pixels)

    def _description(self, class_ids: list[int], size: tuple[int, int], source: str) -> dict[str, Any]:
        names = [self.classes.get(class_id, f"class {class_id}") for class_id in class_ids]
        return {"dataset": self.name, "class_ids": class_ids, "class_names": names, "size": size, "source": source}

    def _write(self, key: str, members: dict[str, bytes], description: dict[str, Any]) -> None:
        if self._tar is not None and len(self._frames) >= self.max_samples_per_shard:
            self._close_shard()
        tar = self._tar or self._open_shard()
        tar.write({"__key__": key, **members, "json": json.dumps(description, ensure_ascii=False).encode()})

    def _open_shard(self) -> "TarWriter":
        self._stream = (self._folder / f"shard-{len(self._shards):05d}.tar").open("wb")
        # Fixed time and owner: the same content gives the same bytes. No encoder: the members are bytes already.
        self._tar = self._make_tar(self._stream, user="ldis", group="ldis", mtime=0, encoder=False)
        return self._tar

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._close_files()
        path = self._folder / f"shard-{len(self._shards):05d}.tar"
        with tarfile.open(path, "r:") as tar:
            spans = {member.name: (member.offset_data, member.size) for member in tar}
        for frame in self._frames:
            image, mask = spans[f"{frame.key}.jpg"], spans[f"{frame.key}.png"]
            self._builder.add(
                Row(frame.key, frame.clip, frame.frame, frame.size, len(self._shards), image, mask, frame.pixels)
            )
        self._shards.append(Shard(path.name, path.stat().st_size, index.sha256_of_file(path)))
        self._frames = []

    def _close_files(self) -> None:
        tar, stream, self._tar, self._stream = self._tar, self._stream, None, None
        for opened in (tar, stream):
            if opened is not None:
                opened.close()

    def _finish(self) -> None:
        self._close_shard()
        if not self._shards:
            raise UserError(f"{self.out}: no sample was added, so there is nothing to write.")
        self._builder.write(self._folder, self.name, self.classes, self._shards)
        try:
            self._move_in() if self._inside else self._rename()
        except OSError as error:
            raise UserError(f"{self.out} cannot be written: {error.strerror}. Choose another folder.") from error

    def _move_in(self) -> None:
        if (self.out / index.HEADER).exists():
            raise UserError(f"{self.out} was filled by something else in the meantime: choose another folder.")
        for entry in sorted(self._folder.iterdir(), key=lambda entry: entry.name == index.HEADER):
            entry.rename(self.out / entry.name)

    def _rename(self) -> None:
        check_out(self.out, self.overwrite)  # it may have appeared in the meantime
        if self.out.exists():
            self.out.rename(self._temporary / "replaced")  # inside the temporary folder, and so removed with it
        self._folder.rename(self.out)


def check_out(out: Path, overwrite: bool) -> None:
    """Check that a data set may be written at `out`.

    Raises:
        UserError: something is there that may not be replaced. With `overwrite`, only a data set of ours may be.
    """
    try:
        entries = sorted(out.iterdir()) if out.is_dir() else []
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise UserError(f"{out} exists and is no folder: choose another one.")
    except OSError as error:
        raise UserError(f"{out} cannot be looked into: {error.strerror}. Choose another folder.") from error
    strangers = [entry.name for entry in entries if not _is_ours(entry)]
    if strangers or (entries and not (out / index.HEADER).is_file()):
        named = f" (it holds {strangers[0]})" if strangers else ""
        raise UserError(f"{out} exists and is not a data set of ours{named}: choose another folder.")
    if entries and not overwrite:
        raise UserError(f"{out} exists and is not empty: use --overwrite to replace it, or choose another folder.")


def _is_ours(entry: Path) -> bool:
    if entry.is_dir():
        return entry.name.startswith("index-")
    return entry.name == index.HEADER or (entry.name.startswith("shard-") and entry.suffix == ".tar")


def valid_class_ids(classes: dict[int, str]) -> dict[int, str]:
    """The same classes, after a check that each id is in 1 .. 254 and each name is not blank.

    Raises:
        UserError: an id is out of range or a name is blank.
    """
    for number, name in classes.items():
        if not 0 < number < IGNORE_INDEX:
            raise UserError(f"class {number}={name}: class ids are 1 to {IGNORE_INDEX - 1} (0 is none, 255 is ignore).")
        if not name.strip():
            raise UserError(f"class {number} has a blank name.")
    return dict(classes)


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


def inspect_pair(jpg: bytes, png: bytes, where: str) -> tuple[tuple[int, int], dict[int, int]]:
    """Size (height, width) of a picture and the pixels of each class in its label map, without 0 and 255.

    Args:
        jpg: a JPEG. Only its header is read.
        png: a label map. It is decoded.
        where: what to call the pair in messages.

    Raises:
        UserError: one cannot be read, or their sizes differ.
    """
    size = jpeg_size(jpg, f"the image of {where}")
    labels = read_label_map(png, f"the mask of {where}")
    check_same_size(size, labels.shape, where)
    counts = np.bincount(labels.ravel(), minlength=index.LABELS)
    return size, {int(number): int(counts[number]) for number in np.flatnonzero(counts) if 0 < number < IGNORE_INDEX}


def check_same_size(image: tuple[int, ...], mask: tuple[int, ...], where: str) -> None:
    """Check that a picture and its mask have the same (height, width).

    Raises:
        UserError: they do not.
    """
    if image != mask:
        raise UserError(
            f"the mask of {where} is {mask[1]} x {mask[0]} pixels, but its image {image[1]} x {image[0]}: "
            "they must be equal."
        )


def jpeg_size(jpg: bytes, where: str) -> tuple[int, int]:
    """Height and width of a JPEG of grey or RGB colours, from its header.

    Raises:
        UserError: it is no such JPEG or too large.
    """
    with _open(jpg, "JPEG", where) as image:
        if image.mode not in ("RGB", "L"):
            raise UserError(f"{where} is a JPEG of {image.mode} colours: convert it to RGB.")
        return image.height, image.width


def read_label_map(png: bytes, where: str) -> np.ndarray:
    """Decode a label map: an 8-bit grey PNG, a 1-bit one, or one with a palette, whose indices are the labels.

    Returns:
        (H, W) uint8.

    Raises:
        UserError: it is no such PNG or too large.
    """
    with _open(png, "PNG", where) as image:
        bits = png[24]  # bit depth in IHDR, the first chunk of every PNG
        if bits == 16:
            raise UserError(f"{where} is a 16-bit PNG: save it with 8 bits (0 none, 1 to 254 classes, 255 ignore).")
        if image.mode not in ("L", "P", "1"):
            raise UserError(
                f"{where} is a PNG of {image.mode} colours: save it as a label map, 8-bit grey or with a palette."
            )
        if image.mode == "L" and bits != 8:  # PIL stretches these to 0 .. 255, so that label 1 would become 85 or 17
            raise UserError(f"{where} is a {bits}-bit grey PNG: save it with 8 bits.")
        try:
            return np.asarray(image).astype(np.uint8)
        except UNREADABLE as error:
            raise UserError(f"{where} is a damaged PNG ({error}).") from error


def _open(data: bytes, kind: str, where: str) -> Image.Image:
    """Open a picture of exactly one format, so that bytes from elsewhere cannot choose their decoder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is lower
            image = Image.open(BytesIO(data), formats=[kind])
    except UNREADABLE as error:
        raise UserError(f"{where} cannot be read as {kind}: the file is damaged or of another kind.") from error
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{where} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}: scale it down.")
    return image
