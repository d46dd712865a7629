"""What must hold for any bytes: reading either gives what the bytes say, or one line that names the file."""

import os
import shutil
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from mutations import join, packed, segments_of, split, unpacked
from PIL import Image

from ldis_lightning.datamodules.damage import DamagedSample
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.foreign import index_folder
from ldis_lightning.datamodules.index import COLUMNS, HEADER, ShardIndex, parse_header
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.shards import ShardWriter
from ldis_lightning.datamodules.source import EpisodeSource
from ldis_lightning.datamodules.stats import as_text, stats_of
from ldis_lightning.errors import UserError
from ldis_lightning.imaging import pictures

MAX_PIXELS = 2**20
"""The bound on a picture while fuzzing: lower than the usual one, so that one input takes no seconds."""

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")
FORBIDDEN += ("pickle.find_class", "ctypes.dlopen", "shutil.unpack_archive")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Bits of the first byte of a sample.
IMAGE_CRC_FITS, MASK_CRC_FITS, SIZE_FITS, LENGTH_IS_WRONG = 1, 2, 4, 8


class Watch:
    """Notes what a process does that reading data must not do: start programs, unpickle, write outside a folder.

    Interpreters cannot forget such a hook, so that it is made for a process that does nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = str(folder), list[str]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            self.seen.append(f"{event}{arguments!r}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else self.folder
            if not path.startswith((self.folder, "/dev/null")) and "__pycache__" not in path:
                self.seen.append(f"open {path}")

    def check(self) -> None:
        """Fail if anything was seen."""
        assert not self.seen, self.seen


@contextmanager
def small_pictures() -> Iterator[None]:
    """Pictures above `MAX_PIXELS` of this module are refused."""
    usual = pictures.MAX_PIXELS
    pictures.MAX_PIXELS = MAX_PIXELS
    try:
        yield
    finally:
        pictures.MAX_PIXELS = usual


class Samples:
    """Reading a sample: a shard with one picture and one label map, and an index whose sums fit them or do not.

    An input is (flags, JPEG, PNG), see `join`; the flags say whether the sums and sizes of the index are those of these
    bytes or those of other ones.

    Args:
        folder: an empty folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        jpg, png = encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), encoded(np.ones((4, 4), np.uint8), "PNG")
        with ShardWriter(folder / "set", "set", {1: "cat"}) as writer:
            writer.add_image("sample", jpg, png)
        opened = ShardIndex.open(folder / "set")
        header = parse_header(folder / "set" / HEADER)
        self._columns = {name: np.array(values) for name, values in opened._columns.items()}
        self._index = ShardIndex(folder / "set", header, self._columns)
        self._reader = FrameReader(self._index)
        self._shard = folder / "set" / self._index.shards[0].name
        self._descriptor = os.open(self._shard, os.O_RDWR)

    def __call__(self, data: bytes) -> str:
        """Read the sample; returns what came of it."""
        flags, jpg, png = split(data, 3)
        flag = flags[0] if flags else 0
        self._place(flag, jpg, png)
        read = self._read(jpg, png)
        if flag & LENGTH_IS_WRONG or not flag & IMAGE_CRC_FITS or not flag & MASK_CRC_FITS:
            assert read is None, "a sample was read that is not what was indexed"
        packed = self._inspect(jpg, png)
        if read is not None and packed is not None:
            size, pixels = packed
            assert read[1].shape == size, "indexing and reading disagree on the size"
            assert pixels == counted(read[1]), "indexing and reading disagree on the classes"
        return f"{'read' if read is not None else 'refused'}, {'indexed' if packed is not None else 'not indexed'}"

    def _place(self, flag: int, jpg: bytes, png: bytes) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, jpg + png, 0)
        longer = 1 if flag & LENGTH_IS_WRONG else 0
        self._columns["image_span"][0] = 0, len(jpg)
        self._columns["mask_span"][0] = len(jpg), len(png) + longer
        self._columns["image_crc"][0] = zlib.crc32(jpg) ^ (0 if flag & IMAGE_CRC_FITS else 1)
        self._columns["mask_crc"][0] = zlib.crc32(png) ^ (0 if flag & MASK_CRC_FITS else 1)
        size = reference_size(jpg) if flag & SIZE_FITS else (12, 16)
        self._columns["size"][0] = size or (12, 16)

    def _read(self, jpg: bytes, png: bytes) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            image, labels = self._reader.read(0)
        except UserError as error:
            assert isinstance(error, DamagedSample), f"not told as a damaged sample: {error!r}"
            check_message(error, self._shard)
            return None
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert labels.dtype in (np.uint8, np.uint16) and labels.shape == image.shape[:2]
        assert labels.size <= MAX_PIXELS, "a picture above the bound was decoded"
        assert labels.shape == tuple(self._columns["size"][0]), "a picture of another size than the index says"
        check_picture(image, jpg)
        check_labels(labels, png)
        return image, labels

    def _inspect(self, jpg: bytes, png: bytes) -> tuple[tuple[int, int], dict[int, int]] | None:
        try:
            return pictures.inspect_pair(jpg, png, f"a in {self._shard}")
        except UserError as error:
            check_message(error, self._shard)
            return None


class Tars:
    """Indexing a tar that something else wrote. An input is the tar.

    Args:
        folder: an empty folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tars"
        self._folder.mkdir()
        self._shard = self._folder / "x.tar"

    def __call__(self, data: bytes) -> str:
        """Index it; returns what came of it."""
        _emptied(self._folder)
        self._shard.write_bytes(data)
        try:
            index = index_folder(self._folder)
        except UserError as error:
            check_message(error, self._shard)
            assert set(os.listdir(self._folder)) == {self._shard.name}, "something was left behind"
            return "refused"
        members = _members(data)
        for row in range(len(index)):
            for span, endings in ((index.image_span[row], (".jpg", ".jpeg")), (index.mask_span[row], (".png",))):
                member = data[span[0] : span[0] + span[1]]
                assert len(member) == span[1], "a member that reaches beyond the file was indexed"
                named = [name for name, content in members if content == member and name.lower().endswith(endings)]
                assert any(name.rsplit(".", 1)[0] == index.key(row) for name in named), "a member of another key"
        return f"indexed {len(index)}" if use(index) else "indexed, with damaged samples"


class Indexes:
    """Opening an index that something else wrote. An input is (flags, header, column, column, ...), see `join` and
    `packed`; the flags say whether the sums in the header are those of the columns, as whoever means harm would have
    them.

    Args:
        folder: an empty folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "indexed"
        self.seed = index_of(self._folder)
        self._columns = self._folder / parse_header(self._folder / HEADER)["column_folder"]

    def __call__(self, data: bytes) -> str:
        """Open it and use all of it; returns what came of it."""
        flags, header, *columns = split(data, 2 + len(COLUMNS))
        described = {name: unpacked(values) for name, values in zip(COLUMNS, columns, strict=True)}
        if flags and flags[0] & 1:
            header = with_sums(header, described)
        (self._folder / HEADER).write_bytes(header)
        for name, values in described.items():
            (self._columns / f"{name}.npy").write_bytes(values)
        try:
            index = ShardIndex.open(self._folder)
        except UserError as error:
            check_message(error, self._folder)
            return "refused"
        return "used" if use(index) else "used, with damaged samples"


def use(index: ShardIndex) -> bool:
    """Do with an index what training, evaluation and the data commands do; whether all samples could be read."""
    for row in range(len(index)):
        assert index.key(row) and np.all(np.diff(index.classes_of_row(row)[0]) > 0)
    for class_id in index.classes:
        assert len(index.rows_of_class(class_id)) == len(index.pixels(class_id))
    as_text(stats_of(index))
    whole = True
    try:
        index.verify()
        plan = TrainingPlan(index, EpisodeSource(str(index.folder)), 0, 4)
        for episode in [*plan.batch(0), *plan.batch(10**6)]:
            assert all(0 <= row < len(index) for row in (episode.query, *episode.references))
    except UserError as error:
        check_message(error, index.folder)
    reader = FrameReader(index)
    for row in range(min(len(index), 20)):
        try:
            reader.read(row)
        except UserError as error:
            check_message(error, index.folder)
            whole = False
    return whole


def check_message(error: UserError, path: Path) -> None:
    """A message is one line and names the file or its folder."""
    assert len(str(error).splitlines()) == 1, f"more than a line: {error}"
    assert path.name in str(error) or path.parent.name in str(error), f"the message does not name {path}: {error}"
    assert str(error).isprintable(), f"the message holds control characters: {error!r}"


def check_picture(image: np.ndarray, jpg: bytes) -> None:
    """A decoded picture is what PIL makes of the same bytes, or of the same without what is said about the picture,
    for which PIL refuses some; where it takes neither there is nothing to compare with."""
    for data in (jpg, without_remarks(jpg)):
        try:
            with Image.open(BytesIO(data), formats=["JPEG"]) as picture:
                expected = np.asarray(picture.convert("RGB"))
        except Exception:
            continue
        assert np.array_equal(image, expected), "the picture is not what another decoder makes of it"
        return


def without_remarks(jpg: bytes) -> bytes:
    """A JPEG without its segments APP0 to APP13, APP15 and COM; APP14 may say what its colours are."""
    segments, rest = segments_of(jpg)
    kept = [(marker, data) for marker, data in segments if not 0xFFE0 <= marker <= 0xFFFE or marker == 0xFFEE]
    return b"\xff\xd8" + b"".join(struct.pack(">HH", m, len(data) + 2) + data for m, data in kept) + rest


def check_labels(labels: np.ndarray, png: bytes) -> None:
    """Decoded labels are what PIL makes of the same bytes, perhaps with right sums in them, or, where it does not take
    the file, our own decoder."""
    for data in (png, repaired(png)):
        try:
            with Image.open(BytesIO(data), formats=["PNG"]) as picture:
                expected = np.asarray(picture).astype(labels.dtype)
                break
        except Exception:
            continue
    else:
        expected = plain_labels(png)
    assert np.array_equal(labels, expected), "the labels are not what another decoder makes of them"


def repaired(png: bytes) -> bytes:
    """A PNG with the right sum behind every chunk: the index's CRC-32 has vouched for its bytes."""
    written, place = png[:8], 8
    while place + 12 <= len(png):
        end = place + 8 + int.from_bytes(png[place : place + 4], "big")
        written += png[place:end] + zlib.crc32(png[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return written


def plain_labels(png: bytes) -> np.ndarray:
    """An 8-bit grey or palette PNG without filters, decoded in the simplest way."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    data, place = b"", 8
    while place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        data += png[place + 8 : place + 8 + length] if png[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + length
    rows = np.frombuffer(zlib.decompressobj().decompress(data), np.uint8).reshape(height, 1 + width)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def counted(labels: np.ndarray) -> dict[int, int]:
    """Pixels of each class, without 0 and 255."""
    values, counts = np.unique(labels, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if value not in (0, 255)}


def reference_size(jpg: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG, as PIL finds them."""
    try:
        with Image.open(BytesIO(jpg), formats=["JPEG"]) as picture:
            return picture.height, picture.width
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    """Pixels as a file."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def index_of(folder: Path) -> bytes:
    """Write a small data set; returns the input of `Indexes` that stands for its index."""
    jpg = encoded(np.zeros((4, 4, 3), np.uint8), "JPEG")
    with ShardWriter(folder, "set", {1: "cat", 300: "dog"}, max_samples_per_shard=3) as writer:
        for number in range(4):
            labels = np.array([[0, 1], [255, 300]], np.uint16).repeat(2, 0).repeat(2, 1)
            writer.add_image(f"image/{number}", jpg, pictures.write_label_map(labels))
        writer.add_clip("clip", [(jpg, encoded(np.full((4, 4), 1, np.uint8), "PNG"))] * 2)
    header = parse_header(folder / HEADER)
    columns = [packed((folder / header["column_folder"] / f"{name}.npy").read_bytes()) for name in COLUMNS]
    return join(b"\1", (folder / HEADER).read_bytes(), *columns)


def with_sums(header: bytes, columns: dict[str, bytes]) -> bytes:
    """A header whose sums, types and shapes of columns are those of other columns, where it can hold them."""
    import hashlib
    import json

    try:
        document = json.loads(header)
        for name, data in columns.items():
            described = document["columns"][name]
            described["sha256"], described["crc32"] = hashlib.sha256(data).hexdigest(), zlib.crc32(data)
            values = np.load(BytesIO(data), allow_pickle=False)
            described["dtype"], described["shape"] = values.dtype.str, list(values.shape)
        document["rows"] = len(np.load(BytesIO(columns["clip"]), allow_pickle=False))
        return json.dumps(document).encode()
    except Exception:  # it holds no columns any more, or these are no arrays
        return header


def _members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=BytesIO(data), mode="r:") as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive if info.isreg()]  # pyright: ignore[reportOptionalMemberAccess]


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
